"""Which run does a call belong to? What its messages say, and the rule that links it to earlier calls.

No database, no IO. The gateway asks live (`telemetry.tracker`), `telemetry.runs` asks again with all calls at
hand; both go through `decide`, and the database's word is final.

A request that repeats our answer to an earlier call, after exactly the messages that this call had,
continues that call. An equal opening prompt proves nothing (it joined strangers in 54 of 97 recorded
pairs); a repeated answer made no such error. Where the history was cut, summed up or edited, single answers of
ours that are still in it tell the run, if they are too particular to be said twice. Calls that are equal word for
word so far cannot be told apart: any consistent choice is right, and the confidence says so."""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson

MAX_PARENTS = 16
"""How many of a request's assistant messages are looked up: the newest answers, in case the last ones were
edited."""
MAX_REPEATS = 8
"""How many of a request's assistant messages are looked up one by one, the newest first, where no echo is found."""
MAX_RESULTS = 8
"""How many tool results, behind a request's last assistant message, may be the last words of sub-agents."""
MAX_EQUALS = 32
"""How many earlier calls that are equal word for word stay candidates: the newest ones."""
MIN_PROOF_CHARACTERS = 60
"""A text that is shorter, and has no tool call beside it, may be said in any run: it proves nothing."""
MIN_MINTED_CHARACTERS = 16
MIN_MINTED_LETTERS = 8
"""An id of a tool call that is shorter, or has fewer different letters behind its prefix, may have been counted rather
than minted: `call_0`."""
OLDER_ECHO_CONFIDENCE = 0.8
"""The request repeats an answer of ours, but its last assistant message is not ours."""
REPEAT_CONFIDENCE = 0.7
"""The request holds an answer of ours, behind a history that is not the one it was given to."""
TRACE_CONFIDENCE = 0.6
"""Nothing but the caller's trace says that the call belongs here."""
MAX_TRACE_ROOTS = 16
"""A trace under which more conversations began than this is no run: a batch or a worker's life."""
ORPHAN_CONFIDENCE = 0.5
"""The request has assistant messages, none of them ours: an opening with examples, or history that was
rewritten."""

_EMPTY = hashlib.sha256(b"ratchet.messages.v1").digest()
_MINTED, _TEXT, _COMMON = b"m", b"t", b"c"
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


@dataclass(frozen=True)
class Hashes:
    """What a request's messages say about where it comes from; 32-byte SHA-256 digests."""

    prefix: bytes
    """Rolling hash over all messages: equal for word-for-word equal requests."""
    parents: tuple[bytes, ...]
    """Rolling hashes after each assistant message, longest first, at most MAX_PARENTS: echoes of possible
    parents."""
    repeats: tuple[bytes, ...] = ()
    """What the assistant messages say one by one (`said`), newest first."""
    results: tuple[bytes, ...] = ()
    """What the tools answered since the last assistant message (`said`), where that is particular: it may be what a
    sub-agent said."""


def roll(messages: Sequence[Mapping[str, Any]]) -> Hashes:
    """Hash a request's messages (chat form: role, content, tool_calls, ...). Never raises on odd content."""
    current = _EMPTY
    parents: deque[bytes] = deque(maxlen=MAX_PARENTS)
    answers: deque[Mapping[str, Any]] = deque(maxlen=MAX_REPEATS)
    results: list[Mapping[str, Any]] = []
    for message in messages:
        current = extend(current, message)
        role = message.get("role")
        if role == "assistant":
            parents.appendleft(current)
            answers.appendleft(message)
            results = []
        elif role == "tool":
            results.append(message)
    return Hashes(
        prefix=current,
        parents=tuple(parents),
        repeats=tuple(map(said, answers)),
        results=tuple(digest for digest in map(said, results[:MAX_RESULTS]) if digest.startswith(_TEXT)),
    )


