"""What a signal may say: metrics, their kinds and levels, and which values fit. Pure: no database, no clock.

The gateway asks before it accepts feedback, `telemetry.signals` asks again when a signal finds its run, because a
gateway may know a declaration late. Who declares metrics, and where they are kept, is `telemetry.declarations`'."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MAX_NUMBER = 2**53
"""Numbers beyond this are not the same in every reader of JSON."""
MAX_KEY_CHARACTERS = 200
"""Of a project's own key for its runs."""


class Kind(StrEnum):
    """What a value is."""

    BOOLEAN = "boolean"
    NUMBER = "number"
    LABEL = "label"
    """One of a few texts that the metric lists."""
    TEXT = "text"
    DEMONSTRATION = "demonstration"
    """An assistant message: what the agent might have answered."""
    CORRECTION = "correction"
    """An assistant message that should have stood in place of one answer, which the signal names."""


class Level(StrEnum):
    """What a value is about."""

    RUN = "run"
    STEP = "step"
    CALL = "call"


class Better(StrEnum):
    """Which way is good."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A declared name."""

    name: str
    kind: Kind
    level: Level = Level.RUN
    better: Better = Better.NEITHER
    minimum: float | None = None
    maximum: float | None = None
    labels: tuple[str, ...] = ()
    window_s: int = 0
    """For so long after the run's latest call a value may still change; 0: it is final at once."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a signal does not fit: the field that is wrong, and a sentence on what would fit."""

    param: str
    message: str


TASK, EXTERNAL_KEY, CLOSED, TRAINING_OPT_OUT = "task", "external_key", "closed", "training_opt_out"
JUDGE_PREFIX = "judge:"
"""How the names and the sources of judges' verdicts begin: nobody else may send one, and it is nobody's feedback."""

RESERVED: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name=TASK, kind=Kind.TEXT, description="makes two runs attempts at the same task"),
        Metric(name=EXTERNAL_KEY, kind=Kind.TEXT, description="the project's own key for a run"),
        Metric(name=CLOSED, kind=Kind.BOOLEAN, description="the agent says that the run is over"),
        Metric(name=TRAINING_OPT_OUT, kind=Kind.BOOLEAN, description="nothing may be learned from the run"),
    )
}
"""Names that mean the same in every project, and that none can declare."""

USUAL: Mapping[str, Metric] = {
    kind.value: Metric(name=kind.value, kind=kind) for kind in (Kind.DEMONSTRATION, Kind.CORRECTION)
}
"""What these names mean in a project that has not declared them."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What one project's signals are held against."""

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    is_strict: bool = False
    """Names that are not declared are refused."""

    def metric(self, name: str) -> Metric | None:
        """What the name stands for; None for one that is not declared."""
        return RESERVED.get(name) or self.metrics.get(name) or USUAL.get(name)

    def window_s(self, name: str) -> int:
        metric = self.metrics.get(name)
        return metric.window_s if metric else 0


ANYTHING = Rules()
"""Of a project that has declared nothing: every name with a value of any kind."""


def misfit(rules: Rules, *, name: str, value: Any, step: int | None, target_type: str) -> Misfit | None:
    """What is wrong with a signal under these rules; None when it fits."""
    if name.startswith(JUDGE_PREFIX):
        return Misfit(
            "name", f"`{name}` is a judge's verdict, which only the judge gives: choose another name."
        )
    metric = rules.metric(name)
    if metric is None:
        if rules.is_strict:
            known = ", ".join(sorted({**RESERVED, **rules.metrics}))
            return Misfit("name", f"`{name}` is not a metric of this project; it has {known}.")
        return _not_an_answer(value) if isinstance(value, dict) else None
    return _wrong_level(metric, step, target_type) or _wrong_value(metric, value)


def _wrong_level(metric: Metric, step: int | None, target_type: str) -> Misfit | None:
    names_a_call = target_type in {"call_id", "response_id"}
    if metric.kind is Kind.CORRECTION and step is None and not names_a_call:
        return Misfit(
            "step", f"`{metric.name}` corrects one answer: give its `step`, its call_id or its response_id."
        )
    if metric.kind is Kind.CORRECTION or metric.kind is Kind.DEMONSTRATION:
        return None
    if metric.level is Level.RUN and step is not None:
        return Misfit("step", f"`{metric.name}` is about whole runs: leave `step` out.")
    if metric.level is Level.STEP and step is None and not names_a_call:
        return Misfit(
            "step", f"`{metric.name}` is about one step: give its `step`, or a call_id or response_id of it."
        )
    if metric.level is Level.CALL and not names_a_call:
        return Misfit("call_id", f"`{metric.name}` is about one call: give its call_id or its response_id.")
    return None


def _wrong_value(metric: Metric, value: Any) -> Misfit | None:
    match metric.kind:
        case Kind.BOOLEAN:
            return None if isinstance(value, bool) else _not(metric, "true or false")
        case Kind.NUMBER:
            return None if _is_within(metric, value) else _not(metric, f"a number{_range(metric)}")
        case Kind.LABEL:
            fits = isinstance(value, str) and value in metric.labels
            return None if fits else _not(metric, f"one of {', '.join(metric.labels)}")
        case Kind.TEXT:
            if not isinstance(value, str) or not value.strip():
                return _not(metric, "text that is not empty")
            if metric.name == EXTERNAL_KEY and len(value) > MAX_KEY_CHARACTERS:
                return _not(metric, f"text of at most {MAX_KEY_CHARACTERS} characters")
            return None
        case Kind.DEMONSTRATION | Kind.CORRECTION:
            return _not_an_answer(value)


def _is_within(metric: Metric, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not math.isfinite(value) or abs(value) > MAX_NUMBER:
        return False
    return (metric.minimum is None or value >= metric.minimum) and (
        metric.maximum is None or value <= metric.maximum
    )


def _range(metric: Metric) -> str:
    match metric.minimum, metric.maximum:
        case None, None:
            return ""
        case low, None:
            return f" of at least {low:g}"
        case None, high:
            return f" of at most {high:g}"
        case low, high:
            return f" from {low:g} to {high:g}"


def _not(metric: Metric, what: str) -> Misfit:
    return Misfit("value", f"`value` of `{metric.name}` must be {what}.")


def _not_an_answer(value: Any) -> Misfit | None:
    """What keeps a value from being an assistant message, in chat's shape."""
    if not isinstance(value, dict) or value.get("role") != "assistant":
        return Misfit("value", "`value` must be an assistant message: an object with the role `assistant`.")
    content, called = value.get("content"), value.get("tool_calls")
    if not (content is None or isinstance(content, str | list)):
        return Misfit("value", "`value.content` must be text, a list of content parts, or null.")
    if not (called is None or (isinstance(called, list) and all(map(_is_tool_call, called)))):
        return Misfit(
            "value", "`value.tool_calls` must be a list of calls, each with a function's name and arguments."
        )
    if not content and not called:
        return Misfit("value", "`value` says nothing: give it `content` or `tool_calls`.")
    return None


def _is_tool_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), str)
    )
