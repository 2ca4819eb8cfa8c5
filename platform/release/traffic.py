"""The numbers a canary is judged by, read from captured calls. `release.canary` makes a verdict of them."""

from typing import Any

from django.db.models import Aggregate, Count, DurationField, F, Q

from release.canary import Arm, Window
from release.models import Promotion
from telemetry.models import Call, CallOutcome

FAILED = [CallOutcome.UPSTREAM_ERROR, CallOutcome.UPSTREAM_CUT, CallOutcome.UNREACHABLE]


class Percentile(Aggregate):
    """PostgreSQL's `percentile_cont(share) WITHIN GROUP (ORDER BY expression)`."""

    function = "PERCENTILE_CONT"
    template = "%(function)s(%(share)s) WITHIN GROUP (ORDER BY %(expressions)s)"
    output_field = DurationField()

    def __init__(self, expression: Any, *, share: float) -> None:
        super().__init__(expression, share=repr(share))


def window(promotion: Promotion) -> Window:
    """What champion and canary answered since the canary began, in one query."""
    calls = Call.objects.filter(
        project=promotion.project_id,
        deployment_id=promotion.deployment_id,
        started_at__gte=promotion.canary_started_at,
        model_version_id__in=[promotion.candidate_id, promotion.previous_id],
    ).exclude(outcome=CallOutcome.CLIENT_GONE)
    rows = calls.values("model_version_id").annotate(
        calls=Count("pk"),
        errors=Count("pk", filter=Q(outcome__in=FAILED)),
        p95=Percentile(F("ended_at") - F("started_at"), share=0.95),
    )
    arms = {
        row["model_version_id"]: Arm(
            row["calls"], row["errors"], row["p95"].total_seconds() * 1000 if row["p95"] else None
        )
        for row in rows
    }
    nothing = Arm(0, 0)
    return Window(
        champion=arms.get(promotion.previous_id, nothing), canary=arms.get(promotion.candidate_id, nothing)
    )
