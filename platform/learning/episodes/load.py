"""What a batch of runs holds, read in bulk: steps, calls, messages as a tree, answers, tokens, signals.

A request that repeats what another one of its run begins with, by its rolling hash, is not read again: a run's
messages are read once, however often they were sent. What becomes of it is `learning.episodes.build`'s business."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from telemetry import exchange
from telemetry.bodies import Body, bodies_of
from telemetry.models import Call, CallOutcome, Run, Step
from telemetry.signals import SignalRow, latest_signals
from telemetry.stitching import extend, start
from telemetry.wire.tokens import Sampled

BODIES = 256
"""Calls whose bytes are in memory together."""


class CallRow(NamedTuple):
    """A call, without what an episode has no use for."""

    id: UUID
    step_id: UUID
    dialect: str
    outcome: str
    status_code: int | None
    retry_count: int
    model_requested: str
    model_served: str
    model_version_id: UUID | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_microusd: int | None
    is_opted_out: bool
    prefix_hash: bytes | None
    started_at: datetime
    ended_at: datetime | None


@dataclass(slots=True)
class Turn:
    """One step of a run, with what was said in it."""

    id: UUID
    index: int
    parent: int | None
    reason: str
    confidence: float
    calls: list[CallRow] = field(default_factory=list)
    prompt: int | None = None
    """The last message of its prompt, by its place in the run's messages."""
    answer: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] = field(default_factory=list)
    sampled: Sampled | None = None
    is_read: bool = False
    """Whether the bytes of the answering call are there."""

    @property
    def answering(self) -> CallRow | None:
        """The last of its calls that got a whole answer."""
        return next((call for call in reversed(self.calls) if call.outcome == CallOutcome.COMPLETE), None)


@dataclass(slots=True)
class Node:
    after: int | None
    message: dict[str, Any]


@dataclass(slots=True)
class Lived:
    """A run with everything that its episode is made of."""

    run: Run
    turns: list[Turn] = field(default_factory=list)
    signals: list[SignalRow] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    _by_hash: dict[bytes, int] = field(default_factory=dict)

    def read(self, turn: Turn, call: CallRow, body: Body) -> None:
        """Take what the call's bytes say into the turn."""
        request = body.request
        turn.is_read = True
        prefix = bytes(call.prefix_hash) if call.prefix_hash else None
        if prefix is not None and prefix in self._by_hash:
            turn.prompt = self._by_hash[prefix]
            asked = exchange.asked(request, call.dialect, with_messages=False)
        else:
            asked = exchange.asked(request, call.dialect)
            rolled = start()
            for message in asked.messages:
                rolled = extend(rolled, message)
                turn.prompt = self._node(rolled, turn.prompt, message)
            # The gateway may have hashed what this shape leaves out: both names lead here.
            if prefix is not None and turn.prompt is not None:
                self._by_hash[prefix] = turn.prompt
            prefix = rolled
        turn.sampling, turn.tools = asked.sampling, asked.tools
        if call.outcome != CallOutcome.COMPLETE:
            return
        answer = exchange.answer_message(body.response, call.dialect)
        if answer is not None:
            turn.answer = self._node(extend(prefix, answer), turn.prompt, answer)
            self.nodes[turn.answer].message = answer  # as the model gave it, not as a client sent it back
        if call.model_version_id is not None:
            turn.sampled = exchange.sampled_tokens(body.response, call.dialect)

    def news(self, turn: Turn) -> list[dict[str, Any]]:
        """The messages of the turn's request since the last answer in it, in order."""
        found = []
        place = turn.prompt
        while place is not None and self.nodes[place].message["role"] != "assistant":
            found.append(self.nodes[place].message)
            place = self.nodes[place].after
        return found[::-1]

    def _node(self, rolled: bytes, after: int | None, message: dict[str, Any]) -> int:
        place = self._by_hash.setdefault(rolled, len(self.nodes))
        if place == len(self.nodes):
            self.nodes.append(Node(after, message))
        return place


def lived(project_id: UUID, runs: Sequence[Run], *, now: datetime) -> list[Lived]:
    """The runs with all that was said in them; a fixed number of queries, and one or two more for each BODIES
    calls."""
    found = {run.id: Lived(run) for run in runs}
    steps: dict[UUID, Turn] = {}
    rows = Step.objects.filter(run_id__in=list(found)).order_by("run_id", "index")
    for step_id, run_id, index, parent_id, reason, confidence in rows.values_list(
        "id", "run_id", "index", "parent_id", "reason", "confidence"
    ):
        parent = steps.get(parent_id) if parent_id else None
        turn = Turn(step_id, index, parent.index if parent else None, reason, confidence)
        steps[step_id] = turn
        found[run_id].turns.append(turn)
    calls = Call.objects.filter(step_id__in=list(steps)).order_by("started_at", "id")
    for row in calls.values_list(*CallRow._fields):
        call = CallRow(*row)
        steps[call.step_id].calls.append(call)
    _read(project_id, list(found.values()))
    for run_id, signals in latest_signals(found, now=now).items():
        found[run_id].signals = signals
    return list(found.values())


_Wanted = tuple[Lived, Turn, CallRow]


def _read(project_id: UUID, runs: Sequence[Lived]) -> None:
    wanted = (
        (run, turn, call)
        for run in runs
        for turn in reversed(run.turns)  # the last request holds most of what the earlier ones said
        if (call := turn.answering or (turn.calls[-1] if turn.calls else None))
    )
    for batch in _batches(wanted, BODIES):
        bodies = bodies_of(project_id, [call.id for _, _, call in batch])
        for run, turn, call in batch:
            if call.id in bodies:
                run.read(turn, call, bodies[call.id])


def _batches(items: Iterator[_Wanted], size: int) -> Iterator[list[_Wanted]]:
    while batch := list(islice(items, size)):
        yield batch
