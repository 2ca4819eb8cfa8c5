"""Potential-based shaping (Ng, Harada and Russell, 1999): credit for getting nearer, which changes no order of runs.

A potential says how good the state before each step is. Going on from it pays discount * potential(next) -
potential(this), and the end of the run has potential 0, so the sum is the same for every run of at least one step:
minus the potential of the start. Amounts are counted from the run's start, discounted to there, because that is where
they cancel out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from learning.rewards.amounts import BILLION, nano
from learning.rewards.facts import Facts
from learning.rewards.fields import InvalidRewardSpec, bounds, choice, known, mapping, number, required, text
from learning.rewards.terms import STEP_FACTS


@dataclass(frozen=True, kw_only=True)
class PotentialTerm:
    """What makes a state better: a fact counted so far, or the latest value of a signal about steps so far."""

    name: str
    fact: str = ""
    signal: str = ""
    weight: float
    start: float = 0.0
    """What the signal counts as before its first value."""
    clip: tuple[float, float] | None = None
    """Bounds of what the term adds to the potential."""

    @classmethod
    def parse(cls, name: str, document: object, path: str) -> PotentialTerm:
        """One entry of `shaping.potential`. Raises InvalidRewardSpec."""
        term = mapping(document, path)
        if ("fact" in term) == ("signal" in term):
            raise InvalidRewardSpec(f"{path}: must read either a fact or a signal about steps")
        known(
            term,
            path,
            {"fact", "weight", "clip"} if "fact" in term else {"signal", "weight", "clip", "start"},
        )
        return cls(
            name=name,
            fact=choice(term["fact"], f"{path}.fact", STEP_FACTS) if "fact" in term else "",
            signal=text(term["signal"], f"{path}.signal", longest=100) if "signal" in term else "",
            weight=number(required(term, "weight", path, "what one is worth"), f"{path}.weight"),
            start=number(term.get("start", 0.0), f"{path}.start"),
            clip=bounds(term["clip"], f"{path}.clip") if term.get("clip") is not None else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The document again."""
        document: dict[str, Any] = {"weight": self.weight}
        document |= {"fact": self.fact} if self.fact else {"signal": self.signal, "start": self.start}
        return document | ({"clip": list(self.clip)} if self.clip is not None else {})

    def states(self, facts: Facts) -> list[float]:
        """What the term adds before each step, and after the last."""
        if self.fact:
            readings = [0.0]
            for step in facts.steps:
                readings.append(readings[-1] + float(getattr(step, self.fact)))
        else:
            readings = _latest(facts, self.signal, self.start)
        return [self._amount(reading) for reading in readings]

    def _amount(self, reading: float) -> float:
        amount = self.weight * reading
        return min(max(amount, self.clip[0]), self.clip[1]) if self.clip else amount


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """A potential, and the discount under which it cancels out."""

    potential: tuple[PotentialTerm, ...]
    discount: float = 1.0

    @classmethod
    def parse(cls, document: object, path: str) -> Shaping:
        """The spec's section `shaping`. Raises InvalidRewardSpec."""
        section = mapping(document, path)
        known(section, path, {"potential", "discount"})
        terms = mapping(
            required(section, "potential", path, "what makes a state better"), f"{path}.potential"
        )
        return cls(
            potential=tuple(
                PotentialTerm.parse(name, terms[name], f"{path}.potential.{name}") for name in sorted(terms)
            ),
            discount=number(section.get("discount", 1.0), f"{path}.discount", least=0.0, most=1.0),
        )

    def to_json(self) -> dict[str, Any]:
        """The document again."""
        return {
            "discount": self.discount,
            "potential": {term.name: term.to_json() for term in self.potential},
        }

    def potentials(self, facts: Facts) -> list[int]:
        """Billionths: the discounted potential before each step, and 0 after the last, where the run is over."""
        if not facts.steps:
            return [0]
        columns = [term.states(facts) for term in self.potential]
        before = [
            nano(self.discount**step * sum(column[step] for column in columns))
            for step in range(len(facts.steps))
        ]
        return [*before, 0]

    def amounts(self, facts: Facts) -> list[int]:
        """Billionths that each step adds."""
        potentials = self.potentials(facts)
        return [after - before for before, after in pairwise(potentials)]


@dataclass(frozen=True)
class Proof:
    """What shaping did to one episode, and what it may have done."""

    added: Fraction
    """The sum of the amounts that the episode's steps were given."""
    ends: Fraction
    """The potential of the end, which is 0, minus the potential of the start."""
    strayed: tuple[int, ...]
    """Steps whose amount is not discount * potential(next) - potential(this)."""

    @property
    def holds(self) -> bool:
        """Whether returns changed by the potential's ends and by nothing else."""
        return self.added == self.ends and not self.strayed


def prove(shaping: Shaping, facts: Facts, amounts: Sequence[int]) -> Proof:
    """Check the shaping of one episode in exact arithmetic.

    Args:
        shaping: As the spec has it.
        facts: The episode's.
        amounts: Billionths that the scored episode says each step was given."""
    potentials = shaping.potentials(facts)
    steps = len(potentials) - 1
    expected = [potentials[step + 1] - potentials[step] for step in range(steps)]
    strayed = tuple(
        step
        for step in range(max(steps, len(amounts)))
        if step >= steps or step >= len(amounts) or amounts[step] != expected[step]
    )
    added = sum((Fraction(amount, BILLION) for amount in amounts), Fraction(0))
    return Proof(added, Fraction(potentials[-1] - potentials[0], BILLION), strayed)


def _latest(facts: Facts, signal: str, start: float) -> list[float]:
    values: Mapping[int, Any] = {row.step or 0: row.value for row in facts.of_steps.get(signal, ())}
    readings = [start]
    for step in range(len(facts.steps)):
        value = values.get(step)
        is_number = isinstance(value, (bool, int, float)) and abs(value) <= 1e12
        readings.append(float(value) if is_number and value is not None else readings[-1])
    return readings
