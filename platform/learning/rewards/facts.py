"""What is known about an episode when it is scored: signals, and the facts of its steps.

The whole input of a score: an episode holds it, so that any later spec can score it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from learning.rewards.steps import StepFacts


@dataclass(frozen=True, slots=True)
class Observed:
    """One signal's value, for the run or for one of its steps."""

    name: str
    value: Any
    """Bool, number, text or an object; None where it may not be used, and `evidence` says why."""
    step: int | None = None
    is_final: bool = True
    """False while the signal's window is open: the value may still change."""
    source: str = "feedback"
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything that a reward may be computed from."""

    signals: Sequence[Observed]
    """At most one for each name and step."""
    steps: Sequence[StepFacts]

    @classmethod
    def of(cls, signals: Mapping[str, Any], steps: Sequence[StepFacts]) -> Facts:
        """From values of the run as a whole, as an environment tells them; None means not known."""
        return cls([Observed(name, value) for name, value in signals.items()], steps)

    @cached_property
    def of_run(self) -> dict[str, Observed]:
        """The signals about the run as a whole, by name."""
        return {row.name: row for row in self.signals if row.step is None}

    @cached_property
    def of_steps(self) -> dict[str, list[Observed]]:
        """The signals about single steps, by name, in the order of the steps."""
        found: dict[str, list[Observed]] = {}
        for row in self.signals:
            if row.step is not None:
                found.setdefault(row.name, []).append(row)
        for rows in found.values():
            rows.sort(key=lambda row: row.step or 0)
        return found
