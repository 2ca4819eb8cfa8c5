"""Signals that nobody sent: what a run's own turns say about how it went, each with its evidence.

Pure, and linear in what the turns hold. Derived when an episode is built, the only place where bodies are read. A text
can make a signal wrong, never make this raise or stall: telemetry is data. What is not known is left out; a count of
zero says that it was looked for.

Thresholds and phrases are judged on 100 recorded runs of an airline's agent (tests/unit/telemetry/test_derived.py
holds what they find there)."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from telemetry import phrases

MAX_EVIDENCE = 20
"""Pieces of evidence that are kept for the run as a whole; each step keeps its own."""
MAX_WHAT = 200
REPHRASED_OVERLAP = 0.5
"""Two user messages in a row that have this share of all their words in common: said again. Fillers do not count. On
the recorded runs, 6 of 516 pairs reach it; those that agree to something `phrases.AGREEMENTS` leaves out."""
MIN_WORDS = 3
"""So many words each; fewer are shared by chance."""
MAX_PARSED_CHARACTERS = 20_000
"""A longer tool result is not parsed: errors are short."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """One exchange of a turn."""

    id: UUID
    outcome: str
    status_code: int | None
    retry_count: int
    started_at: datetime
    ended_at: datetime | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_microusd: int | None


@dataclass(frozen=True, slots=True)
class TurnFacts:
    """One step of a run."""

    index: int
    parent: int | None
    prompt: Hashable
    """Stands for all that was asked: equal for equal requests, None where the request could not be read."""
    news: Sequence[Mapping[str, Any]]
    """The request's messages since the agent's last answer, in the shape of `telemetry.exchange.request_messages`."""
    answer: Mapping[str, Any] | None
    calls: Sequence[CallFacts]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen, and where."""

    step: int
    call_id: UUID | None
    what: str
    """A short sentence."""


@dataclass(frozen=True, slots=True)
class Derived:
    """One signal, about a step or, with no step, about the run."""

    name: str
    value: bool | float
    step: int | None
    evidence: tuple[Evidence, ...]


COUNTED = (
    "tool_error", "malformed_tool_call", "repeated_call", "user_rephrased", "user_corrected", "abandoned",
    "regenerated",
)  # fmt: skip
"""Counts for the run, and for each step where something was seen. What a user or a tool says about an answer counts for
the step that gave it."""
MEASURED = ("latency_s", "tokens", "cost_usd")
"""Sums for the run, and for each step where it is known; the run's is left out where one of its steps is not known."""

_Seen = tuple[str, Evidence]


def derive(
    turns: Sequence[TurnFacts], tools: Sequence[Mapping[str, Any]] | None, *, is_told_over: bool = False
) -> list[Derived]:
    """What the turns of one run say. `turns` are in the order of their index, `tools` those offered in the last
    request, in chat's shape.

    Args:
        is_told_over: Somebody said that the run is over, or how it went; a run that only fell silent may have been
            abandoned."""
    found: list[Derived] = []
    if any(turn.prompt is not None for turn in turns):
        run = _Run(turns, tools)
        seen = [
            *run.tool_errors(),
            *run.malformed(),
            *run.repeated(),
            *run.said_by_users(),
            *run.regenerated(),
        ]
        found += _counts(seen if is_told_over else [*seen, *run.abandoned()])
    return [*found, *_measures(turns)]


