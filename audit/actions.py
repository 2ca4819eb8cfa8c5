"""The words of the ledger: what can happen, who can do it, to what. Plain values; `audit.ledger` writes
them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

JSON = None | bool | int | str | Sequence["JSON"] | Mapping[str, "JSON"]
"""What an event may hold. There is no float: its text differs between languages, and with it the hash."""


class Action(StrEnum):
    """Everything that is recorded, as noun.verbed."""

    ORGANIZATION_CREATED = "organization.created"
    PROJECT_CREATED = "project.created"
    MEMBER_ADDED = "member.added"
    API_KEY_CREATED = "api_key.created"
    API_KEY_REVOKED = "api_key.revoked"
    API_KEY_TRAINING_SET = "api_key.training_set"
    UPSTREAM_SET = "upstream.set"
    UPSTREAM_REMOVED = "upstream.removed"
    ALIAS_SET = "alias.set"
    ALIAS_REMOVED = "alias.removed"
    LIMIT_SET = "limit.set"
    LIMIT_REMOVED = "limit.removed"
    WEBHOOK_SET = "webhook.set"
    WEBHOOK_REMOVED = "webhook.removed"
    METRIC_DECLARED = "metric.declared"
    SIGNAL_SETTINGS_SET = "signal_settings.set"
    RUN_REVIEWED = "run.reviewed"
    REWARD_SPEC_PUBLISHED = "reward_spec.published"
    JUDGE_REGISTERED = "judge.registered"
    JUDGE_ADMITTED = "judge.admitted"
    JUDGE_BARRED = "judge.barred"
    SNAPSHOT_FROZEN = "snapshot.frozen"
    TRAINING_REQUESTED = "training.requested"
    TRAINING_STARTED = "training.started"
    TRAINING_SUCCEEDED = "training.succeeded"
    TRAINING_FAILED = "training.failed"
    EVALUATION_REQUESTED = "evaluation.requested"
    EVALUATION_COMPLETED = "evaluation.completed"
    MODEL_REGISTERED = "model.registered"
    DEPLOYMENT_CREATED = "deployment.created"
    PROMOTION_PROPOSED = "promotion.proposed"
    PROMOTION_APPROVED = "promotion.approved"
    PROMOTION_REJECTED = "promotion.rejected"
    CANARY_STARTED = "canary.started"
    CANARY_ABORTED = "canary.aborted"
    CHAMPION_CHANGED = "champion.changed"
    CHAMPION_RESTORED = "champion.restored"
    CAPTURE_LOST = "capture.lost"
    PERIOD_DROPPED = "period.dropped"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it: a person with the role held at that moment, an API key, a service, or a rule that fired."""

    type: str
    id: str
    name: str = ""
    role: str = ""

    @classmethod
    def user(cls, *, id: object, name: str, role: str) -> "Actor":
        return cls("user", str(id), name, role)

    @classmethod
    def key(cls, *, id: UUID) -> "Actor":
        return cls("key", str(id))

    @classmethod
    def service(cls, name: str) -> "Actor":
        """A process of Ratchet itself, e.g. `trainer`, or the command line of the machine it runs on."""
        return cls("service", name, name)

    @classmethod
    def rule(cls, name: str) -> "Actor":
        """A decision that no person took, e.g. `canary-guard`."""
        return cls("rule", name, name)


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """The one thing an event is about; its events are numbered from 1 without a gap."""

    type: str
    id: UUID | str
    digest: str = ""
    """Hex digest of the thing's content, where it has one."""


@dataclass(frozen=True, slots=True)
class Related:
    """Another thing an event rests on, and how: `dataset`, `reward_spec`, `evaluation`, `candidate`, ..."""

    rel: str
    type: str
    id: UUID | str
    digest: str = ""
