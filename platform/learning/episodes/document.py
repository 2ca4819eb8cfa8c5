"""An episode as a document: its types, its canonical bytes, and how it is read. docs/episode-format.md describes it.

Messages stand once, as a tree in which each names the one before it, so that the size grows with the run and not with
its square, and a run that branched is shown as it was. Pure: needs no Django. How runs become documents is
`learning.episodes.build`'s business, what a reward means `learning.rewards`'."""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from kernel import canonical
from learning.rewards.facts import Facts, Observed
from learning.rewards.steps import StepFacts

SCHEMA: Literal[2] = 2


class InvalidEpisode(ValueError):
    """Bytes that are no episode of this version; the message says which field."""


class Reason(StrEnum):
    """Why nothing may be learnt from an episode."""

    CALLER = "caller"  # a call's header, metadata or API key said so
    KEY = "key"  # its API key says so by now
    SIGNAL = "signal"  # the signal `training_opt_out`
    UNREADABLE = "unreadable"  # its bytes could not be read, or are gone


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunPart(_Part):
    id: str
    revision: int
    name: str
    task_key: str
    group: str
    """Equal for runs of one task of the project; empty without a task key."""
    model_alias: str
    confidence: float
    started_at: str
    latest_call_at: str


class SpecPart(_Part):
    id: str
    digest: str


class MessageNode(_Part):
    after: int | None
    """The message before it, by its place in `messages`; None for a first one."""
    message: dict[str, Any]
    """In the shape of chat; arguments of tool calls are JSON text, as the model wrote them."""


class ToolCall(_Part):
    id: str
    name: str
    arguments: str
    """JSON text."""


class CallPart(_Part):
    id: str
    outcome: str
    status_code: int | None
    retry_count: int
    model_requested: str
    model_served: str
    model_version_id: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_microusd: int | None
    started_at: str
    ended_at: str | None


class TokenPart(_Part):
    """What a model of ours read and drew. The prompt is the first `shared` tokens of the parent step's prompt and
    drawn tokens, and then `prompt`: nothing is tokenised again."""

    shared: int
    prompt: list[int]
    sampled: list[int]
    """Drawn by the model: these have the mask 1, all others 0."""
    logprobs: list[float]
    """One for each of `sampled`."""


class StepFactsPart(_Part):
    """What the reward counts in a step."""

    model_calls: int
    tool_calls: int
    malformed: int
    repeated: int
    tokens: int


class StepPart(_Part):
    index: int
    parent: int | None
    reason: str
    confidence: float
    prompt: int | None
    """The last message of its prompt, by its place in `messages`; those before it follow by `after`."""
    answer: int | None
    """The message that the model answered with; None without a whole answer."""
    tool_calls: list[ToolCall]
    model_version_id: str | None
    """The version of ours that answered: the policy; None for a model that is not ours."""
    sampling: dict[str, Any]
    """What the request said about drawing: temperature, top_p and so on."""
    tokens: TokenPart | None
    facts: StepFactsPart
    calls: list[CallPart]


class EvidencePart(_Part):
    step: int | None
    call_id: str | None
    what: str


class SignalPart(_Part):
    id: str | None
    """None for a derived signal."""
    name: str
    value: Any
    step: int | None
    source: str
    is_final: bool
    observed_at: str | None
    evidence: list[EvidencePart]


class StepReward(_Part):
    cost: float
    risk: float
    step: float
    shaping: float


class WaterfallEntry(_Part):
    term: str
    part: str
    step: int | None
    amount: float
    why: str
    evidence: list[str]


class RewardPart(_Part):
    total: float | None
    parts: dict[str, float]
    steps: list[StepReward]
    missing: list[str]
    not_final: list[str]
    veto: str
    waterfall: list[WaterfallEntry]


