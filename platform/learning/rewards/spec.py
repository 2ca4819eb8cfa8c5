"""Reward specs: immutable documents that say what a good episode is, and the pure function that scores one.

reward = outcome - cost - risk - step penalties. The same spec scores production episodes and the trainer's
rollouts. A missing outcome gives no reward at all, never zero. Where signals come from, and which spec is in
force, is not decided here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import rfc8785
import yaml

from learning.rewards.steps import StepFacts

SCHEMA = 1


class InvalidRewardSpec(ValueError):
    """A document that is no reward spec; the message starts with the path of the field."""


@dataclass(frozen=True, kw_only=True)
class OutcomeTerm:
    """What success is worth."""

    signal: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CostTerm:
    """What the way there costs, in reward; all are amounts to subtract and not below 0."""

    per_model_call: float = 0.0
    per_tool_call: float = 0.0
    per_1k_tokens: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RiskTerm:
    """What harm costs: `weight` times the signal, subtracted."""

    signal: str
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepTerm:
    """Penalties that belong to one step, subtracted there."""

    malformed: float = 0.0
    repeated: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """A validated reward spec. Equal digests score every episode equally."""

    name: str
    outcome: OutcomeTerm
    cost: CostTerm = CostTerm()
    risk: RiskTerm = RiskTerm(signal="risk", weight=0.0)
    step: StepTerm = StepTerm()
    schema: int = SCHEMA

    @classmethod
    def parse(cls, document: object) -> RewardSpec:
        """A dict as loaded from JSON or YAML -> a spec.

        Raises:
            InvalidRewardSpec: an unknown or missing key, a wrong type, a number that is negative or not
                finite.
        """
        top = _mapping(document, "")
        _known(top, "", {field.name for field in fields(cls)})
        schema = top.get("schema", SCHEMA)
        if type(schema) is not int or schema != SCHEMA:
            raise InvalidRewardSpec(f"schema: {schema!r} is not known; this version reads {SCHEMA}")
        if "outcome" not in top:
            raise InvalidRewardSpec("outcome: missing")
        return cls(
            name=_text(top.get("name"), "name"),
            outcome=OutcomeTerm(**_term(top["outcome"], "outcome", OutcomeTerm)),
            cost=CostTerm(**_term(top.get("cost", {}), "cost", CostTerm)),
            risk=RiskTerm(**_term(top.get("risk", {"signal": "risk"}), "risk", RiskTerm)),
            step=StepTerm(**_term(top.get("step", {}), "step", StepTerm)),
        )

    @classmethod
    def from_yaml(cls, text: str) -> RewardSpec:
        """YAML (or JSON) text -> a spec.

        Raises:
            InvalidRewardSpec: not YAML, or not a reward spec.
        """
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InvalidRewardSpec(f"not YAML: {' '.join(str(error).split())}") from error
        return cls.parse(document)

    def to_dict(self) -> dict[str, Any]:
        """The full document, defaults filled in."""
        return asdict(self)

    def canonical_json(self) -> bytes:
        """The document in RFC 8785's canonical JSON."""
        return rfc8785.dumps(self.to_dict())

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, as hex."""
        return hashlib.sha256(self.canonical_json()).hexdigest()


@dataclass(frozen=True)
class StepScore:
    """What one step adds to the reward; 0 or below."""

    cost: float
    penalty: float


@dataclass(frozen=True)
class Score:
    """An episode's reward and where it came from."""

    total: float | None
    """The reward; None if the outcome is not known. Equal to `sum(parts.values())`, exactly."""
    parts: dict[str, float]
    """`outcome` (absent while unknown), `cost`, `risk`, `step`: signed, so that they add up."""
    steps: list[StepScore]
    """One per step, in order; `parts["cost"]` and `parts["step"]` are their sums."""
    missing: tuple[str, ...]
    """Signals that the spec names and nobody has sent. A risk that nobody reported costs nothing, but is
    listed."""


def score(spec: RewardSpec, signals: Mapping[str, float | bool | None], steps: Sequence[StepFacts]) -> Score:
    """Score one episode.

    Args:
        spec: The reward spec in force.
        signals: The latest value of each signal; None and absent both mean that it is not known.
        steps: What happened at each step.

    Raises:
        ValueError: a signal that the spec uses is not a finite number.
    """
    outcome, risk = _signal(signals, spec.outcome.signal), _signal(signals, spec.risk.signal)
    step_scores = [_score_step(spec, facts) for facts in steps]
    parts: dict[str, float] = {}
    if outcome is not None:
        parts["outcome"] = spec.outcome.weight * outcome
    parts["cost"] = sum((step.cost for step in step_scores), 0.0)
    parts["risk"] = -spec.risk.weight * (risk or 0.0)
    parts["step"] = sum((step.penalty for step in step_scores), 0.0)
    missing = tuple(
        name
        for name, value, weight in (
            (spec.outcome.signal, outcome, math.inf),
            (spec.risk.signal, risk, spec.risk.weight),
        )
        if value is None and weight
    )
    return Score(None if outcome is None else sum(parts.values()), parts, step_scores, missing)


SUPPORT_DESK = RewardSpec(
    name="support-desk",
    outcome=OutcomeTerm(signal="resolved", weight=1.0),
    cost=CostTerm(per_model_call=0.02),
    risk=RiskTerm(signal="risk", weight=0.5),
    step=StepTerm(malformed=0.2, repeated=0.05),
)
"""The default document for the support desk."""


def _score_step(spec: RewardSpec, facts: StepFacts) -> StepScore:
    cost = (
        spec.cost.per_model_call * facts.model_calls
        + spec.cost.per_tool_call * facts.tool_calls
        + spec.cost.per_1k_tokens * facts.tokens / 1000
    )
    return StepScore(-cost, -(spec.step.malformed * facts.malformed + spec.step.repeated * facts.repeated))


def _signal(signals: Mapping[str, float | bool | None], name: str) -> float | None:
    value = signals.get(name)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"signal {name!r} is not a finite number: {value!r}")
    return float(value)


def _term(document: object, path: str, kind: type[Any]) -> dict[str, Any]:
    """The keyword arguments of one term: `signal` is text, everything else an amount."""
    term = _mapping(document, path)
    names = {field.name for field in fields(kind)}
    _known(term, path, names)
    if "signal" in names and "signal" not in term:
        raise InvalidRewardSpec(f"{path}.signal: missing")
    return {
        k: _text(v, f"{path}.{k}") if k == "signal" else _amount(v, f"{path}.{k}") for k, v in term.items()
    }


def _mapping(document: object, path: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidRewardSpec(f"{path or 'the document'}: must be a mapping, got {type(document).__name__}")
    return document


def _known(document: dict[str, Any], path: str, names: set[str]) -> None:
    for key in document:
        if key not in names:
            where = f"{path}.{key}" if path else str(key)
            raise InvalidRewardSpec(f"{where}: unknown key; known: {', '.join(sorted(names))}")


def _text(value: object, path: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRewardSpec(f"{path}: must be text, got {value!r}")
    return value


def _amount(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRewardSpec(f"{path}: must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise InvalidRewardSpec(f"{path}: must be finite and not below 0, got {value!r}")
    return float(value)
