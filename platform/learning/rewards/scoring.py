"""Scoring: a reward spec and an episode's facts -> the reward, and the waterfall that explains it exactly.

Pure and the same for production episodes and the trainer's rollouts. Missing is never zero: a term says itself what
happens while its value is not known. Where facts come from is not decided here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from learning.rewards import own
from learning.rewards.amounts import as_decimal, as_float, nano
from learning.rewards.facts import Facts, Observed
from learning.rewards.spec import RewardSpec
from learning.rewards.terms import SIGN, Kind, Source, Term

PARTS = (*(kind.value for kind in Kind), "shaping", "clip", "veto")
_MAX_READING = 1e12
"""A larger value is a mistake, and as good as not known."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the waterfall."""

    term: str
    part: str
    """One of `PARTS`."""
    step: int | None
    """The step that it belongs to; None for the run as a whole."""
    nano: int
    """Billionths of reward."""
    why: str
    evidence: tuple[str, ...] = ()

    @property
    def amount(self) -> Decimal:
        """What it adds, exactly."""
        return as_decimal(self.nano)


@dataclass(frozen=True)
class StepScore:
    """What one step adds to the reward, by part; signed."""

    cost: float
    risk: float
    step: float
    shaping: float


@dataclass(frozen=True)
class Score:
    """An episode's reward and where it came from."""

    total: float | None
    """The reward; None while it is not known."""
    parts: dict[str, float]
    """`cost`, `risk` and `step`, always; `outcome` once it is known, `shaping` where the spec has it, `clip` and
    `veto` where they changed something. Signed; as decimals they add up to `total` exactly."""
    steps: list[StepScore]
    """One per step, in order."""
    missing: tuple[str, ...]
    """What the spec reads and nobody has said, or may not be used, whatever its term makes of that."""
    not_final: tuple[str, ...]
    """What the spec reads and may still change."""
    veto: str
    """The name of the veto that decided, or ""."""
    waterfall: tuple[Entry, ...]
    """Its amounts add up to `total` exactly."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in an episode's payload under `reward`."""
        return {
            "total": self.total,
            "parts": self.parts,
            "steps": [
                {"cost": s.cost, "risk": s.risk, "step": s.step, "shaping": s.shaping} for s in self.steps
            ],
            "missing": list(self.missing),
            "not_final": list(self.not_final),
            "veto": self.veto,
            "waterfall": waterfall_to_json(self.waterfall),
        }


def waterfall_to_json(waterfall: Sequence[Entry]) -> list[dict[str, Any]]:
    """Entries as JSON; amounts as numbers whose decimal text is exact."""
    return [
        {
            "term": entry.term,
            "part": entry.part,
            "step": entry.step,
            "amount": as_float(entry.nano),
            "why": entry.why,
            "evidence": list(entry.evidence),
        }
        for entry in waterfall
    ]


def waterfall_from_json(rows: Sequence[dict[str, Any]]) -> tuple[Entry, ...]:
    """What `waterfall_to_json` wrote."""
    return tuple(
        Entry(row["term"], row["part"], row["step"], nano(row["amount"]), row["why"], tuple(row["evidence"]))
        for row in rows
    )


def score(spec: RewardSpec, facts: Facts) -> Score:
    """Score one episode.

    Raises:
        OwnTermRefused: an own term's code is not what the spec names, or answers what is no number.
    """
    tally = _Tally(facts)
    for term in spec.terms:
        tally.add(term)
    if spec.shaping is not None:
        tally.parts["shaping"] = 0
        for step, amount in enumerate(spec.shaping.amounts(facts)):
            if amount:
                tally.enter("shaping", "shaping", step, amount, "nearer to the goal or further from it")
    if spec.clip is not None:
        total = sum(tally.parts.values())
        held = min(max(total, nano(spec.clip[0])), nano(spec.clip[1]))
        if held != total:
            bounds = f"rewards lie from {spec.clip[0]:g} to {spec.clip[1]:g}"
            tally.enter("clip", "clip", None, held - total, bounds)
    veto = _veto(spec, tally)
    total = sum(tally.parts.values())
    if not tally.outcome_known and not veto:
        del tally.parts["outcome"]
    return Score(
        total=as_float(total) if tally.is_known else None,
        parts={part: as_float(amount) for part, amount in tally.parts.items()},
        steps=tally.step_scores(),
        missing=tuple(tally.missing),
        not_final=tuple(tally.not_final),
        veto=veto,
        waterfall=tuple(tally.entries),
    )


