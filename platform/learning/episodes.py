"""Episodes: the immutable training view of one revision of a run, under the reward spec in force.

An episode's payload depends on nothing but the run, its signals and the spec, so building it again gives
the same bytes and the same sha256. Missing is not zero: without the outcome there is no reward. What a spec
means is `learning.rewards.spec`'s, how bytes become messages `telemetry.exchange`'s."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import rfc8785
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from learning import reward_specs
from learning.judges.verdicts import Verdicts, verdicts_on
from learning.models import Episode, RewardSpecVersion
from learning.rewards.facts import Facts, Observed
from learning.rewards.scoring import score
from learning.rewards.spec import RewardSpec
from learning.rewards.steps import StepFacts, steps_from_messages
from telemetry import exchange, runs
from telemetry.bodies import bodies_of
from telemetry.models import Call, CallOutcome, Run, RunState, Signal, Step
from telemetry.signals import SignalRow, latest_signals

BATCH = 50
"""Runs at a time: their answers are in memory together."""
_PLAIN_TYPES = frozenset({"string", "integer", "number", "boolean"})


@dataclass(frozen=True)
class _Turn:
    """One step of a run, as the reward sees it."""

    step: Step
    calls: list[Call]
    answering: Call | None
    """The last of the step's calls that got a whole answer."""
    answer: dict[str, Any] | None


def build_due(*, project_id: UUID, now: datetime) -> int:
    """Build an episode for each run of the project that is over and has none for its revision; return how
    many.

    A run is over when it is closed, or when its outcome signal has arrived, which closes it."""
    version = reward_specs.in_force(project_id)
    if version is None:
        return 0
    spec = RewardSpec.parse(version.document)
    outcome = Signal.objects.filter(
        project_id=project_id, name__in=spec.outcome_signals, run__state=RunState.OPEN
    )
    runs.close(outcome.values_list("run_id", flat=True).distinct(), now=now)
    built = 0
    while due := list(_due(version)[:BATCH]):
        built += _build(due, version, spec, now)
    return built


def due_projects() -> list[UUID]:
    """Projects with a run that is closed and has no episode: after an idle run's closing, or a new reward
    spec."""
    in_force = RewardSpecVersion.objects.order_by("project_id", "-created_at", "-id").distinct("project_id")
    return [version.project_id for version in in_force if _due(version).exists()]


def _due(version: RewardSpecVersion) -> "QuerySet[Run]":
    episodes = Episode.objects.filter(
        run_id=OuterRef("id"), run_revision=OuterRef("revision"), reward_spec=version
    )
    closed = Run.objects.filter(project_id=version.project_id, state=RunState.CLOSED)
    return closed.exclude(Exists(episodes)).order_by("latest_call_at", "id")


@transaction.atomic
def _build(due: Sequence[Run], version: RewardSpecVersion, spec: RewardSpec, now: datetime) -> int:
    runs.lock_project(version.project_id)  # calls and signals of one revision, not of two
    due = list(Run.objects.filter(id__in=[run.id for run in due]))
    turns, requests = _load(version.project_id, due)
    signals = latest_signals((run.id for run in due), now=now)
    verdicts = verdicts_on(project_id=version.project_id, run_ids=[run.id for run in due])
    episodes = [
        _episode(
            run,
            version,
            spec,
            turns.get(run.id, []),
            requests.get(run.id, b""),
            signals.get(run.id, []),
            verdicts,
            now,
        )
        for run in due
    ]
    Episode.objects.bulk_create(episodes, ignore_conflicts=True)
    return len(episodes)


def _load(project_id: UUID, due: Sequence[Run]) -> tuple[dict[UUID, list[_Turn]], dict[UUID, bytes]]:
    """The turns of each run, and the request of each run's last answered turn; four queries, all bytes in two."""
    run_ids = [run.id for run in due]
    calls: dict[UUID, list[Call]] = {}
    for call in Call.objects.filter(step__run_id__in=run_ids).order_by("started_at", "id"):
        if call.step_id is not None:
            calls.setdefault(call.step_id, []).append(call)
    answering = {
        step_id: next((call for call in reversed(attempts) if call.outcome == CallOutcome.COMPLETE), None)
        for step_id, attempts in calls.items()
    }
    dialects = {call.id: call.dialect for call in answering.values() if call}
    bodies = bodies_of(project_id, dialects)
    answers = {
        call_id: exchange.answer_message(body.response, dialects[call_id]) for call_id, body in bodies.items()
    }

    turns: dict[UUID, list[_Turn]] = {}
    for step in Step.objects.filter(run_id__in=run_ids).order_by("run_id", "index"):
        latest = answering.get(step.id)
        answer = answers.get(latest.id) if latest else None
        turns.setdefault(step.run_id, []).append(_Turn(step, calls.get(step.id, []), latest, answer))
    last = {run_id: _last_answered(run_turns) for run_id, run_turns in turns.items()}
    # A turn is answered only where its bytes are there.
    return turns, {
        run_id: bodies[turn.answering.id].request for run_id, turn in last.items() if turn and turn.answering
    }


def _last_answered(turns: Sequence[_Turn]) -> _Turn | None:
    return next((turn for turn in reversed(turns) if turn.answer), None)


def _dialect(turns: Sequence[_Turn]) -> str:
    """What the last answered request is written in."""
    last = _last_answered(turns)
    return last.answering.dialect if last and last.answering else ""


