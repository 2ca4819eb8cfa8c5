"""`manage.py freeze_snapshot NAME`: freeze the project's scored episodes into a dataset."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import OPERATOR, add_project, project_of, say
from kernel import clock
from learning import snapshots


class Command(BaseCommand):
    help = (
        "Freeze the episodes whose outcome is known, under the reward spec in force, into a dataset snapshot."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        add_project(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            snapshot = snapshots.freeze(
                project=project, name=options["name"], actor=OPERATOR, now=clock.now()
            )
        except snapshots.SnapshotRefused as error:
            raise CommandError(f"NAME: {error}") from None
        say(
            self,
            {
                "snapshot": snapshot.name,
                "id": snapshot.pk,
                "episodes": snapshot.episode_count,
                "root": snapshot.root,
                "mean_reward": snapshot.manifest["mean_reward"],
            },
        )
