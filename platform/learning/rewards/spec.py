"""Reward specs: immutable documents that say what a good episode is.

reward = outcome - cost - risk + steps, shaped, clipped, unless a veto decides. Each part is a section of named terms
that a person can read aloud; equal digests score every episode equally. Scoring is `learning.rewards.scoring`'s,
which spec is in force `learning.reward_specs`'."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import rfc8785
import yaml

from learning.rewards.fields import InvalidRewardSpec, bounds, known, mapping, text
from learning.rewards.own import load
from learning.rewards.shaping import Shaping
from learning.rewards.terms import Kind, Source, Term
from learning.rewards.vetoes import Veto

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """A validated reward spec."""

    name: str
    terms: tuple[Term, ...]
    """By kind, then by name: the order of a document's keys means nothing, and is lost where it is stored."""
    shaping: Shaping | None = None
    vetoes: tuple[Veto, ...] = ()
    """By name; the first that fires decides."""
    clip: tuple[float, float] | None = None
    """Bounds of the reward; a veto's reward lies within them."""

    @classmethod
    def parse(cls, document: object) -> RewardSpec:
        """A dict as loaded from JSON or YAML -> a spec.

        Raises:
            InvalidRewardSpec: an unknown or missing key, a wrong type, a number out of bounds. The message starts
                with the path of the field.
        """
        top = mapping(document, "")
        known(top, "", {"schema", "name", "shaping", "veto", "clip", *(kind.value for kind in Kind)})
        if top.get("schema") != SCHEMA or isinstance(top.get("schema"), bool):
            raise InvalidRewardSpec(f"schema: must be {SCHEMA}, got {top.get('schema')!r}")
        name = text(top.get("name"), "name", longest=100)
        terms = tuple(term for kind in Kind for term in _section(kind, top.get(kind.value, {})))
        if not any(term.kind is Kind.OUTCOME for term in terms):
            raise InvalidRewardSpec("outcome: must have at least one term, NAME: {signal: ..., weight: ...}")
        clip = bounds(top["clip"], "clip") if top.get("clip") is not None else None
        shaping = Shaping.parse(top["shaping"], "shaping") if top.get("shaping") is not None else None
        return cls(
            name=name, terms=terms, shaping=shaping, vetoes=_vetoes(top.get("veto", {}), clip), clip=clip
        )

    @classmethod
    def from_yaml(cls, document: str) -> RewardSpec:
        """YAML (or JSON) text -> a spec.

        Raises:
            InvalidRewardSpec: not YAML, or not a reward spec.
        """
        try:
            loaded = yaml.load(document, Loader=_OnceLoader)
        except (yaml.YAMLError, RecursionError) as error:
            raise InvalidRewardSpec(f"not YAML: {' '.join(str(error).split())}") from error
        return cls.parse(loaded)

    def to_dict(self) -> dict[str, Any]:
        """The full document, defaults filled in."""
        document: dict[str, Any] = {"schema": SCHEMA, "name": self.name}
        for term in self.terms:
            document.setdefault(term.kind.value, {})[term.name] = term.to_json()
        if self.shaping is not None:
            document["shaping"] = self.shaping.to_json()
        if self.vetoes:
            document["veto"] = {veto.name: veto.to_json() for veto in self.vetoes}
        if self.clip is not None:
            document["clip"] = list(self.clip)
        return document

    def canonical_json(self) -> bytes:
        """The document in RFC 8785's canonical JSON."""
        return rfc8785.dumps(self.to_dict())

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, as hex."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    @cached_property
    def outcome_signals(self) -> tuple[str, ...]:
        """The signals that say how a run ended, judges' verdicts not among them: their arrival closes the run."""
        read = (term for term in self.terms if term.kind is Kind.OUTCOME and term.source is Source.SIGNAL)
        return tuple(dict.fromkeys(term.reads for term in read))

    def check_own_terms(self) -> None:
        """Hold each own term against the installed code. Raises InvalidRewardSpec with the term's path."""
        for term in self.terms:
            if term.source is Source.OWN:
                try:
                    load(term.reads, term.sha256)
                except InvalidRewardSpec as error:
                    raise InvalidRewardSpec(f"{term.kind}.{term.name}.sha256: {error}") from error


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the safe loader does, each key once."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)) or key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands twice or is no name", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _section(kind: Kind, document: object) -> list[Term]:
    section = mapping(document, kind.value)
    return [
        Term.parse(kind, text(name, kind.value, longest=60), section[name], f"{kind.value}.{name}")
        for name in sorted(section)
    ]


def _vetoes(document: object, clip: tuple[float, float] | None) -> tuple[Veto, ...]:
    section = mapping(document, "veto")
    vetoes = tuple(Veto.parse(name, section[name], f"veto.{name}") for name in sorted(section))
    for veto in vetoes:
        if clip is not None and not clip[0] <= veto.reward <= clip[1]:
            raise InvalidRewardSpec(
                f"veto.{veto.name}.reward: {veto.reward:g} lies outside clip, {clip[0]:g} to {clip[1]:g}"
            )
    return vetoes


SUPPORT_DESK = RewardSpec.parse(
    {
        "schema": SCHEMA,
        "name": "support-desk",
        "outcome": {"resolved": {"signal": "resolved", "weight": 1.0, "missing": "none"}},
        "cost": {"model calls": {"fact": "model_calls", "weight": 0.02}},
        "risk": {"harm": {"signal": "risk", "weight": 0.5, "missing": "skip"}},
        "step": {
            "malformed tool call": {"fact": "malformed", "weight": -0.2},
            "repeated tool call": {"fact": "repeated", "weight": -0.05},
        },
    }
)
"""The default document for the support desk."""
