"""`manage.py freeze_snapshot NAME`: freeze the project's scored episodes into a dataset."""

from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import OPERATOR, add_project, project_of, say
from kernel import clock
from learning import snapshots


def _moment(text: str) -> datetime:
    """A time in ISO 8601; without an offset it is in UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Command(BaseCommand):
    help = (
        "Freeze the episodes whose outcome is known, under the reward spec in force, into a dataset snapshot."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        add_project(parser)
        parser.add_argument("--since", type=_moment, help="built at this time or later, in ISO 8601")
        parser.add_argument("--until", type=_moment, help="built before this time")
        parser.add_argument("--task", action="append", default=[], metavar="KEY", help="only this task")
        parser.add_argument(
            "--model-version", action="append", default=[], metavar="ID", help="only runs it answered in"
        )
        parser.add_argument("--alias", default="", help="only runs that asked for this model name")
        parser.add_argument("--min-confidence", type=float, default=0.0, help="of the run's links, 0 to 1")
        parser.add_argument("--final", action="store_true", help="only rewards that rest on final values")

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            snapshot = snapshots.freeze(
                project=project,
                name=options["name"],
                actor=OPERATOR,
                now=clock.now(),
                filters=snapshots.Filters(
                    since=options["since"],
                    until=options["until"],
                    task_keys=tuple(options["task"]),
                    model_version_ids=tuple(options["model_version"]),
                    model_alias=options["alias"],
                    min_confidence=options["min_confidence"],
                    final_only=options["final"],
                ),
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
                "excluded": snapshot.manifest["excluded"],
            },
        )
