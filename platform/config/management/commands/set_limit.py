"""`manage.py set_limit MEASURE AMOUNT --window SECONDS`: limit what a project or one of its keys may use."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, key_of, project_of, say
from gateway.limits import Measure
from gateway.services import InvalidLimit, set_limit
from kernel import clock

ARGUMENTS = {"measure": "MEASURE", "amount": "AMOUNT", "window_s": "--window", "api_key": "--key"}


class Command(BaseCommand):
    help = (
        "Set a limit; above it calls are answered 429 until the window ends. Gateways follow within a second."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("measure", choices=list(Measure), help="microusd: millionths of a US dollar")
        parser.add_argument("amount", type=int)
        parser.add_argument("--window", type=int, required=True, metavar="SECONDS", help="e.g. 60 or 86400")
        parser.add_argument("--key", default="", metavar="PREFIX", help="of one API key, not of the project")
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            limit = set_limit(
                project=project,
                api_key=key_of(project, options["key"], "--key") if options["key"] else None,
                measure=options["measure"],
                amount=options["amount"],
                window_s=options["window"],
                actor=author_of(project, options["user"]),
                reason=options["reason"],
                now=clock.now(),
            )
        except InvalidLimit as error:
            field, _, problem = str(error).partition(": ")
            raise CommandError(f"{ARGUMENTS[field]}: {problem}") from None
        say(self, {"limit": limit.pk, "of": limit.api_key or project, "is": str(limit)})
