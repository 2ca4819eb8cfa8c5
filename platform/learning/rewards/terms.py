"""One term of a reward spec: what it reads, what that is worth, and what happens while it is not known.

A term is read aloud as it is written: "cost, model calls: the fact model_calls, weight 0.02". Terms of kind outcome and
step are added, those of kind cost and risk subtracted. Adding them up is `learning.rewards.scoring`'s."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Any

from learning.rewards.fields import (
    InvalidRewardSpec,
    bounds,
    choice,
    known,
    mapping,
    number,
    required,
    text,
    under,
)
from learning.rewards.steps import StepFacts
from telemetry.metrics import JUDGE_PREFIX

STEP_FACTS = tuple(f.name for f in fields(StepFacts))
_SHA256 = re.compile(r"[0-9a-f]{64}")
_JUDGE = re.compile(r"[a-z][a-z0-9_-]{0,19}(@[0-9a-f]{12})?")


class Kind(StrEnum):
    """Which part of the reward a term belongs to."""

    OUTCOME = "outcome"
    COST = "cost"
    RISK = "risk"
    STEP = "step"


SIGN = {Kind.OUTCOME: 1, Kind.COST: -1, Kind.RISK: -1, Kind.STEP: 1}


class Source(StrEnum):
    """Where a term's value comes from; the key of the document that names it."""

    SIGNAL = "signal"
    FACT = "fact"
    JUDGE = "judge"
    OWN = "own"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What a term does while nobody has said its value."""

    rule: str
    """`none`: the episode has no reward; `skip`: the term adds nothing; `count_as`: a stated number stands in."""
    count_as: float = 0.0
    because: str = ""

    @classmethod
    def parse(cls, value: object, path: str) -> Missing:
        """`none`, `skip`, or `{count_as: NUMBER, because: TEXT}`."""
        if isinstance(value, dict):
            known(value, path, {"count_as", "because"})
            stated = number(
                required(value, "count_as", path, "the number that stands in"), f"{path}.count_as"
            )
            reason = required(value, "because", path, "say why this number is fair")
            return cls(rule="count_as", count_as=stated, because=text(reason, f"{path}.because"))
        if value not in ("none", "skip"):
            raise InvalidRewardSpec(
                f"{path}: must be none (no reward), skip, or {{count_as: NUMBER, because: TEXT}}, got {value!r}"
            )
        return cls(rule=str(value))

    def to_json(self) -> Any:
        """The document again."""
        if self.rule == "count_as":
            return {"count_as": self.count_as, "because": self.because}
        return self.rule


@dataclass(frozen=True, kw_only=True)
class Term:
    """A validated term."""

    kind: Kind
    name: str
    source: Source
    reads: str
    """The name of the signal, fact, judge or own term."""
    weight: float
    per: float = 1.0
    """The weight is for so many: `weight: 0.5, per: 1000` of tokens."""
    values: Mapping[str, float] = field(default_factory=dict)
    """What each label of a text signal counts as."""
    clip: tuple[float, float] | None = None
    """Bounds of what the term adds (or, for cost and risk, subtracts) over a whole run."""
    missing: Missing = Missing(rule="none")
    waits: bool = True
    """Whether a value that may still change is waited for; else it is used as it stands."""
    sha256: str = ""
    """Of the source of an own term's module."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Given to an own term."""

    @classmethod
    def parse(cls, kind: Kind, name: str, document: object, path: str) -> Term:
        """One entry of the spec's section `kind`.

        Raises:
            InvalidRewardSpec: not a term; the message starts with the field's path."""
        term = mapping(document, path)
        source = _source(term, path)
        where = under(path, source.value)
        if source is Source.FACT and kind is Kind.OUTCOME:
            raise InvalidRewardSpec(
                f"{where}: what happened on the way is no outcome; read a signal, judge or own"
            )
        extra = {
            Source.SIGNAL: {"values", "missing", "not_final"},
            Source.FACT: set(),
            Source.JUDGE: {"missing", "not_final"},
            Source.OWN: {"missing", "sha256", "options"},
        }[source]
        known(term, path, {source.value, "weight", "per", "clip"} | extra)
        least = 0.0 if SIGN[kind] < 0 else -1e6
        return cls(
            kind=kind,
            name=name,
            source=source,
            reads=_reads(source, term[source.value], where),
            weight=number(required(term, "weight", path, "what one is worth"), f"{path}.weight", least=least),
            per=number(term.get("per", 1.0), f"{path}.per", least=1e-6),
            values={
                label: number(value, f"{path}.values.{label}")
                for label, value in mapping(term.get("values", {}), f"{path}.values").items()
            },
            clip=bounds(term["clip"], f"{path}.clip") if term.get("clip") is not None else None,
            missing=Missing(rule="none")
            if source is Source.FACT
            else Missing.parse(
                required(
                    term, "missing", path, "say none (no reward), skip, or {count_as: ..., because: ...}"
                ),
                f"{path}.missing",
            ),
            waits=choice(term.get("not_final", "wait"), f"{path}.not_final", ("wait", "use")) == "wait",
            sha256=_sha256(term, path) if source is Source.OWN else "",
            options=mapping(term.get("options", {}), f"{path}.options"),
        )

    def to_json(self) -> dict[str, Any]:
        """The document again, defaults filled in."""
        document: dict[str, Any] = {self.source.value: self.reads, "weight": self.weight, "per": self.per}
        if self.clip is not None:
            document["clip"] = list(self.clip)
        if self.source is not Source.FACT:
            document["missing"] = self.missing.to_json()
        if self.source in (Source.SIGNAL, Source.JUDGE):
            document["not_final"] = "wait" if self.waits else "use"
        if self.source is Source.SIGNAL:
            document["values"] = dict(self.values)
        if self.source is Source.OWN:
            document |= {"sha256": self.sha256, "options": dict(self.options)}
        return document

    @cached_property
    def signal(self) -> str:
        """The name of the signal that is read; "" for facts and own terms."""
        if self.source is Source.JUDGE:
            return JUDGE_PREFIX + self.reads.partition("@")[0]
        return self.reads if self.source is Source.SIGNAL else ""

    @cached_property
    def worth(self) -> str:
        """The weight, in words."""
        return f"weight {self.weight:g}" + (f" per {self.per:g}" if self.per != 1 else "")

    @cached_property
    def label(self) -> str:
        """What is read, as lists of missing things name it."""
        return self.signal or f"{self.source.value}:{self.reads}"


def _source(term: Mapping[str, Any], path: str) -> Source:
    named = [source for source in Source if source.value in term]
    if len(named) != 1:
        found = "none of them" if not named else " and ".join(named)
        raise InvalidRewardSpec(f"{path}: must read exactly one of {', '.join(Source)}; it names {found}")
    return named[0]


def _reads(source: Source, value: object, path: str) -> str:
    if source is Source.FACT:
        return choice(value, path, STEP_FACTS)
    name = text(value, path, longest=100)
    if source is Source.JUDGE and not _JUDGE.fullmatch(name):
        raise InvalidRewardSpec(
            f"{path}: must be a judge's name, or name@digest with 12 hex digits, got {name!r}"
        )
    return name


def _sha256(term: Mapping[str, Any], path: str) -> str:
    value = required(term, "sha256", path, "sha256 of the source of the module that holds the own term")
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InvalidRewardSpec(f"{path}.sha256: must be 64 hex digits, got {value!r}")
    return value