class _Tally:
    """The sums of one episode while they grow."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.entries: list[Entry] = []
        self.parts: dict[str, int] = {"outcome": 0, "cost": 0, "risk": 0, "step": 0}
        self.missing: dict[str, None] = {}
        self.not_final: dict[str, None] = {}
        self.is_known = True
        self.outcome_known = False

    def enter(
        self, term: str, part: str, step: int | None, amount: int, why: str, evidence: tuple[str, ...] = ()
    ) -> None:
        self.entries.append(Entry(term, part, step, amount, why, evidence))
        self.parts[part] = self.parts.get(part, 0) + amount

    def add(self, term: Term) -> None:
        """One term's entries."""
        before = len(self.entries)
        if term.source is Source.FACT:
            self._facts(term)
        elif term.source is Source.OWN:
            self._own(term)
        elif term.kind is Kind.STEP:
            self._step_signals(term)
        else:
            self._run_signal(term)
        if term.clip is not None:
            sign = SIGN[term.kind]
            given = sign * sum(entry.nano for entry in self.entries[before:])
            held = min(max(given, nano(term.clip[0])), nano(term.clip[1]))
            if held != given and len(self.entries) > before:
                bounds = f"held within {term.clip[0]:g} and {term.clip[1]:g}"
                self.enter(term.name, term.kind.value, None, sign * (held - given), bounds)

    def _facts(self, term: Term) -> None:
        name = term.reads
        for index, step in enumerate(self.facts.steps):
            count = getattr(step, name)
            if count:
                self._value(term, index, count, f"{count} {name}")

    def _run_signal(self, term: Term) -> None:
        row = self.facts.of_run.get(term.signal)
        value = _number(term, row)
        if row is None or value is None:
            self._absent(term, row)
        elif self._may_use(term, row):
            self._value(term, None, value, _saying(row), row.evidence)

    def _step_signals(self, term: Term) -> None:
        """A value of the run alone says that it was looked at, and that no step had any of it."""
        rows = self.facts.of_steps.get(term.signal, [])
        readings = [(row, value) for row in rows if (value := _number(term, row)) is not None]
        of_run = self.facts.of_run.get(term.signal)
        if not readings and _number(term, of_run) is None:
            self._absent(term, rows[0] if rows else of_run)
        for row, value in readings:
            if self._may_use(term, row):
                self._value(term, row.step, value, _saying(row), row.evidence)

    def _own(self, term: Term) -> None:
        answer = own.read(term.reads, term.sha256, dict(term.options), self.facts)
        if answer is None:
            self._absent(term, None)
        elif isinstance(answer, list):
            for step, value in enumerate(answer):
                if value:
                    self._value(term, step, value, f"{term.reads} says {value:g}")
            self.outcome_known |= term.kind is Kind.OUTCOME
        else:
            self._value(term, None, answer, f"{term.reads} says {answer:g}")

    def _may_use(self, term: Term, row: Observed) -> bool:
        if row.is_final:
            return True
        self.not_final[term.label] = None
        if term.waits:
            self.is_known = False
            self.enter(
                term.name, term.kind.value, row.step, 0, f"{_saying(row)}, which may still change: waiting"
            )
        return not term.waits

    def _value(
        self, term: Term, step: int | None, value: float, saying: str, evidence: tuple[str, ...] = ()
    ) -> None:
        amount = SIGN[term.kind] * nano(term.weight * value / term.per)
        self.enter(term.name, term.kind.value, step, amount, f"{saying}, {term.worth}", evidence)
        self.outcome_known |= term.kind is Kind.OUTCOME

    def _absent(self, term: Term, row: Observed | None) -> None:
        self.missing[term.label] = None
        rule = term.missing
        saying = _why_absent(term, row)
        evidence = row.evidence if row is not None else ()
        if rule.rule == "count_as":
            self._value(
                term, None, rule.count_as, f"{saying}: counts as {rule.count_as:g}, {rule.because}", evidence
            )
            return
        self.is_known &= rule.rule == "skip"
        effect = "left out" if rule.rule == "skip" else "no reward"
        self.enter(term.name, term.kind.value, None, 0, f"{saying}: {effect}", evidence)

    def step_scores(self) -> list[StepScore]:
        sums = [{"cost": 0, "risk": 0, "step": 0, "shaping": 0, "outcome": 0} for _ in self.facts.steps]
        for entry in self.entries:
            # A signal may name a step that the run does not have.
            if entry.step is not None and entry.nano and 0 <= entry.step < len(sums):
                sums[entry.step][entry.part] += entry.nano
        return [
            StepScore(as_float(s["cost"]), as_float(s["risk"]), as_float(s["step"]), as_float(s["shaping"]))
            for s in sums
        ]


def _veto(spec: RewardSpec, tally: _Tally) -> str:
    """Let the first veto that fires decide; the name of it, or ""."""
    waiting = False
    for veto in spec.vetoes:
        row = tally.facts.of_run.get(veto.signal)
        if row is None or not veto.fires(row.value):
            continue
        if not row.is_final:
            tally.not_final[veto.signal] = None
            if veto.waits:
                waiting = True
                continue
        amount = nano(veto.reward) - sum(tally.parts.values())
        tally.enter(veto.name, "veto", None, amount, f"{_saying(row)}: {veto.because}", row.evidence)
        tally.is_known = True
        return veto.name
    tally.is_known &= not waiting
    return ""


def _number(term: Term, row: Observed | None) -> float | None:
    """The value as a number; None where there is none that the term can use."""
    if row is None:
        return None
    value = row.value
    if isinstance(value, str):
        return term.values.get(value)
    if not isinstance(value, (bool, int, float)) or not abs(value) <= _MAX_READING:
        return None
    pinned = term.reads.partition("@")[2] if term.source is Source.JUDGE else ""
    return float(value) if not pinned or row.source.endswith(f"@{pinned}") else None


def _why_absent(term: Term, row: Observed | None) -> str:
    if row is None:
        return f"{term.label} is not known"
    if row.value is None:
        return f"{term.label} may not be used"
    if term.source is Source.JUDGE and not row.source.endswith(term.reads.partition("@")[2]):
        return f"{term.label} is by {row.source}, not by {term.reads}"
    if isinstance(row.value, str) and term.values:
        return f"{term.label} is {_shown(row.value)}, which has no number in values"
    return f"{term.label} is no number that can be used"


def _saying(row: Observed) -> str:
    return f"{row.name} is {_shown(row.value)}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return repr(str(value)[:40])
