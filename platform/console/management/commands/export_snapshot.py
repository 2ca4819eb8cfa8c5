"""`manage.py export_snapshot NAME --format jsonl|parquet --to FILE`: a snapshot as a file that `datasets` loads."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_project, project_of, say
from learning import export, snapshots
from learning.models import DatasetSnapshot


class Command(BaseCommand):
    help = "Write a dataset snapshot as JSONL or Parquet, checked against its Merkle root while it is read."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        add_project(parser)
        parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
        parser.add_argument(
            "--view",
            choices=sorted(export.SCHEMAS),
            default="episodes",
            help="episodes: whole documents; conversations: messages for SFT; steps: an answer a row, for KTO",
        )
        parser.add_argument("--to", required=True, type=Path, metavar="FILE")

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        snapshot = DatasetSnapshot.objects.filter(project=project, name=options["name"]).first()
        if snapshot is None:
            raise CommandError(f"NAME: {project} has no snapshot called {options['name']!r}")
        write = export.write_jsonl if options["format"] == "jsonl" else export.write_parquet
        target: Path = options["to"]
        draft = target.with_name(f".{target.name}.draft")  # the file appears once all of it has been verified
        try:
            count = write(snapshots.read(snapshot), options["view"], draft)
            draft.replace(target)
        except snapshots.SnapshotDamaged as error:
            raise CommandError(f"NAME: {error}") from None
        except OSError as error:
            raise CommandError(f"--to: {target} cannot be written: {error.strerror}") from None
        finally:
            draft.unlink(missing_ok=True)
        say(self, {"snapshot": snapshot.name, "rows": count, "file": str(target), "root": snapshot.root})
