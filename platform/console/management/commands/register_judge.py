"""`manage.py register_judge --file YAML`: put a judge to work on a project's runs.

Its model server's key comes from standard input, so that it stands in no list of processes and no shell history."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import OPERATOR, add_project, project_of, say
from kernel import clock
from learning.judges import registry
from learning.judges.definition import InvalidJudge, JudgeDefinition


class Command(BaseCommand):
    help = "Register a judge (YAML or JSON) as the next version of its name."

    def add_arguments(self, parser: CommandParser) -> None:
        add_project(parser)
        parser.add_argument("--file", required=True, type=Path, metavar="YAML")
        parser.add_argument(
            "--credential-stdin", action="store_true", help="read the model server's key from standard input"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            definition = JudgeDefinition.from_yaml(options["file"].read_text())
        except (OSError, UnicodeDecodeError, InvalidJudge) as error:
            raise CommandError(f"--file: {error}") from None
        judge = registry.register(
            project=project,
            document=definition.to_dict(),
            credential=sys.stdin.read().strip() if options["credential_stdin"] else "",
            actor=OPERATOR,
            now=clock.now(),
        )
        say(self, {"judge": judge.name, "version": judge.version, "digest": judge.digest})
