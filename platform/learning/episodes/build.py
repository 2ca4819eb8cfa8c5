"""A lived run and a reward spec -> its episode document. Pure: equal inputs give equal bytes.

Missing is not zero: without the outcome there is no reward. What the document holds is said in
`learning.episodes.document`; when it is built, in `learning.episodes.due`."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any
from uuid import UUID

from learning.episodes import document as doc
from learning.episodes.load import CallRow, Lived, Turn
from learning.judges.verdicts import Verdicts
from learning.models import RewardSpecVersion
from learning.rewards.facts import Facts, Observed
from learning.rewards.scoring import score
from learning.rewards.spec import RewardSpec
from learning.rewards.steps import StepFacts, steps_from_messages
from telemetry.derived import CallFacts, TurnFacts, derive
from telemetry.metrics import CLOSED, JUDGE_PREFIX, TRAINING_OPT_OUT
from telemetry.signals import SignalRow

DERIVED = "derived"
"""The source of signals that nobody sent."""
_PLAIN_TYPES = frozenset({"string", "integer", "number", "boolean"})


def episode(
    lived: Lived, version: RewardSpecVersion, spec: RewardSpec, verdicts: Verdicts
) -> doc.EpisodeDocument:
    """The document of one revision of a run; `verdicts` says what the judges' signals are worth."""
    run = lived.run
    answered = [turn for turn in lived.turns if turn.answer is not None]
    last = answered[-1] if answered else None
    facts = _facts(lived, last.tools if last else [])
    applied = verdicts.applied(run.id, [_observed(row) for row in lived.signals])
    signals = [_signal(row, seen) for row, seen in zip(lived.signals, applied, strict=True)]
    signals += _derived(lived, last.tools if last else [], is_told_over=_is_told_over(lived, spec))
    reward = _reward(spec, doc.facts_of(signals, facts))
    return doc.EpisodeDocument(
        schema_version=doc.SCHEMA,
        run=doc.RunPart(
            id=str(run.id),
            revision=run.revision,
            name=run.name,
            task_key=run.task_key,
            group=group_of(run.project_id, run.task_key),
            model_alias=run.model_alias,
            confidence=run.confidence,
            started_at=run.started_at.isoformat(),
            latest_call_at=run.latest_call_at.isoformat(),
        ),
        reward_spec=doc.SpecPart(id=str(version.id), digest=version.digest),
        model_version_ids=sorted(
            {
                str(call.model_version_id)
                for turn in lived.turns
                for call in turn.calls
                if call.model_version_id
            }
        ),
        tools=last.tools if last else [],
        messages=[doc.MessageNode(after=node.after, message=node.message) for node in lived.nodes],
        main_path=_main_path(lived.turns, last),
        steps=_steps(lived, facts),
        signals=signals,
        reward=reward,
        is_final=not reward.not_final,
        untrainable=_untrainable(lived, signals),
    )


def group_of(project_id: UUID, task_key: str) -> str:
    """The group of a project's runs of one task: 32 hex digits; empty without a task key."""
    return sha256(project_id.bytes + task_key.encode()).hexdigest()[:32] if task_key else ""


def _reward(spec: RewardSpec, facts: Facts) -> doc.RewardPart:
    """The one place in which production episodes are scored."""
    return doc.RewardPart.model_validate(score(spec, facts).to_json())


def _facts(lived: Lived, tools: list[dict[str, Any]]) -> list[StepFacts]:
    """One per step. An SDK's retries are model calls of their step; a step without an answer has nothing to
    judge."""
    answers = [lived.nodes[turn.answer].message for turn in lived.turns if turn.answer is not None]
    judged = iter(steps_from_messages(answers, tools=_plain(tools)))
    facts = []
    for turn in lived.turns:
        known = next(judged) if turn.answer is not None else StepFacts()
        tokens = sum((call.prompt_tokens or 0) + (call.completion_tokens or 0) for call in turn.calls)
        facts.append(replace(known, model_calls=len(turn.calls), tokens=tokens))
    return facts


