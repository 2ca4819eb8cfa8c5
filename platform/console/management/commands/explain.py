"""`manage.py explain ALIAS_OR_VERSION`: why this version answers, from the ledger back to the runs that
taught it."""

import dataclasses
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_project, project_of, say
from release import explain


class Command(BaseCommand):
    help = "Walk back from a live version to who approved it, on what evidence, trained on what."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("what", metavar="ALIAS_OR_VERSION", help="e.g. support-desk or support-desk-v2")
        add_project(parser)
        parser.add_argument("--json", action="store_true", help="answer in one line of JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            found = explain.explain(project=project_of(options["project"]), what=options["what"])
        except explain.NothingToExplain as error:
            raise CommandError(f"ALIAS_OR_VERSION: {error}") from None
        if options["json"]:
            say(self, dataclasses.asdict(found))
        else:
            self.stdout.write(explain.render(found))
