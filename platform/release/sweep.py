"""What release does by the clock: register, offer, load, begin canaries, judge them.

Finds rows that are due and calls the service of each; one that fails is logged and does not hold up the
others."""

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from uuid import UUID

from release import promotion, registry, rollout, serving
from release.models import PolicyNode, PromotionState

log = logging.getLogger(__name__)


def sweep(*, now: datetime) -> None:
    """Move on everything that is due."""
    _each(registry.due_jobs(), lambda pk: registry.register_or_refuse(job_id=pk, now=now))
    _each(promotion.due_offers(), lambda pk: promotion.offer(evaluation_id=pk, now=now))
    _each(
        PolicyNode.objects.values_list("pk", flat=True),
        lambda pk: serving.sync_node(node=PolicyNode.objects.get(pk=pk), now=now),
    )
    _each(rollout.due(PromotionState.APPROVED), lambda pk: rollout.start_canary(promotion_id=pk, now=now))
    _each(rollout.due(PromotionState.CANARY), lambda pk: rollout.judge_canary(promotion_id=pk, now=now))


def _each(rows: Iterable[UUID], step: Callable[[UUID], object]) -> None:
    for pk in rows:
        try:
            step(pk)
        except Exception:  # whatever one row's trouble is, the others must move on
            log.exception("release sweep: %s", pk)