class _Run:
    """The turns of one run, with what several of the signals ask."""

    def __init__(self, turns: Sequence[TurnFacts], tools: Sequence[Mapping[str, Any]] | None) -> None:
        self._turns = {turn.index: turn for turn in turns}
        self._schemas = _schemas(tools) if tools else None
        self._first_equals = self._equal_siblings()
        """Turns that answer what an earlier one of the same parent answered -> that one."""

    def tool_errors(self) -> Iterator[_Seen]:
        told: set[tuple[int | None, str]] = set()
        for turn, answered in self._followers():
            names = {call["id"]: call["function"]["name"] for call in _calls(answered.answer)}
            for message in turn.news:
                if message.get("role") != "tool":
                    continue
                call_id, said = message.get("tool_call_id") or "", _error(_text(message.get("content")))
                if said and (answered.index, call_id) not in told:
                    told.add((answered.index, call_id))
                    name = names.get(call_id, "a tool")
                    yield "tool_error", _evidence(answered, f"{name} answered: {said}")

    def malformed(self) -> Iterator[_Seen]:
        for turn in self._turns.values():
            for call in _calls(turn.answer):
                if problem := _problem(call["function"], self._schemas):
                    yield "malformed_tool_call", _evidence(turn, problem)

    def repeated(self) -> Iterator[_Seen]:
        spans = self._spans()
        earlier: dict[tuple[str, bytes], list[int]] = {}
        for index, turn in self._turns.items():
            for call in _calls(turn.answer):
                function = call["function"]
                same = earlier.setdefault((function["name"], _canonical(function["arguments"])), [])
                begin, end = spans[index]
                first = next((i for i in same if spans[i][0] <= begin and end <= spans[i][1]), None)
                if first is not None:
                    yield "repeated_call", _evidence(turn, f"{function['name']} as in step {first} already")
                if len(same) < MAX_EVIDENCE:
                    same.append(index)

    def said_by_users(self) -> Iterator[_Seen]:
        latest: dict[int, str] = {}
        """What the user said last, up to and with each turn."""
        for index, turn in self._turns.items():
            said = [_text(m.get("content")) for m in turn.news if m.get("role") == "user"]
            before = latest.get(turn.parent, "") if turn.parent is not None else ""
            latest[index] = said[-1] if said else before
            answered = self._turns.get(turn.parent) if turn.parent is not None else None
            if not said or answered is None or index in self._first_equals:
                continue
            if share := _overlap(before, said[-1]):
                what = f"the user said it again, {share:.0%} of the words the same: {said[-1]}"
                yield "user_rephrased", _evidence(answered, what)
            if phrase := next(filter(None, (phrases.found(phrases.CORRECTIONS, text) for text in said)), ""):
                yield "user_corrected", _evidence(answered, f"the user said \u201c{phrase}\u201d: {said[-1]}")

    def regenerated(self) -> Iterator[_Seen]:
        for index, first in self._first_equals.items():
            what = f"step {index} answers the same request again"
            yield "regenerated", _evidence(self._turns[first], what)

    def abandoned(self) -> Iterator[_Seen]:
        last = next(reversed(self._turns.values()), None)
        if last is None or last.answer is None:
            return
        if called := _calls(last.answer):
            names = [call["function"]["name"] for call in called]
            if not any(phrases.ENDINGS.intersection(name.lower().split("_")) for name in names):
                yield "abandoned", _evidence(last, f"the run ends while {', '.join(names)} is awaited")
        elif question := _question(_text(last.answer.get("content"))):
            yield "abandoned", _evidence(last, f"nobody answered: {question}")

    def _followers(self) -> Iterator[tuple[TurnFacts, TurnFacts]]:
        """Each turn that follows one, with the one whose answer its new messages are about."""
        for turn in self._turns.values():
            answered = self._turns.get(turn.parent) if turn.parent is not None else None
            if answered is not None:
                yield turn, answered

    def _equal_siblings(self) -> dict[int, int]:
        siblings: dict[int | None, list[TurnFacts]] = {}
        for turn in self._turns.values():
            siblings.setdefault(turn.parent, []).append(turn)
        equals: dict[int, int] = {}
        for turns in siblings.values():
            if len(turns) > 1:
                first: dict[Hashable, int] = {}
                for turn in turns:
                    if turn.prompt is not None and turn.answer:
                        index = first.setdefault(turn.prompt, turn.index)
                        if index != turn.index:
                            equals[turn.index] = index
        return equals

    def _spans(self) -> dict[int, tuple[int, int]]:
        """When a walk over the tree enters and leaves each turn: one is above another if its span holds the other's."""
        children: dict[int | None, list[int]] = {}
        for turn in self._turns.values():
            parent = turn.parent if turn.parent in self._turns else None
            children.setdefault(parent, []).append(turn.index)
        entered: dict[int, int] = {}
        spans: dict[int, tuple[int, int]] = {}
        stack = list(reversed(children.get(None, [])))
        while stack:
            index = stack.pop()
            if index in entered:
                spans[index] = entered[index], len(entered) + len(spans)
                continue
            entered[index] = len(entered) + len(spans)
            stack += [index, *reversed(children.get(index, []))]
        return spans


def _counts(seen: Iterable[_Seen]) -> Iterator[Derived]:
    by_name: dict[str, list[Evidence]] = {name: [] for name in COUNTED}
    for name, evidence in seen:
        by_name[name].append(evidence)
    for name, pieces in by_name.items():
        yield Derived(name, float(len(pieces)), None, tuple(pieces[:MAX_EVIDENCE]))
        by_step: dict[int, list[Evidence]] = {}
        for piece in pieces:
            by_step.setdefault(piece.step, []).append(piece)
        for step, of_step in sorted(by_step.items()):
            yield Derived(name, float(len(of_step)), step, tuple(of_step[:MAX_EVIDENCE]))


