"""What a judge is: a readable document with its questions, its model and what people's labels it is held against.

Immutable like a reward spec: another digest is another judge. Asking it is not done here."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx
import rfc8785
import yaml

from learning.rewards.fields import InvalidRewardSpec, choice, known, mapping, number, required, text
from telemetry.metrics import JUDGE_PREFIX

SCHEMA = 1
DIGEST_CHARACTERS = 12
"""Of the digest, in a signal's source and in a pinned term of a reward spec."""
MAX_QUESTIONS = 20
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,19}")


class InvalidJudge(InvalidRewardSpec):
    """A document that is no judge; the message starts with the path of the field."""


class JudgeKind(StrEnum):
    RUBRIC = "rubric"
    """Yes or no to each question, reasons first; the verdict is the share of yes."""
    RANKING = "ranking"
    """Runs of one task, held against each other; the verdict is a score from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class JudgeDefinition:
    """A validated judge."""

    name: str
    kind: JudgeKind
    base_url: str
    """Of any OpenAI-compatible server, usually ending in `/v1`."""
    model: str
    labels: str
    """The signal in which people say whether a run was good; the judge is measured against it."""
    questions: dict[str, str]
    """Of a rubric, by a short name; yes is good."""
    criterion: str = ""
    """Of a ranking: what makes one run better than another."""
    group_size: int = 4
    """Runs of one task that are ranked together."""
    input_usd: float = 0.0
    """Price of a million prompt tokens, in US dollars."""
    output_usd: float = 0.0

    @classmethod
    def from_yaml(cls, document: str) -> JudgeDefinition:
        """YAML or JSON text -> a judge. Raises InvalidJudge."""
        try:
            loaded = yaml.safe_load(document)
        except (yaml.YAMLError, RecursionError) as error:
            raise InvalidJudge(f"not YAML: {' '.join(str(error).split())}") from error
        return cls.parse(loaded)

    @classmethod
    def parse(cls, document: object) -> JudgeDefinition:
        """A dict -> a judge. Raises InvalidJudge."""
        try:
            return cls._parse(document)
        except InvalidJudge:
            raise
        except InvalidRewardSpec as error:
            raise InvalidJudge(str(error)) from error

    @classmethod
    def _parse(cls, document: object) -> JudgeDefinition:
        top = mapping(document, "")
        kind = JudgeKind(choice(required(top, "kind", "", "rubric or ranking"), "kind", list(JudgeKind)))
        own = {"questions"} if kind is JudgeKind.RUBRIC else {"criterion", "group_size"}
        known(top, "", {"schema", "name", "kind", "base_url", "model", "labels", "prices"} | own)
        if top.get("schema") != SCHEMA:
            raise InvalidJudge(f"schema: must be {SCHEMA}, got {top.get('schema')!r}")
        name = text(top.get("name"), "name")
        if not _NAME.fullmatch(name):
            raise InvalidJudge(
                f"name: must be up to 20 of a-z, 0-9, _ and -, starting with a letter; got {name!r}"
            )
        prices = mapping(top.get("prices", {}), "prices")
        known(prices, "prices", {"input", "output"})
        return cls(
            name=name,
            kind=kind,
            base_url=_base_url(text(top.get("base_url"), "base_url")),
            model=text(top.get("model"), "model", longest=200),
            labels=text(
                required(top, "labels", "", "the signal in which people say whether a run was good"),
                "labels",
                longest=100,
            ),
            questions=_questions(top) if kind is JudgeKind.RUBRIC else {},
            criterion=text(top.get("criterion"), "criterion", longest=2000)
            if kind is JudgeKind.RANKING
            else "",
            group_size=_group_size(top.get("group_size", 4)),
            input_usd=number(prices.get("input", 0.0), "prices.input", least=0.0),
            output_usd=number(prices.get("output", 0.0), "prices.output", least=0.0),
        )

    def to_dict(self) -> dict[str, Any]:
        """The document again, defaults filled in."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "name": self.name,
            "kind": self.kind.value,
            "base_url": self.base_url,
            "model": self.model,
            "labels": self.labels,
            "prices": {"input": self.input_usd, "output": self.output_usd},
        }
        if self.kind is JudgeKind.RUBRIC:
            return document | {"questions": self.questions}
        return document | {"criterion": self.criterion, "group_size": self.group_size}

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical document."""
        return hashlib.sha256(rfc8785.dumps(self.to_dict())).hexdigest()

    @property
    def source(self) -> str:
        """As the source of this judge's signals."""
        return source_of(self.name, self.digest)

    def cost_microusd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What a call costs, in millionths of a US dollar."""
        # A price is in dollars for a million tokens, so the product is in millionths of a dollar.
        return round(prompt_tokens * self.input_usd + completion_tokens * self.output_usd)


def source_of(name: str, digest: str) -> str:
    """`judge:<name>@<start of the digest>`."""
    return f"{JUDGE_PREFIX}{name}@{digest[:DIGEST_CHARACTERS]}"


def _questions(top: dict[str, Any]) -> dict[str, str]:
    questions = mapping(
        required(top, "questions", "", "NAME: a question that yes or no answers"), "questions"
    )
    if not 1 <= len(questions) <= MAX_QUESTIONS:
        raise InvalidJudge(f"questions: must be 1 to {MAX_QUESTIONS}, got {len(questions)}")
    for name in questions:
        if not _NAME.fullmatch(name):
            raise InvalidJudge(f"questions.{name}: a name is up to 20 of a-z, 0-9, _ and -")
    return {name: text(questions[name], f"questions.{name}", longest=1000) for name in sorted(questions)}


def _group_size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 8:
        raise InvalidJudge(f"group_size: must be a whole number from 2 to 8, got {value!r}")
    return value


def _base_url(value: str) -> str:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise InvalidJudge(f"base_url: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        raise InvalidJudge("base_url: must be http(s)://HOST/PATH, without a user, a query or a fragment")
    return value.rstrip("/")
