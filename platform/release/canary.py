"""What a canary's traffic says: wait, promote or abort. One pure function; `release.rollout` brings the
numbers.

An abort always wins over everything else, and evidence that does not decide means waiting."""

import math
from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    WAIT = "wait"
    PROMOTE = "promote"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Arm:
    """What one version answered in the window."""

    calls: int
    errors: int
    """Calls that ended without a whole answer, whoever's fault; callers who hung up are not counted."""
    p95_ms: float | None = None
    """95th percentile of the time to the whole answer; None when no call ended."""

    @property
    def error_rate(self) -> float:
        return self.errors / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """Both versions over the same time."""

    champion: Arm
    canary: Arm


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When a canary is good or bad enough."""

    min_calls: int
    """Calls the canary must have answered before it may become champion."""
    max_error_excess: float = 0.02
    """How much higher, as a share of calls, the canary's error rate may be than the champion's."""
    min_errors: int = 3
    """Fewer errors than this never abort: one unlucky call proves nothing."""
    latency_calls: int = 20
    """Calls of each version before their latencies are compared."""
    max_p95_ratio: float = 3.0
    min_p95_excess_ms: float = 2_000.0
    """A ratio of small numbers is noise: the canary must also be slower by this much."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, and a sentence that a person can check."""

    action: Action
    sentence: str


def decide(window: Window, limits: Limits) -> Verdict:
    """Judge a canary by what it and the champion answered in the same window."""
    champion, canary = window.champion, window.canary
    allowed = champion.error_rate + limits.max_error_excess
    surely = error_rate_at_least(canary.errors, canary.calls)
    if canary.errors >= limits.min_errors and surely > allowed:
        return Verdict(
            Action.ABORT,
            f"{canary.errors} of {canary.calls} canary calls failed: surely more than {surely:.1%}, "
            f"and {allowed:.1%} is allowed (champion: {champion.error_rate:.1%})",
        )
    if _too_slow(champion, canary, limits):
        return Verdict(
            Action.ABORT,
            f"95 % of canary calls end within {canary.p95_ms:.0f} ms, the champion's within "
            f"{champion.p95_ms:.0f} ms: more than {limits.max_p95_ratio:g} times slower",
        )
    if canary.calls < limits.min_calls:
        return Verdict(Action.WAIT, f"{canary.calls} of {limits.min_calls} canary calls")
    if canary.error_rate > allowed:
        return Verdict(
            Action.WAIT,
            f"{canary.error_rate:.1%} of {canary.calls} canary calls failed and {allowed:.1%} is allowed: "
            "too many to promote, too few to be sure",
        )
    return Verdict(
        Action.PROMOTE,
        f"{canary.calls} canary calls, {canary.error_rate:.1%} failed (champion: {champion.error_rate:.1%} "
        f"of {champion.calls})",
    )


def error_rate_at_least(errors: int, calls: int) -> float:
    """The lower end of Wilson's score interval for a share, one-sided at 97.5 % (Wilson 1927)."""
    if not calls:
        return 0.0
    z, share = 1.96, errors / calls
    centre = share + z * z / (2 * calls)
    spread = z * math.sqrt(share * (1 - share) / calls + z * z / (4 * calls * calls))
    return max(0.0, (centre - spread) / (1 + z * z / calls))


def _too_slow(champion: Arm, canary: Arm, limits: Limits) -> bool:
    if min(champion.calls, canary.calls) < limits.latency_calls:
        return False
    if champion.p95_ms is None or canary.p95_ms is None:
        return False
    return (
        canary.p95_ms > champion.p95_ms * limits.max_p95_ratio
        and canary.p95_ms - champion.p95_ms > limits.min_p95_excess_ms
    )
