"""Which run does a call belong to? Rolling hashes of its messages, and the rule that links it to earlier
calls.

No database, no IO. The gateway asks live (`RunTracker`), `telemetry.runs` asks again with all calls at hand;
both go through `decide`, and the database's word is final.

A request that repeats our answer to an earlier call, after exactly the messages that this call had,
continues that call. An equal opening prompt proves nothing (it joined strangers in 54 of 97 recorded
pairs); a repeated answer made no such error. Calls that are equal word for word so far cannot be told
apart: any consistent choice is right, and the confidence says so."""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar
from uuid import UUID

import orjson

from kernel.ids import uuid7

MAX_PARENTS = 16
"""How many of a request's assistant messages are looked up: the newest answers, in case the last ones were
edited."""
MAX_EQUALS = 32
"""How many earlier calls that are equal word for word stay candidates: the newest ones."""
OLDER_ECHO_CONFIDENCE = 0.8
"""The request repeats an answer of ours, but its last assistant message is not ours."""
ORPHAN_CONFIDENCE = 0.5
"""The request has assistant messages, none of them ours: an opening with examples, or history that was
rewritten."""

_EMPTY = hashlib.sha256(b"ratchet.messages.v1").digest()
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


@dataclass(frozen=True)
class Hashes:
    """What a request's messages say about where it comes from; 32-byte SHA-256 digests."""

    prefix: bytes
    """Rolling hash over all messages: equal for word-for-word equal requests."""
    parents: tuple[bytes, ...]
    """Rolling hashes after each assistant message, longest first, at most MAX_PARENTS: echoes of possible
    parents."""


def roll(messages: Sequence[Mapping[str, Any]]) -> Hashes:
    """Hash a request's messages (chat form: role, content, tool_calls, ...). Never raises on odd content."""
    current = _EMPTY
    parents: deque[bytes] = deque(maxlen=MAX_PARENTS)
    for message in messages:
        current = extend(current, message)
        if message.get("role") == "assistant":
            parents.appendleft(current)
    return Hashes(prefix=current, parents=tuple(parents))


def start() -> bytes:
    """The rolling hash of no message yet."""
    return _EMPTY


def extend(prefix: bytes, message: Mapping[str, Any]) -> bytes:
    """The rolling hash after one more message. Of a request's prefix and its answer: the echo hash."""
    return hashlib.sha256(prefix + _canonical_message(message)).digest()


def _canonical_message(message: Mapping[str, Any]) -> bytes:
    """The message without what clients change when they send it back: null and absent, one text or text
    parts, the spacing and key order of arguments, fields that only answers carry."""
    content, refusals = _content(message.get("content"))
    calls = message.get("tool_calls")
    function_call = message.get("function_call")  # the deprecated form of a single tool call
    if not calls and function_call:
        calls = [{"function": function_call}]
    fields = {
        "role": message.get("role"),
        "content": content,
        "refusal": message.get("refusal") or "".join(refusals),
        "tool_calls": [_tool_call(call) for call in calls] if isinstance(calls, list) else calls,
        "tool_call_id": message.get("tool_call_id"),
        "name": message.get("name"),
    }
    return _canonical_json({name: value for name, value in fields.items() if value})


def _content(content: Any) -> tuple[Any, list[str]]:
    """Text, or a list in which other parts stand as their digests; and the refusals among the parts."""
    if not isinstance(content, list):
        return content, []
    pieces: list[Any] = []
    refusals: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            if pieces and isinstance(pieces[-1], str):
                pieces[-1] += part["text"]
            else:
                pieces.append(part["text"])
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            refusals.append(part["refusal"])
        else:
            pieces.append({"sha256": hashlib.sha256(_canonical_json(part)).hexdigest()})
    if len(pieces) == 1 and isinstance(pieces[0], str):
        return pieces[0], refusals
    return pieces, refusals


