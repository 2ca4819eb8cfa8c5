"""`manage.py set_alias NAME TARGET=WEIGHT ...`: let a model name stand for one or several targets."""

from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_author, add_project, author_of, project_of, say
from gateway.services import InvalidAlias, TargetSetting, set_alias
from kernel import clock


class Command(BaseCommand):
    help = "Set the targets of an alias, replacing those it has. Gateways follow within a second."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what clients put in `model`")
        parser.add_argument(
            "targets",
            nargs="+",
            type=_target,
            metavar="TARGET=WEIGHT[@PRIORITY]",
            help="TARGET is UPSTREAM/MODEL, UPSTREAM (the model is called like the alias there) or"
            " deployment:ALIAS; weights share runs within a priority, the next priority is the fallback",
        )
        add_project(parser)
        add_author(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            alias = set_alias(
                project=project,
                name=options["name"],
                targets=options["targets"],
                actor=author_of(project, options["user"]),
                reason=options["reason"],
                now=clock.now(),
            )
        except InvalidAlias as error:
            raise CommandError(str(error).replace("targets: ", "TARGET: ", 1)) from None
        targets = [str(target) for target in alias.targets.order_by("priority", "-weight")]
        say(self, {"alias": alias.pk, "name": alias.name, "targets": targets})


def _target(text: str) -> TargetSetting:
    place, _, share = text.rpartition("=")
    weight, _, priority = share.partition("@")
    if not place or not weight.isdecimal() or not (priority or "0").isdecimal():
        raise ArgumentTypeError(f"{text!r} is not TARGET=WEIGHT or TARGET=WEIGHT@PRIORITY")
    if place.startswith("deployment:"):
        return TargetSetting(
            deployment=place.removeprefix("deployment:"), weight=int(weight), priority=int(priority or 0)
        )
    upstream, _, model = place.partition("/")
    return TargetSetting(upstream=upstream, model=model, weight=int(weight), priority=int(priority or 0))