def _measures(turns: Sequence[TurnFacts]) -> Iterator[Derived]:
    for name, measure in zip(MEASURED, (_latency_s, _tokens, _cost_usd), strict=True):
        known = {turn.index: value for turn in turns if (value := measure(turn.calls)) is not None}
        if len(known) == len(turns) > 0:
            yield Derived(name, sum(known.values()), None, ())
        for step, value in known.items():
            yield Derived(name, value, step, ())


def _latency_s(calls: Sequence[CallFacts]) -> float | None:
    """From the first attempt's beginning to the last one's end."""
    ends = [call.ended_at for call in calls if call.ended_at]
    if not ends:
        return None
    return max(0.0, (max(ends) - min(call.started_at for call in calls)).total_seconds())


def _tokens(calls: Sequence[CallFacts]) -> float | None:
    known = [
        (call.prompt_tokens or 0) + (call.completion_tokens or 0)
        for call in calls
        if call.prompt_tokens is not None or call.completion_tokens is not None
    ]
    return float(sum(known)) if known else None


def _cost_usd(calls: Sequence[CallFacts]) -> float | None:
    known = [call.cost_microusd for call in calls if call.cost_microusd is not None]
    return sum(known) / 1_000_000 if known else None


def _evidence(turn: TurnFacts, what: str) -> Evidence:
    plain = " ".join(what[: 2 * MAX_WHAT].split())
    cut = plain if len(plain) <= MAX_WHAT else plain[: MAX_WHAT - 1] + "\u2026"
    return Evidence(turn.index, turn.calls[-1].id if turn.calls else None, cut)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _calls(answer: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    return answer.get("tool_calls") or () if answer else ()


def _error(text: str) -> str:
    """The beginning of a tool's result that is an error; empty when it is none."""
    text = text.strip()
    if text[:1] in "{[":
        return _error_in_json(text) if len(text) <= MAX_PARSED_CHARACTERS else ""
    first = text[:100].split(maxsplit=1)[:1]
    head = first[0].rstrip(":,.") if first else ""
    begins = any(
        f" {' '.join(phrases.words(text[:100]))} ".startswith(f" {word} ") for word in phrases.ERRORS
    )
    return text[:MAX_WHAT] if begins or head.endswith(("Error", "Exception")) else ""


def _error_in_json(text: str) -> str:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    is_error = (
        document.get("error")
        or document.get("is_error") is True
        or document.get("isError") is True
        or document.get("success") is False
        or document.get("ok") is False
        or document.get("status") in ("error", "failed")
    )
    return text[:MAX_WHAT] if is_error else ""


def _schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    functions = (tool.get("function") for tool in tools)
    return {
        function["name"]: function.get("parameters") or {}
        for function in functions
        if isinstance(function, Mapping) and isinstance(function.get("name"), str)
    }


def _problem(function: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]] | None) -> str:
    """What keeps a tool call from being carried out; empty when nothing does. Only what every reader of JSON schema
    agrees on is judged: names, and members that are required."""
    name = function["name"]
    try:
        arguments = orjson.loads(function["arguments"] or "{}")
    except ValueError:
        return f"the arguments of {name} are not JSON: {function['arguments']}"
    if not isinstance(arguments, dict):
        return f"the arguments of {name} are not an object: {function['arguments']}"
    if schemas is None:
        return ""
    if name not in schemas:
        return f"{name} is not among the tools that were offered"
    required = schemas[name].get("required") if isinstance(schemas[name], Mapping) else None
    missing = [member for member in required if member not in arguments] if isinstance(required, list) else []
    return f"{name} was called without {', '.join(map(str, missing))}" if missing else ""


def _canonical(arguments: str) -> bytes:
    try:
        return orjson.dumps(orjson.loads(arguments or "{}"), option=orjson.OPT_SORT_KEYS)
    except (ValueError, TypeError):
        return arguments.encode("utf-8", "replace")


def _overlap(before: str, after: str) -> float:
    """The share of their words that two messages have in common; 0 below the threshold, and where the later one agrees
    to something."""
    said = phrases.words(after)
    if said[:1] and said[0] in phrases.AGREEMENTS:
        return 0.0
    one, other = set(phrases.words(before)) - phrases.FILLERS, set(said) - phrases.FILLERS
    if min(len(one), len(other)) < MIN_WORDS:
        return 0.0
    share = len(one & other) / len(one | other)
    return share if share >= REPHRASED_OVERLAP else 0.0


def _question(text: str) -> str:
    """The question that a text ends with, if it leaves something open."""
    end = text.rstrip(" \t\r\n*_\"')]")[-1000:]
    if not end.endswith("?"):
        return ""
    begin = max(end.rfind(mark, 0, -1) for mark in ".!?\n")
    question = end[begin + 1 :].strip()
    return "" if phrases.found(phrases.COURTESIES, question) else question
