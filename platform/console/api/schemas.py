"""The control API's types: one for each concept, the same in lists and alone. Times are UTC; ids are UUIDs
as text.

A name that stands for a model version is `line-vN`, as in the gateway's `x-ratchet-model-version` header."""

from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from ninja import Field, Schema

from learning import models as learning
from release import models as release

T = TypeVar("T")


class Page(Schema, Generic[T]):
    """Part of a list, newest first."""

    items: list[T]
    limit: int
    offset: int
    more: bool
    """Whether a further page has items."""


class Error(Schema):
    """Why a request was refused."""

    error: str
    message: str


class Run(Schema):
    """One execution of the customer's agent."""

    id: UUID
    name: str
    state: str
    revision: int
    task_key: str
    model_alias: str
    confidence: float
    step_count: int
    call_count: int
    reward: float | None
    """From the newest episode; null while the outcome is not known."""
    started_at: datetime
    latest_call_at: datetime
    closed_at: datetime | None


class RunDetail(Run):
    """A run with its calls and signals, oldest first."""

    calls: list["Call"]
    signals: list["Signal"]


class Call(Schema):
    """One exchange through the gateway."""

    id: UUID
    run_id: UUID | None = Field(alias="step.run_id", default=None)
    """Null until the call is stitched."""
    step: int | None = Field(alias="step.index", default=None)
    link_reason: str = Field(alias="step.reason", default="")
    link_confidence: float | None = Field(alias="step.confidence", default=None)
    path: str
    model_requested: str
    model_served: str
    model_version_id: UUID | None
    is_canary: bool
    stream: bool
    outcome: str
    status_code: int | None
    retry_count: int
    response_id: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    started_at: datetime
    ended_at: datetime | None


class Signal(Schema):
    """One observation about a run, a call or a response."""

    id: UUID
    run_id: UUID | None
    """Null while what it speaks of has not arrived."""
    target_type: str
    target: str
    step: int | None
    name: str
    value: Any
    source: str
    observed_at: datetime
    received_at: datetime


class Episode(Schema):
    """The immutable training view of one revision of a run."""

    id: UUID
    run_id: UUID
    run_revision: int
    reward_spec: str
    task_key: str
    step_count: int
    reward: float | None
    reward_parts: dict[str, Any]
    sha256: str
    created_at: datetime

    @staticmethod
    def resolve_reward_spec(row: learning.Episode) -> str:
        return str(row.reward_spec)


class Snapshot(Schema):
    """A frozen, ordered set of episodes."""

    id: UUID
    name: str
    reward_spec: str
    episode_count: int
    root: str
    file_sha256: str
    frozen_at: datetime

    @staticmethod
    def resolve_reward_spec(row: learning.DatasetSnapshot) -> str:
        return str(row.reward_spec)


class TrainingJob(Schema):
    """One training of one adapter from one snapshot."""

    id: UUID
    model_line: str
    state: str
    algorithm: str
    snapshot: str
    reward_spec: str
    environment: str
    requested_by: str
    progress: dict[str, Any]
    plan: dict[str, Any]
    config: dict[str, Any]
    result: dict[str, Any] | None
    error: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @staticmethod
    def resolve_reward_spec(row: learning.TrainingJob) -> str:
        return str(row.reward_spec)

    @staticmethod
    def resolve_snapshot(row: learning.TrainingJob) -> str:
        return row.snapshot.name


class Evaluation(Schema):
    """Champion and candidate on the same held-out tasks, and the gate's verdict."""

    id: UUID
    champion_id: UUID
    candidate_id: UUID
    state: str
    verdict: str
    task_count: int
    environment: str
    reward_spec: str
    progress: dict[str, Any]
    evidence: dict[str, Any]
    evidence_digest: str
    error: str
    created_at: datetime
    finished_at: datetime | None

    @staticmethod
    def resolve_reward_spec(row: learning.Evaluation) -> str:
        return str(row.reward_spec)


class Version(Schema):
    """One immutable model."""

    id: UUID
    name: str
    line: str
    number: int
    served_name: str
    base_sha256: str
    adapter_sha256: str
    job_id: UUID | None
    created_at: datetime


class Deployment(Schema):
    """What an alias answers with."""

    id: UUID
    alias: str
    champion: str
    canary: str | None
    canary_share: float
    previous: str | None
    """The version that the champion replaced."""
    generation: int
    updated_at: datetime

    @staticmethod
    def resolve_champion(row: release.Deployment) -> str:
        return row.champion.name

    @staticmethod
    def resolve_canary(row: release.Deployment) -> str | None:
        return row.canary.name if row.canary else None

    @staticmethod
    def resolve_previous(row: release.Deployment) -> str | None:
        made = (p for p in row.promotions.all() if p.champion_at and p.candidate_id == row.champion_id)
        return next((promotion.previous.name for promotion in made), None)


class Promotion(Schema):
    """A request that a version become champion, and what became of it."""

    id: UUID
    alias: str = Field(alias="deployment.alias")
    state: str
    candidate: str
    previous: str
    evaluation_id: UUID
    evidence_digest: str
    requested_by: str
    requested_reason: str
    decided_by: str | None
    decided_reason: str
    decided_at: datetime | None
    canary_share: float
    canary_min_calls: int
    canary_started_at: datetime | None
    verdict: str
    created_at: datetime
    finished_at: datetime | None

    @staticmethod
    def resolve_candidate(row: release.Promotion) -> str:
        return row.candidate.name

    @staticmethod
    def resolve_previous(row: release.Promotion) -> str:
        return row.previous.name

    @staticmethod
    def resolve_requested_by(row: release.Promotion) -> str:
        return row.requested_by.username

    @staticmethod
    def resolve_decided_by(row: release.Promotion) -> str | None:
        return row.decided_by.username if row.decided_by else None


class Upstream(Schema):
    """A provider of the project. Its credential is not part of this."""

    id: UUID
    name: str
    base_url: str
    auth: str
    priority: int
    serves: list[str]
    """Dialects; empty: all."""
    connect_timeout_s: float | None
    first_byte_timeout_s: float | None
    idle_timeout_s: float | None
    max_retries: int
    asks_usage: bool
    prices: dict[str, Any]
    """US dollars per million tokens, by model."""
    is_enabled: bool
    created_at: datetime
    updated_at: datetime


class AliasTarget(Schema):
    """One place that an alias stands for."""

    target: str = Field(alias="place")
    weight: int
    priority: int


class Alias(Schema):
    """A model name that stands for other places."""

    id: UUID
    name: str
    targets: list[AliasTarget]
    created_at: datetime
    updated_at: datetime


class Limit(Schema):
    """How much the project, or one of its keys, may use in a window."""

    id: UUID
    api_key_id: UUID | None
    """Null: the whole project."""
    measure: str
    amount: int
    window_s: int
    created_at: datetime
    updated_at: datetime


class TaskGroup(Schema):
    """Attempts at one task."""

    task_key: str
    runs: int


class Summary(Schema):
    """The project in figures, over its whole life."""

    runs: int
    runs_with_signals: int
    calls: int
    unstitched_calls: int
    lost_calls: int
    """Of the whole installation: a loss happens before its project is known."""
    signals: int
    unmatched_signals: int
    episodes: int
    """Runs that have one; of each run the newest counts."""
    scored_episodes: int
    mean_reward: float | None
    task_groups: list[TaskGroup]
