"""`manage.py set_training PREFIX on|off`: whether anything may be learnt from what an API key calls."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accounts import services
from console.management.arguments import OPERATOR, add_project, key_of, project_of, say
from kernel import clock


class Command(BaseCommand):
    help = "Allow or forbid learning from an API key's calls, past ones included; the key goes on working."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prefix", help="the key's first ten characters")
        parser.add_argument("training", choices=("on", "off"))
        add_project(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        key = key_of(project, options["prefix"], "PREFIX")
        key = services.set_training_opt_out(
            key=key, is_opted_out=options["training"] == "off", actor=OPERATOR, now=clock.now()
        )
        say(self, {"key": key.pk, "training": "off" if key.is_opted_out else "on"})
