"""Traffic whose runs are known: recorded ones, and many of them going on at the same time.

A scenario is a list of rounds; the calls of a round go out together, the next round when all are answered. What is
made up is in `stitching_hard`; nothing here is placed or judged."""

import gzip
import heapq
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demo import recorded
from gateway.dialects.table import BY_PATH
from telemetry.stitching import extend, roll

OPENAI = Path(__file__).parents[1] / "golden" / "openai_recorded.jsonl.gz"
MESSAGE_DIALECTS = frozenset({"chat", "responses"})
"""The dialects whose calls are turns of a conversation."""

Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A call as a gateway reads it, and the run that it is of in truth."""

    kind: str
    run: str
    messages: tuple[Message, ...]
    answer: Message | None
    """None: the call failed."""
    dialect: str = "chat"
    retry_count: int = 0
    name: str = ""
    continues: str = ""
    response_id: str = ""
    trace_id: str = ""
    parent: str = ""
    """The run whose tool call began this one."""


Scenario = Sequence[Sequence[Exchange]]


@dataclass(frozen=True)
class Timed:
    """When a call began and ended, in seconds."""

    exchange: Exchange
    started_at: float
    ended_at: float


def interleave(scenarios: Sequence[Scenario], *, width: int, seed: int) -> list[Timed]:
    """All scenarios, `width` at a time, in the order in which the calls begin."""
    rng = random.Random(seed)
    free = [rng.random() for _ in range(width)]
    heapq.heapify(free)
    timed: list[Timed] = []
    for scenario in rng.sample(scenarios, len(scenarios)):
        at = heapq.heappop(free)
        for calls in scenario:
            starts = [at + rng.uniform(0.05, 1) for _ in calls]
            ends = [start + rng.uniform(0.2, 4) for start in starts]
            timed += map(Timed, calls, starts, ends)
            at = max(ends)
        heapq.heappush(free, at)
    return sorted(timed, key=lambda call: call.started_at)


def alike(traffic: Iterable[Timed]) -> set[str]:
    """The runs that have a call and its answer in common with another, word for word: whose turn comes next after it,
    nobody can know."""
    runs: defaultdict[bytes, set[str]] = defaultdict(set)
    for exchange in (timed.exchange for timed in traffic):
        if exchange.answer and not exchange.continues and not exchange.name:
            runs[extend(roll(exchange.messages).prefix, exchange.answer)].add(exchange.run)
    return {run for equals in runs.values() if len(equals) > 1 for run in equals}


def airline() -> list[Scenario]:
    """The recorded runs of the airline's agent."""
    return [
        [
            [Exchange(kind="airline", run=str(number), messages=tuple(messages[:index]), answer=message)]
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        for number, messages in enumerate(run["traj"] for run in recorded.load_runs())
    ]


def openai() -> list[Scenario]:
    """The recorded exchanges with OpenAI that are turns of a conversation, by the test that made them.

    A call that has no past at all begins a conversation of its own: tests make several, one after the other. The
    recording has one made-up id for all stored conversations; it becomes one for each test."""
    scenarios: dict[str, list[list[Exchange]]] = {}
    with gzip.open(OPENAI, "rt") as lines:
        for source, turn in _turns(map(json.loads, lines)):
            rounds = scenarios.setdefault(source, [])
            number = sum(map(_is_opening, (call for calls in rounds for call in calls))) + _is_opening(turn)
            name = f"{source} {turn.name}" if turn.name else ""
            rounds.append([replace(turn, run=f"{source} {number}", name=name)])
    return list(scenarios.values())


def _is_opening(turn: Exchange) -> bool:
    has_past = any(message["role"] == "assistant" for message in turn.messages)
    return not (has_past or turn.continues or turn.name)


def _turns(exchanges: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Exchange]]:
    for exchange in exchanges:
        dialect = BY_PATH.get(exchange["path"].removeprefix("/v1"))
        if exchange["method"] != "POST" or dialect is None or dialect.name not in MESSAGE_DIALECTS:
            continue
        asked = dialect.parse_request(json.loads(exchange["request_body"]))
        is_stream = exchange["response_kind"] == "sse"
        answer = dialect.parse_answer(exchange["response_body"].encode(), is_stream=is_stream)
        source = exchange["source"].partition("#")[0]
        yield (
            source,
            Exchange(
                kind="openai",
                run=source,
                messages=asked.messages,
                answer=answer.message if exchange["status"] < 400 else None,
                dialect=dialect.name,
                name=asked.metadata_run_id,
                continues=asked.previous_response_id,
                response_id=answer.response_id,
            ),
        )
