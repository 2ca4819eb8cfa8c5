"""The journals of one experiment, joined: for every request on the wire what its client and the provider saw.

Reads and joins, judges nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import journal
from tests.chaos.answers import Behaviour, Plan
from tests.chaos.exchange import Result


@dataclass(slots=True)
class Served:
    """One answer of the provider."""

    serial: str
    with_usage: bool
    sent_bytes: int = 0
    is_whole: bool = False


@dataclass(slots=True)
class Attempt:
    """One request on the wire, as its client saw it, with the provider's answers to it."""

    plan: Plan
    gateway: int
    began: float
    request_sha256: str
    ended: float = 0.0
    result: Result = Result.LOST
    status: int = 0
    call_id: str = ""
    serial: str = ""
    retry_after: str = ""
    size_bytes: int = 0
    sha256: str = ""
    error_code: str = ""
    served: dict[str, Served] = field(default_factory=dict)
    """By serial number; several when the gateway asked again."""

    @property
    def answer(self) -> Served | None:
        """The provider's answer that the client received, or a part of it."""
        return self.served.get(self.serial)


@dataclass(slots=True)
class Feedback:
    """The tries to give one piece of feedback, which share an idempotency key."""

    nonce: str
    call_id: str
    tries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_accepted(self) -> bool:
        return any(one["result"] == Result.WHOLE and one["status"] == 202 for one in self.tries)


@dataclass(frozen=True, slots=True)
class Window:
    """A fault and its time."""

    fault: str
    target: str
    began: float
    ended: float

    def meets(self, began: float, ended: float) -> bool:
        return self.began <= ended and began <= self.ended


@dataclass(frozen=True)
class Witnesses:
    """Everything that was seen from outside."""

    attempts: dict[str, Attempt]
    """By nonce."""
    feedback: dict[str, Feedback]
    """By idempotency key."""
    windows: Sequence[Window]

    def during(self, fault: str, began: float, ended: float, *, target: str = "") -> bool:
        """Whether the fault happened at some moment between the two."""
        return any(
            window.fault == fault and window.target == target and window.meets(began, ended)
            for window in self.windows
        )


def read(folder: Path) -> Witnesses:
    """The journals of an experiment's folder."""
    attempts, feedback = _clients(folder / "clients.jsonl")
    _join_provider(folder / "provider.jsonl", attempts)
    return Witnesses(attempts, feedback, list(_windows(folder / "faults.jsonl")))


def _clients(path: Path) -> tuple[dict[str, Attempt], dict[str, Feedback]]:
    attempts: dict[str, Attempt] = {}
    feedback: dict[str, Feedback] = {}
    for entry in journal.read(path):
        if "feedback" in entry:
            key = f"signal-{entry['feedback']}"
            if "result" not in entry:
                given = feedback.setdefault(key, Feedback(entry["feedback"], entry["call_id"]))
                given.tries.append({**entry, "began": entry["at"]})
            else:
                feedback[key].tries[-1].update(entry, ended=entry["at"])
        elif "result" not in entry:
            plan = Plan(entry["nonce"], Behaviour(entry["behaviour"]), entry["stream"], entry["usage"])
            attempts[plan.nonce] = Attempt(plan, entry["gateway"], entry["at"], entry["request_sha256"])
        else:
            attempt = attempts[entry["nonce"]]
            attempt.ended, attempt.result = entry["at"], Result(entry["result"])
            for name in ("status", "call_id", "serial", "retry_after", "size_bytes", "sha256", "error_code"):
                setattr(attempt, name, entry[name])
    return attempts, feedback


def _join_provider(path: Path, attempts: dict[str, Attempt]) -> None:
    by_serial: dict[str, Served] = {}
    for entry in journal.read(path):
        if "nonce" in entry:
            served = by_serial[entry["serial"]] = Served(entry["serial"], entry["with_usage"])
            attempts[entry["nonce"]].served[served.serial] = served
        else:
            served = by_serial[entry["serial"]]
            served.sent_bytes, served.is_whole = entry["sent_bytes"], entry["is_whole"]


def _windows(path: Path) -> Iterator[Window]:
    for entry in journal.read(path):
        yield Window(entry["fault"], entry.get("target", ""), entry["began"], entry["ended"])
