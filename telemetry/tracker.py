"""The live stitcher of a gateway process: which run the caller of a request is told, at once and from memory.

The rule is `telemetry.stitching.decide`; the database asks it again with all calls at hand, and may join a call
elsewhere. Other processes tell what they saw through `gateway.run_memory`."""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from kernel.ids import uuid7
from telemetry.stitching import MAX_EQUALS, Earlier, Hashes, Reason, decide, is_one_run


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


def response_anchor(response_id: str) -> bytes:
    """What stands for a response's id where answers are known by digests."""
    return hashlib.sha256(b"response" + response_id.encode("utf-8", "surrogatepass")).digest()


class RunTracker:
    """The live stitcher of one gateway process: bounded memory, forgets the longest unused first.

    It sees this process's calls, and of others what it is told (`heard`); not how attempts ended. So it may miss a
    link that the database finds."""

    def __init__(self, capacity: int = 100_000) -> None:
        self._answers: _Recent[Earlier] = _Recent(capacity)
        self._attempts: _Recent[tuple[int, Earlier]] = _Recent(capacity)
        self._roots: _Recent[Earlier] = _Recent(capacity // 10)
        """By the caller's trace: where conversations began under it."""

    def open(
        self,
        key_id: Hashable,
        hashes: Hashes | None,
        retry_count: int = 0,
        *,
        continues: str = "",
        trace_id: str = "",
    ) -> Guess:
        """A request has arrived that names no run. `hashes` is None when it has no messages."""
        attempts = self._attempts_before(key_id, hashes, retry_count)
        answers = {echo: self._answers.get((key_id, echo)) for echo in hashes.parents} if hashes else {}
        link = decide(
            hashes,
            answers=answers,
            attempts=attempts,
            continued=self._answers.get((key_id, response_anchor(continues))) if continues else None,
            traced=self._traced(key_id, trace_id),
        )
        if link.to is not None:
            link.to.claimed = True
        run_id = link.to.run_id if link.to else uuid7()
        if hashes is not None:
            self._attempts.add((key_id, hashes.prefix), (retry_count, Earlier(run_id)))
        if trace_id and (link.to is None or link.reason is Reason.TRACE):
            self._roots.add((key_id, trace_id), Earlier(run_id))
        ambiguous = link.reason in {Reason.ECHO_AMBIGUOUS, Reason.RETRY} and link.confidence < 1
        return Guess(run_id, ambiguous)

    def answered(self, key_id: Hashable, run_id: UUID, anchor: bytes) -> None:
        """The call's whole answer has been seen: its echo, or its id, may now open a later request."""
        self._answers.add((key_id, anchor), Earlier(run_id))

    def is_at_a_loss(
        self, key_id: Hashable, hashes: Hashes | None, retry_count: int = 0, *, continues: str = ""
    ) -> bool:
        """Whether another process may know better: the request continues an answer that was not seen here, or it has
        assistant messages, and none of them is an answer seen here, or the one that is has been continued already
        and may since have been given to an equal run."""
        if continues:
            return not self._answers.get((key_id, response_anchor(continues)))
        if hashes is None or not hashes.parents or self._attempts_before(key_id, hashes, retry_count):
            return False
        known = next((found for echo in hashes.parents if (found := self._answers.get((key_id, echo)))), ())
        return all(answer.claimed for answer in known)

    def heard(self, key_id: Hashable, run_id: UUID, anchor: bytes) -> None:
        """Another process says that it saw this answer."""
        if all(answer.run_id != run_id for answer in self._answers.get((key_id, anchor))):
            self.answered(key_id, run_id, anchor)

    def _traced(self, key_id: Hashable, trace_id: str) -> Sequence[Earlier]:
        roots = self._roots.get((key_id, trace_id)) if trace_id else ()
        return list(roots)[:1] if is_one_run(len({root.run_id for root in roots}), len(roots)) else ()

    def _attempts_before(self, key_id: Hashable, hashes: Hashes | None, retry_count: int) -> list[Earlier]:
        if hashes is None or not retry_count:
            return []
        return [
            earlier for count, earlier in self._attempts.get((key_id, hashes.prefix)) if count < retry_count
        ]
