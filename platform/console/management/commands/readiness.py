"""`manage.py readiness`: what a project's data supports learning by, and what the next rung lacks."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from console.management.arguments import add_project, project_of
from kernel import clock
from learning import readiness


class Command(BaseCommand):
    help = (
        "Say what the project's episodes support (prompt first, SFT, KTO, RL) and what is missing for more."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_project(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        found = readiness.of_project(project_of(options["project"]), now=clock.now())
        self.stdout.write(found.summary)
        for need in found.needs:
            measured, needed = (
                (f"{need.measured:.0%}", f"{need.needed:.0%}")
                if need.unit == "share"
                else (f"{need.measured:g}", f"{need.needed:g}")
            )
            mark = "yes" if need.is_met else "no"
            self.stdout.write(f"  {need.rung.value:5} {mark:4} {need.name}: {measured} (needed: {needed})")
        for sentence in found.missing:
            self.stdout.write(f"For the next rung: {sentence}")
