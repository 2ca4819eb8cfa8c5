"""`manage.py rollback ALIAS`: back to the version before, or to any version that has been champion."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_decision, deployment_of, project_of, say, user_of, version_of
from kernel import clock
from kernel.states import IllegalTransition, StateChanged
from release import rollout


class Command(BaseCommand):
    help = (
        "Undo the latest change of who answers an alias: abort its canary, or put the champion before back."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_decision(parser)
        parser.add_argument("--to", default="", metavar="vN", help="a version that has been champion before")

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        deployment = deployment_of(project, options["alias"])
        to = version_of(project, deployment.alias, options["to"]) if options["to"] else None
        try:
            champion = rollout.roll_back(
                deployment=deployment,
                actor_user=user_of(options["user"]),
                reason=options["reason"],
                now=clock.now(),
                to=to,
            )
        except (IllegalTransition, StateChanged) as error:
            raise CommandError(f"not rolled back: {error}") from None
        say(self, {"alias": deployment.alias, "champion": champion.name})
