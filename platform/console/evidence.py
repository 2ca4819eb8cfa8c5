"""An evaluation's stored evidence -> typed figures for the page. Parsed once, here; the gate in
`learning.evaluation` wrote it.

Decides nothing: the verdict and its sentences are the gate's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from console.drawing import IntervalPicture, interval


@dataclass(frozen=True)
class Arm:
    """How one contender did on the held-out tasks. Success and risk are 0 to 1."""

    success: float
    reward: float
    risk: float
    """Mean harm of a run."""
    model_calls: float


@dataclass(frozen=True)
class Flip:
    """A task on which the two contenders ended differently."""

    task: str
    champion: str
    candidate: str
    """What each did, in words."""


@dataclass(frozen=True)
class Comparison:
    """One figure of both contenders, side by side."""

    name: str
    champion: str
    candidate: str
    change: str
    is_worse: bool


@dataclass(frozen=True)
class Evidence:
    """What the approver reads."""

    champion: Arm
    candidate: Arm
    tasks: int
    difference: float
    """Of success, candidate minus champion."""
    low: float
    high: float
    """The ends of the 95 % interval of the difference."""
    reasons: tuple[str, ...]
    worse: tuple[Flip, ...]
    """Tasks the champion solved and the candidate did not: the first thing to read."""
    better_count: int
    worse_count: int

    @property
    def picture(self) -> IntervalPicture:
        return interval(self.low, self.difference, self.high)

    @property
    def points(self) -> str:
        return f"{self.difference * 100:+.1f}"

    @property
    def ends(self) -> str:
        return f"{self.low * 100:+.1f} to {self.high * 100:+.1f}"

    @property
    def comparisons(self) -> list[Comparison]:
        """Success, reward, risk and cost in one table."""
        a, b = self.champion, self.candidate
        return [
            _row("Success", a.success, b.success, percent=True, more_is_better=True),
            _row("Mean reward", a.reward, b.reward, more_is_better=True),
            _row("Risk per run", a.risk, b.risk),
            _row("Model calls per run", a.model_calls, b.model_calls),
        ]


def read(document: Mapping[str, Any]) -> Evidence | None:
    """The figures of a finished evaluation; None while there are none, or of another schema."""
    if document.get("schema") != 1:
        return None
    champion, candidate = _arm(document["champion"]), _arm(document["candidate"])
    low, high = (float(end) for end in document["ci95"])
    difference = float(document["difference"])
    return Evidence(
        champion=champion,
        candidate=candidate,
        tasks=int(document["tasks"]),
        difference=difference,
        low=low,
        high=high,
        reasons=tuple(str(reason) for reason in document["reasons"]),
        worse=tuple(
            Flip(str(row["task_id"]), _did(row["champion"]), _did(row["candidate"]))
            for row in document["worst"]
        ),
        better_count=int(document["better"]),
        worse_count=int(document["worse"]),
    )


def _arm(document: Mapping[str, Any]) -> Arm:
    return Arm(
        success=float(document["success"]),
        reward=float(document["reward"]),
        risk=float(document["risk"]),
        model_calls=float(document["model_calls"]),
    )


def _did(document: Mapping[str, Any]) -> str:
    kind = str(document["answer_kind"]) or "no answer"
    risk = float(document["risk"])
    harm = f", harm {risk:.2f}" if risk else ""
    return f"{kind}, {document['model_calls']} calls, reward {float(document['reward']):+.2f}{harm}"


def _row(
    name: str, champion: float, candidate: float, *, percent: bool = False, more_is_better: bool = False
) -> Comparison:
    change = candidate - champion
    if percent:
        texts = f"{champion:.1%}", f"{candidate:.1%}", f"{change * 100:+.1f} points"
    else:
        texts = f"{champion:.3f}", f"{candidate:.3f}", f"{change:+.3f}"
    return Comparison(name, *texts, is_worse=change < 0 if more_is_better else change > 0)
