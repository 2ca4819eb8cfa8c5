"""`manage.py remove_limit MEASURE --window SECONDS`: let a limit go."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, key_of, project_of, say
from gateway.limits import Measure
from gateway.models import Limit
from gateway.services import remove_limit
from kernel import clock


class Command(BaseCommand):
    help = "Remove the limit of a project, or of one of its keys, on this measure and window."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("measure", choices=list(Measure))
        parser.add_argument("--window", type=int, required=True, metavar="SECONDS")
        parser.add_argument("--key", default="", metavar="PREFIX", help="of one API key, not of the project")
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        key = key_of(project, options["key"], "--key") if options["key"] else None
        limit = Limit.objects.filter(
            project=project, api_key=key, measure=options["measure"], window_s=options["window"]
        ).first()
        if limit is None:
            raise CommandError(
                f"MEASURE: {key or project} has no limit of {options['measure']} in {options['window']} s"
            )
        actor = author_of(project, options["user"])
        remove_limit(limit=limit, actor=actor, reason=options["reason"], now=clock.now())
        say(self, {"removed": limit.pk, "was": str(limit)})
