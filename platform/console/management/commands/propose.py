"""`manage.py propose ALIAS`: ask that the candidate of the latest passed evaluation become champion."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from console.management.arguments import add_decision, deployment_of, project_of, say, user_of, version_of
from kernel import clock
from kernel.states import IllegalTransition, StateChanged
from learning.models import Evaluation, JobState
from release import promotion
from release.models import ModelVersion


class Command(BaseCommand):
    help = "Propose a version for an alias by hand; workers do it by themselves when a gate passes."

    def add_arguments(self, parser: CommandParser) -> None:
        add_decision(parser)
        parser.add_argument(
            "--version-number", default="", metavar="vN", help="default: the latest evaluated one"
        )
        parser.add_argument(
            "--canary-share", type=float, default=0.25, help="share of runs, above 0 and at most 1"
        )
        parser.add_argument("--canary-min-calls", type=int, default=50)

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        deployment = deployment_of(project, options["alias"])
        versions = ModelVersion.objects.filter(project=project, line=deployment.alias)
        if options["version_number"]:
            versions = versions.filter(pk=version_of(project, deployment.alias, options["version_number"]).pk)
        evaluations = Evaluation.objects.filter(
            state=JobState.SUCCEEDED, candidate_id__in=versions.values("pk")
        )
        evaluation = evaluations.order_by("-finished_at").first()
        if evaluation is None:
            raise CommandError(f"ALIAS: no version of {deployment} has been evaluated")
        try:
            row = promotion.propose(
                evaluation=evaluation,
                requested_by=user_of(options["user"]),
                reason=options["reason"],
                now=clock.now(),
                canary_share=options["canary_share"],
                canary_min_calls=options["canary_min_calls"],
            )
        except (IllegalTransition, StateChanged) as error:
            raise CommandError(f"not proposed: {error}") from None
        say(self, {"promotion": row.pk, "state": row.state, "candidate": row.candidate.name})
