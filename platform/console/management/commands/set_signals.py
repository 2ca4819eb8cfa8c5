"""`manage.py set_signals --strict --review-share 0.02`: how a project takes signals."""

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, project_of, say
from kernel import clock
from telemetry.declarations import InvalidSetting, set_signal_settings, undeclared


class Command(BaseCommand):
    help = "Change how a project takes signals; what is not given stays as it is."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--strict", action=argparse.BooleanOptionalAction, help="refuse names that are not declared"
        )
        parser.add_argument(
            "--review-share",
            type=float,
            help="of the runs that close, drawn for people to label; 0.02 is 2 %%",
        )
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            row = set_signal_settings(
                project=project,
                is_strict=options["strict"],
                review_share=options["review_share"],
                actor=author_of(project, options["user"]),
                reason=options["reason"],
                now=clock.now(),
            )
        except InvalidSetting as error:
            raise CommandError(f"--review-share{str(error).removeprefix('review_share')}") from None
        told = {"project": project, "is_strict": row.is_strict, "review_share": row.review_share}
        say(self, {**told, "undeclared": undeclared(project.pk)})