class EpisodeDocument(_Part):
    schema_version: Literal[2]
    run: RunPart
    reward_spec: SpecPart
    model_version_ids: list[str]
    tools: list[dict[str, Any]]
    """The function tools that the last answered request offered."""
    messages: list[MessageNode]
    main_path: list[int]
    """The steps that lead to the last answer, in order; all others are branches: forks, sub-agents, attempts."""
    steps: list[StepPart]
    signals: list[SignalPart]
    reward: RewardPart
    is_final: bool
    untrainable: list[Reason]
    """Why nothing may be learnt from it; empty when it may."""

    @classmethod
    def read(cls, payload: bytes) -> "EpisodeDocument":
        """Raises InvalidEpisode."""
        try:
            # orjson refuses text that is no JSON; pydantic's own reader would take more.
            return cls.model_validate(orjson.loads(payload))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise InvalidEpisode(f"{where}: {first['msg']}") from error
        except ValueError as error:
            raise InvalidEpisode(f"not JSON: {error}") from error

    def canonical(self) -> bytes:
        """RFC 8785's canonical JSON. Where a stranger's content has no such text, it is made sayable; a document that
        is nested too deeply loses its messages and signals and says so."""
        document = self.model_dump()
        try:
            return canonical.dumps(document)
        except canonical.Unsayable:
            pass
        try:
            return canonical.dumps(_sayable(document))
        except (canonical.Unsayable, RecursionError):
            return canonical.dumps(_sayable(self._bare().model_dump()))

    def _bare(self) -> "EpisodeDocument":
        steps = [
            step.model_copy(update={"prompt": None, "answer": None, "sampling": {}}) for step in self.steps
        ]
        untrainable = sorted({*self.untrainable, Reason.UNREADABLE})
        empty: dict[str, Any] = {"messages": [], "signals": [], "tools": []}
        return self.model_copy(update={**empty, "steps": steps, "untrainable": untrainable})

    @property
    def facts(self) -> Facts:
        """What its reward was computed from, so that another spec can be held against it."""
        return facts_of(self.signals, [StepFacts(**step.facts.model_dump()) for step in self.steps])

    def path(self, node: int | None) -> list[dict[str, Any]]:
        """The messages that lead to a node, the node's own last; empty for None."""
        found = []
        while node is not None:
            found.append(self.messages[node].message)
            node = self.messages[node].after
        return found[::-1]

    def prompt_of(self, step: StepPart) -> list[dict[str, Any]]:
        """The messages that the step's model read."""
        return self.path(step.prompt)

    def conversation(self) -> list[dict[str, Any]]:
        """The messages of the main path, the last answer included."""
        if not self.main_path:
            return []
        last = self.steps[self.main_path[-1]]
        return self.path(last.answer if last.answer is not None else last.prompt)

    def prompt_tokens(self, step: StepPart) -> list[int]:
        """The token ids that the step's model read; empty for a model that is not ours."""
        chain = []
        at: StepPart | None = step
        while at is not None and at.tokens is not None:
            chain.append(at.tokens)
            at = self.steps[at.parent] if at.parent is not None and at.tokens.shared else None
        read: list[int] = []
        drawn: list[int] = []
        for tokens in reversed(chain):
            read = [*read, *drawn][: tokens.shared] + tokens.prompt
            drawn = tokens.sampled
        return read


def facts_of(signals: Sequence[SignalPart], steps: Sequence[StepFacts]) -> Facts:
    """What a reward may be computed from; of demonstrations, that there are some."""
    return Facts(
        [
            Observed(
                one.name,
                one.value if isinstance(one.value, bool | int | float | str) else None,
                one.step,
                one.is_final,
                one.source,
                tuple(evidence.what for evidence in one.evidence),
            )
            for one in signals
        ],
        steps,
    )


def shared_length(before: Sequence[int], after: Sequence[int]) -> int:
    """How many first tokens two sequences have in common."""
    least = min(len(before), len(after))
    if before[:least] == after[:least]:
        return least
    return next(place for place in range(least) if before[place] != after[place])


def _sayable(value: Any) -> Any:
    """What canonical JSON can say: integers beyond 2**53 and numbers that are none as text, no half surrogate
    pairs."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [_sayable(item) for item in value]
    return {_sayable(str(name)): _sayable(item) for name, item in value.items()}
