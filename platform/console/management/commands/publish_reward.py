"""`manage.py publish_reward --file YAML`: put a version of a project's reward spec in force."""

import re
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import OPERATOR, add_project, project_of, say
from kernel import clock
from learning import reward_specs
from learning.rewards.fields import InvalidRewardSpec
from learning.rewards.spec import RewardSpec


class Command(BaseCommand):
    help = "Publish a reward spec (YAML or JSON) as the next version of its name."

    def add_arguments(self, parser: CommandParser) -> None:
        add_project(parser)
        parser.add_argument("--file", required=True, type=Path, metavar="YAML")
        parser.add_argument(
            "--preview",
            default="",
            metavar="DIGEST",
            help="of the preview that was looked at (preview_reward_spec); it goes into the ledger",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            spec = RewardSpec.from_yaml(options["file"].read_text())
        except (OSError, UnicodeDecodeError, InvalidRewardSpec) as error:
            raise CommandError(f"--file: {error}") from None
        if options["preview"] and not re.fullmatch(r"[0-9a-f]{64}", options["preview"]):
            raise CommandError("--preview: must be the 64 hex digits that preview_reward_spec printed")
        try:
            version = reward_specs.publish(
                project=project,
                name=spec.name,
                document=spec.to_dict(),
                actor=OPERATOR,
                now=clock.now(),
                preview_digest=options["preview"],
            )
        except InvalidRewardSpec as error:
            raise CommandError(f"--file: {error}") from None
        say(self, {"reward_spec": version.name, "version": version.version, "digest": version.digest})
