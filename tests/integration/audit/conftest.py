"""Writers for the ledger's tests: an organization of ids, and a way to put events into it."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django.db import transaction

from audit import ledger
from audit.actions import Action, Actor, ObjectRef, Related
from kernel.ids import uuid7

NOW = datetime(2026, 11, 21, 9, 30, 0, 123456, tzinfo=UTC)

Write = Callable[..., UUID]


@pytest.fixture
def organization_id() -> UUID:
    return uuid7()


@pytest.fixture
def write(organization_id: UUID) -> Write:
    """Record one event about `thing` in a transaction of its own."""

    @transaction.atomic
    def record(
        thing: str = "t1", action: Action = Action.PROMOTION_APPROVED, reason: str = "because"
    ) -> UUID:
        return ledger.record(
            action,
            actor=Actor.user(id=7, name="ann", role="approver"),
            organization_id=organization_id,
            project_id=None,
            obj=ObjectRef("promotion", thing, digest="ab" * 32),
            at=NOW,
            reason=reason,
            related=[Related("candidate", "model_version", "v2")],
            data={"n": 1, "score": "0.78"},
        )

    return record
