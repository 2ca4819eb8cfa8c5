"""`manage.py explain_episode EPISODE_ID`: the reward of an episode, line by line, with running totals."""

from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_project, project_of
from learning.models import Episode
from learning.waterfalls import as_text, episode_of, waterfall


class Command(BaseCommand):
    help = "Print why an episode has its reward: every term and step, its evidence, and the running total."

    def add_arguments(self, parser: CommandParser) -> None:
        add_project(parser)
        parser.add_argument("episode", type=UUID, metavar="EPISODE_ID")

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            shown = waterfall(episode_of(project, options["episode"]))
        except Episode.DoesNotExist:
            raise CommandError(f"no episode {options['episode']} in {project.name}") from None
        self.stdout.write(
            f"Episode {shown.episode_id}: run {shown.run_id}, revision {shown.run_revision}, "
            f"under {shown.reward_spec}\n\n{as_text(shown)}"
        )