def _plain(tools: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The tools, if their parameters are of the plain kind that `learning.rewards` can hold arguments against; else
    None, and only arguments that do not parse count as malformed."""
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


def _main_path(turns: Sequence[Turn], last: Turn | None) -> list[int]:
    """From the root to the last answered step."""
    path = []
    at = last
    while at is not None:
        path.append(at.index)
        at = turns[at.parent] if at.parent is not None else None
    return path[::-1]


def _steps(lived: Lived, facts: Sequence[StepFacts]) -> list[doc.StepPart]:
    parts = []
    for turn, counted in zip(lived.turns, facts, strict=True):
        answer = lived.nodes[turn.answer].message if turn.answer is not None else {}
        answering = turn.answering
        version = answering.model_version_id if answering else None
        parts.append(
            doc.StepPart(
                index=turn.index,
                parent=turn.parent,
                reason=turn.reason,
                confidence=turn.confidence,
                prompt=turn.prompt,
                answer=turn.answer,
                tool_calls=[
                    doc.ToolCall(id=call["id"], **call["function"]) for call in answer.get("tool_calls", ())
                ],
                model_version_id=str(version) if version else None,
                sampling=turn.sampling,
                tokens=_tokens(turn, lived.turns),
                facts=doc.StepFactsPart(
                    model_calls=counted.model_calls,
                    tool_calls=counted.tool_calls,
                    malformed=counted.malformed,
                    repeated=counted.repeated,
                    tokens=counted.tokens,
                ),
                calls=[_call(call) for call in turn.calls],
            )
        )
    return parts


def _tokens(turn: Turn, turns: Sequence[Turn]) -> doc.TokenPart | None:
    if turn.sampled is None:
        return None
    parent = turns[turn.parent].sampled if turn.parent is not None else None
    prompt = turn.sampled.prompt_token_ids
    shared = doc.shared_length(parent.prompt_token_ids + parent.token_ids, prompt) if parent else 0
    return doc.TokenPart(
        shared=shared,
        prompt=list(prompt[shared:]),
        sampled=list(turn.sampled.token_ids),
        logprobs=list(turn.sampled.logprobs),
    )


def _call(call: CallRow) -> doc.CallPart:
    return doc.CallPart(
        id=str(call.id),
        outcome=call.outcome,
        status_code=call.status_code,
        retry_count=call.retry_count,
        model_requested=call.model_requested,
        model_served=call.model_served,
        model_version_id=str(call.model_version_id) if call.model_version_id else None,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        cost_microusd=call.cost_microusd,
        started_at=call.started_at.isoformat(),
        ended_at=call.ended_at.isoformat() if call.ended_at else None,
    )


def _observed(row: SignalRow) -> Observed:
    """A demonstration is not held against anything: that there is one is all that a reward may know."""
    value = row.value if isinstance(row.value, bool | int | float | str) else None
    return Observed(row.name, value, row.step, row.is_final, row.source, row.evidence)


def _signal(row: SignalRow, seen: Observed) -> doc.SignalPart:
    """As it was sent; a judge's as it may be used."""
    is_verdict = row.name.startswith(JUDGE_PREFIX)
    return doc.SignalPart(
        id=str(row.id),
        name=row.name,
        value=seen.value if is_verdict else row.value,
        step=row.step,
        source=row.source,
        is_final=row.is_final,
        observed_at=row.observed_at.isoformat(),
        evidence=[doc.EvidencePart(step=row.step, call_id=None, what=what) for what in seen.evidence],
    )


def _derived(lived: Lived, tools: list[dict[str, Any]], *, is_told_over: bool) -> list[doc.SignalPart]:
    """What the run's own turns say: computed here, where bodies are read, and stored nowhere else."""
    turns = [
        TurnFacts(
            index=turn.index,
            parent=turn.parent,
            prompt=turn.prompt,
            news=lived.news(turn),
            answer=lived.nodes[turn.answer].message if turn.answer is not None else None,
            calls=[_call_facts(call) for call in turn.calls],
        )
        for turn in lived.turns
    ]
    return [
        doc.SignalPart(
            id=None,
            name=one.name,
            value=one.value,
            step=one.step,
            source=DERIVED,
            is_final=True,
            observed_at=None,
            evidence=[
                doc.EvidencePart(
                    step=seen.step, call_id=str(seen.call_id) if seen.call_id else None, what=seen.what
                )
                for seen in one.evidence
            ],
        )
        for one in derive(turns, tools or None, is_told_over=is_told_over)
    ]


def _call_facts(call: CallRow) -> CallFacts:
    return CallFacts(
        id=call.id,
        outcome=call.outcome,
        status_code=call.status_code,
        retry_count=call.retry_count,
        started_at=call.started_at,
        ended_at=call.ended_at,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        cost_microusd=call.cost_microusd,
    )


def _is_told_over(lived: Lived, spec: RewardSpec) -> bool:
    return any(row.name == CLOSED or row.name in spec.outcome_signals for row in lived.signals)


def _untrainable(lived: Lived, signals: Sequence[doc.SignalPart]) -> list[doc.Reason]:
    reasons = []
    if any(call.is_opted_out for turn in lived.turns for call in turn.calls):
        reasons.append(doc.Reason.CALLER)
    if any(one.name == TRAINING_OPT_OUT and one.value is True for one in signals):
        reasons.append(doc.Reason.SIGNAL)
    if not any(turn.answer is not None for turn in lived.turns):
        reasons.append(doc.Reason.UNREADABLE)
    return reasons
