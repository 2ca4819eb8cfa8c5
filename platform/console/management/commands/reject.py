"""`manage.py reject ALIAS`: a person's no to the promotion that waits, or that was approved and has not
begun."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_decision, deployment_of, project_of, say, user_of
from console.management.commands.promote import waiting
from kernel import clock
from kernel.states import IllegalTransition, StateChanged
from release import promotion
from release.models import PromotionState


class Command(BaseCommand):
    help = "Reject the promotion that waits for an alias; the champion stays."

    def add_arguments(self, parser: CommandParser) -> None:
        add_decision(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        deployment = deployment_of(project_of(options["project"]), options["alias"])
        row = waiting(deployment, PromotionState.PROPOSED, PromotionState.APPROVED)
        try:
            row = promotion.reject(
                promotion=row, approver=user_of(options["user"]), reason=options["reason"], now=clock.now()
            )
        except (IllegalTransition, StateChanged) as error:
            raise CommandError(f"not rejected: {error}") from None
        say(self, {"promotion": row.pk, "state": row.state, "candidate": row.candidate.name})