def said(message: Mapping[str, Any]) -> bytes:
    """What a message says, whatever stood before it and whoever says it, in 32 bytes. The first one tells how much it
    proves: ids of tool calls that the provider mints are new each time; a long text is seldom said twice; a short one,
    and ids that are counted, may stand in any run (`is_particular`)."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        ids = [call.get("id") if isinstance(call, Mapping) else None for call in calls]
        return (_MINTED if all(map(_is_minted, ids)) else _COMMON) + _digest(_canonical_json(ids))
    content, refusals = _content(message.get("content"))
    if not isinstance(content, str):
        return _COMMON + _digest(_canonical_json([content, refusals]))
    content = content.strip()
    kind = _TEXT if len(content) >= MIN_PROOF_CHARACTERS else _COMMON
    return kind + _digest(content.encode("utf-8", "surrogatepass"))


def is_particular(said_hash: bytes) -> bool:
    """Whether what it stands for is seldom said twice."""
    return not said_hash.startswith(_COMMON)


def _is_minted(call_id: object) -> bool:
    """Of 16 characters and more, and not counted, as `call_0` and `functions.look_up:0` are."""
    if not isinstance(call_id, str) or len(call_id) < MIN_MINTED_CHARACTERS:
        return False
    return len(set(call_id.rpartition("_")[2])) >= MIN_MINTED_LETTERS


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[1:]


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
    CONTINUED = "continued"  # names the response that it continues
    OPENING = "opening"  # no assistant message yet
    ECHO = "echo"  # repeats one answer of ours
    ECHO_AMBIGUOUS = "echo_ambiguous"  # repeats an answer that several runs got, after equal messages
    REPEAT = "repeat"  # holds an answer of ours; the history before it was cut, summed up or edited
    RETRY = "retry"  # the SDK's own further attempt at the same request
    TRACE = "trace"  # nothing but the caller's trace says so
    SINGLE = "single"  # no messages at all, e.g. embeddings
    ORPHAN = "orphan"  # it has a past, and none of it is ours


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
    continued: Sequence[Earlier] | None = None,
    traced: Sequence[Earlier] = (),
    named: bool = False,
    told: UUID | None = None,
) -> Link:
    """Link one call to the earlier calls of the same API key.

    Args:
        hashes: Of the call's messages; None when it has none.
        answers: Earlier calls by echo hash and by what they said, each list in the order in which the answers ended.
        attempts: For an SDK retry: calls with the same prefix and a lower retry count, oldest first.
        continued: The calls that answered with the response that this one names as its past; None when it names none.
        traced: A call of the run that the caller's trace names (`is_one_run`); none where it names no run.
        named: The caller named the run; all of these then hold calls of that run only.
        told: The run that the gateway told the caller; it settles the choice among equals, so that told and
            kept agree."""
    if attempts:
        rank = min((attempt.claimed, attempt.answered) for attempt in attempts)
        best = [attempt for attempt in attempts if (attempt.claimed, attempt.answered) == rank]
        to = next((attempt for attempt in best if attempt.run_id == told), best[-1])
        return Link(to, 1 / len({attempt.run_id for attempt in best}), Reason.RETRY)
    if continued:
        runs = len({answer.run_id for answer in continued})
        to = _of_equals(continued, told)
        return Link(to, 1.0, Reason.NAMED) if named else Link(to, 1 / runs, Reason.CONTINUED)
    parents = hashes.parents if hashes else ()
    found = next((echo for echo in parents if answers.get(echo)), None)
    if found is not None:
        equals = answers[found]
        to = _of_equals(equals, told)
        runs = len({answer.run_id for answer in equals})
        if named:
            return Link(to, 1.0, Reason.NAMED)
        confidence = (1.0 if found == parents[0] else OLDER_ECHO_CONFIDENCE) / runs
        return Link(to, confidence, Reason.ECHO if runs == 1 else Reason.ECHO_AMBIGUOUS)
    repeat = _sole_repeat(hashes, answers)
    if named:
        return Link(repeat, 1.0, Reason.NAMED)
    if repeat is not None:
        return Link(repeat, REPEAT_CONFIDENCE, Reason.REPEAT)
    if traced:
        return Link(traced[-1], TRACE_CONFIDENCE, Reason.TRACE)
    if hashes is None:
        return Link(None, 1.0, Reason.SINGLE)
    has_past = bool(parents) or continued is not None
    return Link(None, ORPHAN_CONFIDENCE, Reason.ORPHAN) if has_past else Link(None, 1.0, Reason.OPENING)


def is_one_run(runs: int, roots: int) -> bool:
    """Whether a trace names a run: all that began under it is of one, and no more began than one execution begins."""
    return runs == 1 and roots < MAX_TRACE_ROOTS


def _of_equals(equals: Sequence[Earlier], told: UUID | None) -> Earlier:
    unclaimed = [answer for answer in equals if not answer.claimed]
    return next((answer for answer in equals if answer.run_id == told), (unclaimed or equals)[0])


def _sole_repeat(hashes: Hashes | None, answers: Mapping[bytes, Sequence[Earlier]]) -> Earlier | None:
    """The answer that the request continues, where its past is not the one that the answer was given to.

    That the run is the right one is proved by minted ids of it alone, or by two texts of it alone. That it goes on
    here, and was not pasted into another opening as an example, is shown by the request's last assistant message: it is
    an answer of the run that nobody has continued yet."""
    repeats = hashes.repeats if hashes else ()
    run_id = proven_run({repeat: answers.get(repeat, ()) for repeat in repeats})
    last = answers.get(repeats[0], ()) if run_id else ()
    return next((answer for answer in reversed(last) if answer.run_id == run_id and not answer.claimed), None)


def proven_run(said_before: Mapping[bytes, Sequence[Earlier]]) -> UUID | None:
    """The one run that these repeated answers, newest first, can only come from; None when they prove nothing."""
    texts: set[UUID] = set()
    for repeat, equals in said_before.items():
        runs = {answer.run_id for answer in equals} if is_particular(repeat) else set()
        if len(runs) != 1:
            continue
        run_id = runs.pop()
        if repeat.startswith(_MINTED) or run_id in texts:
            return run_id
        texts.add(run_id)
    return None
