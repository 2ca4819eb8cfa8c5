"""Which runs are due for an episode, and building them: once for each revision and reward spec, however many workers
work on a project at once.

A closed run is due while the revision that was last built (`Run.built_revision`) is not its own; workers claim due
runs by row locks, so they never build the same one. What an episode holds is `learning.episodes.build`'s business."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from itertools import takewhile
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F, QuerySet

from learning import reward_specs
from learning.episodes.build import episode
from learning.episodes.document import EpisodeDocument
from learning.episodes.load import Lived, lived
from learning.judges.verdicts import verdicts_on
from learning.models import Episode, EpisodeMarks, RewardSpecVersion
from learning.rewards.spec import RewardSpec
from telemetry import runs
from telemetry.models import Run, RunState, Signal

BATCH = 100
"""Runs that are claimed together, at most."""
BATCH_CALLS = 2000
"""Their calls together, at most; a run that alone has more is a batch of its own."""


def build_due(*, project_id: UUID, now: datetime) -> int:
    """Build an episode for each run of the project that is over and has none for its revision; return how
    many.

    A run is over when it is closed, or when its outcome signal has arrived, which closes it."""
    version = reward_specs.in_force(project_id)
    if version is None:
        return 0
    _mark_for(version)
    spec = RewardSpec.parse(version.document)
    outcome = Signal.objects.filter(
        project_id=project_id, name__in=spec.outcome_signals, run__state=RunState.OPEN
    )
    runs.close(outcome.values_list("run_id", flat=True).distinct(), now=now)
    built = 0
    while count := _build_batch(version, spec, now):
        built += count
    return built


def due_projects() -> list[UUID]:
    """Projects with a run that is closed and has no episode: after an idle run's closing, or a new reward
    spec."""
    in_force = RewardSpecVersion.objects.order_by("project_id", "-created_at", "-id").distinct("project_id")
    marked = dict(EpisodeMarks.objects.values_list("project_id", "reward_spec_id"))
    waiting = set(_due().order_by().values_list("project_id", flat=True).distinct())
    return [
        version.project_id
        for version in in_force
        if version.project_id in waiting
        or (marked.get(version.project_id) != version.id and _has_closed_run(version.project_id))
    ]


def _has_closed_run(project_id: UUID) -> bool:
    return Run.objects.filter(project_id=project_id, state=RunState.CLOSED).exists()


def _due() -> "QuerySet[Run]":
    # As in the index `run_to_build`: what is due costs what is due, and not what was ever built.
    return Run.objects.filter(state=RunState.CLOSED).exclude(revision=F("built_revision"))


@transaction.atomic
def _mark_for(version: RewardSpecVersion) -> None:
    """Have the marks of the project's runs speak of this spec: another one makes every run due again."""
    if EpisodeMarks.objects.filter(project_id=version.project_id, reward_spec=version).exists():
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"marks:{version.project_id}"]
        )
    marks, made = EpisodeMarks.objects.get_or_create(
        project_id=version.project_id, defaults={"reward_spec": version}
    )
    if made or marks.reward_spec_id != version.id:
        EpisodeMarks.objects.filter(project_id=version.project_id).update(reward_spec=version)
        Run.objects.filter(project_id=version.project_id, built_revision__gte=0).update(built_revision=-1)


@transaction.atomic
def _build_batch(version: RewardSpecVersion, spec: RewardSpec, now: datetime) -> int:
    """Build what can be claimed; return how many runs it was.

    A claimed run grows no step and joins no signal until this is done: both write its revision first."""
    if not EpisodeMarks.objects.filter(project_id=version.project_id, reward_spec=version).exists():
        return 0  # another spec came into force meanwhile, and whoever saw it builds under it
    claim = _due().filter(project_id=version.project_id).order_by("latest_call_at", "id")
    claimed = list(claim.select_for_update(skip_locked=True, no_key=True)[:BATCH])
    batch = list(_within(claimed, BATCH_CALLS))
    verdicts = verdicts_on(project_id=version.project_id, run_ids=[run.id for run in batch])
    episodes = [
        _row(life, episode(life, version, spec, verdicts), version, spec, now)
        for life in lived(version.project_id, batch, now=now)
    ]
    Episode.objects.bulk_create(episodes, ignore_conflicts=True)
    Run.objects.filter(id__in=[run.id for run in batch]).update(built_revision=F("revision"))
    return len(batch)


def _within(claimed: Sequence[Run], limit: int) -> Iterator[Run]:
    """The first runs, as long as their calls are no more than `limit` together; at least one."""
    calls = 0

    def fits(run: Run) -> bool:
        nonlocal calls
        calls += run.call_count
        return calls <= limit or calls == run.call_count

    return takewhile(fits, claimed)


def _row(
    life: Lived, document: EpisodeDocument, version: RewardSpecVersion, spec: RewardSpec, now: datetime
) -> Episode:
    run, payload = life.run, document.canonical()
    outcome = next(
        (one for one in life.signals if one.name in spec.outcome_signals and one.step is None), None
    )
    return Episode(
        project_id=run.project_id,
        run_id=run.id,
        run_revision=run.revision,
        reward_spec=version,
        task_key=run.task_key,
        model_version_ids=document.model_version_ids,
        step_count=len(document.steps),
        reward=document.reward.total,
        reward_parts=document.reward.parts,
        payload=payload,
        sha256=sha256(payload).hexdigest(),
        api_key_id=run.api_key_id,
        group=document.run.group,
        model_alias=run.model_alias,
        confidence=run.confidence,
        own_step_count=sum(step.tokens is not None for step in document.steps),
        is_final=document.is_final,
        untrainable=",".join(document.untrainable),
        outcome_source=outcome.source if outcome and document.reward.total is not None else "",
        started_at=run.started_at,
        created_at=now,
    )
