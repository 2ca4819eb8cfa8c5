"""`manage.py create_key`: a further API key of a project."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accounts import services
from console.management.arguments import OPERATOR, add_project, project_of, say
from kernel import clock


class Command(BaseCommand):
    help = "Make an API key; it is printed once, as one line of JSON, and kept nowhere."

    def add_arguments(self, parser: CommandParser) -> None:
        add_project(parser)
        parser.add_argument("--name", default="key", help="for people, to tell keys apart")

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        row, key = services.create_api_key(
            project=project, name=options["name"], actor=OPERATOR, now=clock.now()
        )
        say(self, {"key": row.pk, "prefix": row.prefix, "api_key": key})