def _episode(
    run: Run,
    version: RewardSpecVersion,
    spec: RewardSpec,
    turns: Sequence[_Turn],
    request: bytes,
    signals: Sequence[SignalRow],
    verdicts: Verdicts,
    now: datetime,
) -> Episode:
    observed = verdicts.applied(run.id, [_observed(signal) for signal in signals])
    facts = Facts(observed, _facts(turns, request))
    scored = score(spec, facts)
    versions = sorted(
        {str(call.model_version_id) for turn in turns for call in turn.calls if call.model_version_id}
    )
    last = _last_answered(turns)
    payload = _canonical(
        {
            "schema": 1,
            "run": {
                "id": str(run.id),
                "revision": run.revision,
                "name": run.name,
                "task_key": run.task_key,
                "model_alias": run.model_alias,
                "confidence": run.confidence,
                "started_at": run.started_at.isoformat(),
                "latest_call_at": run.latest_call_at.isoformat(),
            },
            "reward_spec": {"id": str(version.id), "digest": version.digest},
            "model_version_ids": versions,
            "steps": [_step_document(turn, turns) for turn in turns],
            "messages": exchange.request_messages(request, _dialect(turns))
            + ([last.answer] if last and last.answer else []),
            "signals": [_signal_document(signal) for signal in signals],
            "facts": facts.to_json(),
            "reward": scored.to_json(),
        }
    )
    return Episode(
        project_id=run.project_id,
        run_id=run.id,
        run_revision=run.revision,
        reward_spec=version,
        task_key=run.task_key,
        model_version_ids=versions,
        step_count=len(turns),
        reward=scored.total,
        reward_parts=scored.parts,
        payload=payload,
        sha256=hashlib.sha256(payload).hexdigest(),
        created_at=now,
    )


def _facts(turns: Sequence[_Turn], request: bytes) -> list[StepFacts]:
    """One per step. An SDK's retries are model calls of their step; a step without an answer has nothing to
    judge."""
    answers = [turn.answer for turn in turns if turn.answer]
    judged = iter(steps_from_messages(answers, tools=_plain_tools(request, _dialect(turns))))
    facts = []
    for turn in turns:
        known = next(judged) if turn.answer else StepFacts()
        tokens = sum((call.prompt_tokens or 0) + (call.completion_tokens or 0) for call in turn.calls)
        facts.append(replace(known, model_calls=len(turn.calls), tokens=tokens))
    return facts


def _plain_tools(request: bytes, dialect: str) -> list[dict[str, Any]] | None:
    """The offered tools, if their parameters are of the plain kind that `learning.rewards` can hold
    arguments against; else None, and only arguments that do not parse count as malformed."""
    tools = exchange.offered_tools(request, dialect)
    return tools if tools and all(_is_plain(tool["function"].get("parameters")) for tool in tools) else None


def _is_plain(parameters: Any) -> bool:
    if not isinstance(parameters, dict):
        return False
    properties, required = parameters.get("properties"), parameters.get("required")
    return (
        isinstance(properties, dict)
        and isinstance(required, list)
        and all(isinstance(kind, dict) and kind.get("type") in _PLAIN_TYPES for kind in properties.values())
    )


def _observed(signal: SignalRow) -> Observed:
    """A demonstration is not held against anything: that there is one is all that a reward may know."""
    value = signal.value if isinstance(signal.value, (bool, int, float, str)) else None
    return Observed(signal.name, value, signal.step, signal.is_final, signal.source, signal.evidence)


def _step_document(turn: _Turn, turns: Sequence[_Turn]) -> dict[str, Any]:
    parent = next((other.step.index for other in turns if other.step.id == turn.step.parent_id), None)
    called = (turn.answer or {}).get("tool_calls", [])
    return {
        "index": turn.step.index,
        "parent": parent,
        "reason": turn.step.reason,
        "confidence": turn.step.confidence,
        "tool_calls": [call["function"] for call in called],
        "calls": [
            {
                "id": str(call.id),
                "outcome": call.outcome,
                "status_code": call.status_code,
                "retry_count": call.retry_count,
                "model_requested": call.model_requested,
                "model_served": call.model_served,
                "model_version_id": str(call.model_version_id) if call.model_version_id else None,
                "prompt_tokens": call.prompt_tokens,
                "completion_tokens": call.completion_tokens,
            }
            for call in turn.calls
        ],
    }


def _signal_document(signal: SignalRow) -> dict[str, Any]:
    return {
        "id": str(signal.id),
        "name": signal.name,
        "value": signal.value,
        "step": signal.step,
        "source": signal.source,
        "observed_at": signal.observed_at.isoformat(),
    }


def _canonical(document: dict[str, Any]) -> bytes:
    """RFC 8785's canonical JSON. It writes numbers as JavaScript would, in one way only."""
    try:
        return rfc8785.dumps(document)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return rfc8785.dumps(_sayable(document))
    except RecursionError:  # content parts or demonstrations, nested some hundred levels deep
        return _canonical({**document, "messages": [], "signals": [], "is_unreadable": True})


def _sayable(value: Any) -> Any:
    """What RFC 8785 can write: integers beyond 2**53 and numbers that are none as text, no half surrogate
    pairs."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return [_sayable(item) for item in value]
    return {_sayable(str(name)): _sayable(item) for name, item in value.items()}