def _tool_call(call: Any) -> list[Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return [call]
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except ValueError:
            arguments = {"raw": arguments}
    return [call.get("id"), function.get("name"), arguments]


def _canonical_json(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # lone surrogates, integers beyond 64 bits, 254 levels: rare, and only equality matters
        return repr(value).encode("utf-8", "backslashreplace")


class Reason(StrEnum):
    """Why a call stands where it stands."""

    NAMED = "named"  # the caller said so
    OPENING = "opening"  # no assistant message yet
    ECHO = "echo"  # repeats one answer of ours
    ECHO_AMBIGUOUS = "echo_ambiguous"  # repeats an answer that several runs got, after equal messages
    RETRY = "retry"  # the SDK's own further attempt at the same request
    SINGLE = "single"  # no messages at all, e.g. embeddings
    ORPHAN = "orphan"  # assistant messages, none of them ours


@dataclass(eq=False)
class Earlier:
    """An earlier call as a candidate: for its answer to be continued, or for its request to be tried
    again."""

    run_id: UUID
    step_id: UUID | None = None
    claimed: bool = False
    """True once a later call continued (or retried) it."""
    answered: bool = False
    """For retries: it got a whole answer, so that a further attempt is less likely to be its own."""


@dataclass(frozen=True)
class Link:
    """Where a call stands. `to` is the call continued or retried; None starts a new run (or joins the named
    one)."""

    to: Earlier | None
    confidence: float
    """0 to 1; 1/k where k runs are equal word for word."""
    reason: Reason


def decide(
    hashes: Hashes | None,
    *,
    answers: Mapping[bytes, Sequence[Earlier]],
    attempts: Sequence[Earlier] = (),
    named: bool = False,
    told: UUID | None = None,
) -> Link:
    """Link one call to the earlier calls of the same API key.

    Args:
        hashes: Of the call's messages; None when it has none.
        answers: Earlier calls by echo hash, each list in the order in which the answers ended.
        attempts: For an SDK retry: calls with the same prefix and a lower retry count, oldest first.
        named: The caller named the run; `answers` and `attempts` then hold calls of that run only.
        told: The run that the gateway told the caller; it settles the choice among equals, so that told and
            kept agree."""
    if attempts:
        rank = min((attempt.claimed, attempt.answered) for attempt in attempts)
        best = [attempt for attempt in attempts if (attempt.claimed, attempt.answered) == rank]
        to = next((attempt for attempt in best if attempt.run_id == told), best[-1])
        return Link(to, 1 / len({attempt.run_id for attempt in best}), Reason.RETRY)
    parents = hashes.parents if hashes else ()
    found = next((echo for echo in parents if answers.get(echo)), None)
    if found is None:
        if named:
            return Link(None, 1.0, Reason.NAMED)
        if hashes is None:
            return Link(None, 1.0, Reason.SINGLE)
        return Link(None, ORPHAN_CONFIDENCE, Reason.ORPHAN) if parents else Link(None, 1.0, Reason.OPENING)
    equals = answers[found]
    unclaimed = [answer for answer in equals if not answer.claimed]
    to = next((answer for answer in equals if answer.run_id == told), (unclaimed or equals)[0])
    runs = len({answer.run_id for answer in equals})
    if named:
        return Link(to, 1.0, Reason.NAMED)
    confidence = (1.0 if found == parents[0] else OLDER_ECHO_CONFIDENCE) / runs
    return Link(to, confidence, Reason.ECHO if runs == 1 else Reason.ECHO_AMBIGUOUS)


@dataclass(frozen=True)
class Guess:
    """What the gateway can tell a caller at once. The database may join the call elsewhere; a told id stays
    resolvable."""

    run_id: UUID
    """The run continued, or a fresh id for a new run."""
    ambiguous: bool
    """True when several runs are equal word for word so far."""


V = TypeVar("V")


class _Recent(Generic[V]):
    """A dictionary of lists that forgets: at most `capacity` keys, at most MAX_EQUALS values each."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lists: OrderedDict[Hashable, deque[V]] = OrderedDict()

    def get(self, key: Hashable) -> Sequence[V]:
        found = self._lists.get(key)
        if found is None:
            return ()
        self._lists.move_to_end(key)
        return found

    def add(self, key: Hashable, value: V) -> None:
        self._lists.setdefault(key, deque(maxlen=MAX_EQUALS)).append(value)
        self._lists.move_to_end(key)
        if len(self._lists) > self._capacity:
            self._lists.popitem(last=False)


class RunTracker:
    """The live stitcher of one gateway process: bounded memory, forgets the longest unused first.

    It sees this process's calls, and of others what it is told (`heard`); not how attempts ended. So it may miss a
    link that the database finds."""

    def __init__(self, capacity: int = 100_000) -> None:
        self._answers: _Recent[Earlier] = _Recent(capacity)
        self._attempts: _Recent[tuple[int, Earlier]] = _Recent(capacity)

    def open(self, key_id: Hashable, hashes: Hashes | None, retry_count: int = 0) -> Guess:
        """A request has arrived that names no run. `hashes` is None when it has no messages."""
        if hashes is None:
            return Guess(uuid7(), ambiguous=False)
        attempts = self._attempts_before(key_id, hashes, retry_count)
        answers = {echo: self._answers.get((key_id, echo)) for echo in hashes.parents}
        link = decide(hashes, answers=answers, attempts=attempts)
        if link.to is not None:
            link.to.claimed = True
        run_id = link.to.run_id if link.to else uuid7()
        self._attempts.add((key_id, hashes.prefix), (retry_count, Earlier(run_id)))
        ambiguous = link.reason in {Reason.ECHO_AMBIGUOUS, Reason.RETRY} and link.confidence < 1
        return Guess(run_id, ambiguous)

    def answered(self, key_id: Hashable, run_id: UUID, echo_hash: bytes) -> None:
        """The call's whole answer has been seen: its echo may now open a later request."""
        self._answers.add((key_id, echo_hash), Earlier(run_id))

    def is_at_a_loss(self, key_id: Hashable, hashes: Hashes, retry_count: int = 0) -> bool:
        """Whether another process may know better: the request has assistant messages, and none of them is an answer
        seen here, or the one that is has been continued already and may since have been given to an equal run."""
        if not hashes.parents or self._attempts_before(key_id, hashes, retry_count):
            return False
        known = next((found for echo in hashes.parents if (found := self._answers.get((key_id, echo)))), ())
        return all(answer.claimed for answer in known)

    def heard(self, key_id: Hashable, run_id: UUID, echo_hash: bytes) -> None:
        """Another process says that it saw this answer."""
        if all(answer.run_id != run_id for answer in self._answers.get((key_id, echo_hash))):
            self.answered(key_id, run_id, echo_hash)

    def _attempts_before(self, key_id: Hashable, hashes: Hashes, retry_count: int) -> list[Earlier]:
        return [
            earlier for count, earlier in self._attempts.get((key_id, hashes.prefix)) if count < retry_count
        ]
