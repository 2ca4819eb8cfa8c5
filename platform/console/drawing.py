"""Geometry of the small pictures: figures -> coordinates that a template draws as inline SVG. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One row of a waterfall: from where the parts before it ended to where this one ends, in percent of
    the width."""

    label: str
    value: float
    left: float
    width: float
    is_gain: bool
    is_total: bool = False

    @property
    def text(self) -> str:
        return f"{self.value:+.4f}"


@dataclass(frozen=True)
class IntervalPicture:
    """A difference with its interval on an axis that always shows zero. x in a width of 680."""

    zero: float
    low: float
    high: float
    mean: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Curve:
    """A line over training steps."""

    points: str
    """For `<polyline points>`, in a box of 600 by 120."""
    low: float
    high: float
    steps: int
    latest: float


def waterfall(parts: Mapping[str, float], total: float | None) -> list[Bar]:
    """Reward parts as bars that add up, in the order given, and their total when the outcome is known."""
    edges = [0.0]
    for value in parts.values():
        edges.append(edges[-1] + value)
    low, high = min(edges), max(edges)
    scale = 100 / ((high - low) or 1.0)
    bars = [
        Bar(label, value, (min(start, end) - low) * scale, abs(end - start) * scale, value >= 0)
        for (label, value), start, end in zip(parts.items(), edges, edges[1:], strict=False)
    ]
    if total is not None:
        left, width = (min(0.0, total) - low) * scale, abs(total) * scale
        bars.append(Bar("reward", total, left, width, total >= 0, is_total=True))
    return bars


def interval(low: float, mean: float, high: float) -> IntervalPicture:
    """Place an interval on a symmetric axis, so that better and worse have equal room."""
    reach = max(abs(low), abs(high), 0.01) * 1.15

    def x(value: float) -> float:
        return round(340 + value / reach * 340, 1)

    step = _round_step(reach)
    marks = [step * k for k in range(-5, 6) if abs(step * k) <= reach]
    return IntervalPicture(
        zero=x(0.0),
        low=x(low),
        high=x(high),
        mean=x(mean),
        ticks=tuple((x(m), f"{m * 100:+.0f}" if m else "0") for m in marks),
    )


def curve(points: Sequence[tuple[int, float]], steps: int) -> Curve | None:
    """A reward curve; None for fewer than two points."""
    if len(points) < 2:
        return None
    values = [value for _, value in points]
    low, high = min(values), max(values)
    scale = 110 / ((high - low) or 1.0)
    last = max(steps, points[-1][0], 1)
    text = " ".join(f"{step / last * 600:.1f},{115 - (value - low) * scale:.1f}" for step, value in points)
    return Curve(text, low, high, last, values[-1])


def _round_step(reach: float) -> float:
    for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        if reach / step <= 5:
            return step
    return 1.0
