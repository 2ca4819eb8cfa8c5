"""`manage.py promote ALIAS`: a person's yes to the promotion that waits."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_decision, deployment_of, project_of, say, user_of
from kernel import clock
from kernel.states import IllegalTransition, StateChanged
from release import promotion
from release.models import Deployment, Promotion, PromotionState


class Command(BaseCommand):
    help = (
        "Approve the promotion that waits for an alias; its canary starts as soon as the candidate is loaded."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_decision(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        row = waiting(deployment_of(project_of(options["project"]), options["alias"]))
        try:
            row = promotion.approve(
                promotion=row, approver=user_of(options["user"]), reason=options["reason"], now=clock.now()
            )
        except (IllegalTransition, StateChanged) as error:
            raise CommandError(f"not approved: {error}") from None
        say(self, {"promotion": row.pk, "state": row.state, "candidate": row.candidate.name})


def waiting(deployment: Deployment, *states: PromotionState) -> Promotion:
    """The alias' promotion that a person can decide on."""
    row = deployment.promotions.filter(state__in=states or [PromotionState.PROPOSED]).first()
    if row is None:
        raise CommandError(f"ALIAS: no promotion of {deployment} waits for a decision")
    return row
