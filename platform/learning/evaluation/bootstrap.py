"""The paired bootstrap: how sure a difference between two versions on the same tasks is. Pure standard
library."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean difference (candidate - champion) and its percentile bootstrap interval, in the values' own
    unit."""

    mean: float
    low: float
    high: float
    confidence: float
    n: int


def paired_bootstrap(
    champion: Sequence[float],
    candidate: Sequence[float],
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Resample tasks, keeping each task's two results together, and take the percentiles of the mean
    difference.

    Args:
        champion: One value per task.
        candidate: One value per task, the same tasks in the same order.
        resamples: How many resamples to draw.
        seed: Makes the interval reproducible.
        confidence: The share of resamples that the interval holds, within (0, 1).

    Raises:
        ValueError: no tasks, or not the same number of each, or no resamples.
    """
    if len(champion) != len(candidate):
        raise ValueError(f"paired values differ in number: {len(champion)} and {len(candidate)}")
    if not champion or resamples < 1 or not 0 < confidence < 1:
        raise ValueError("needs at least one task, one resample, and a confidence between 0 and 1")
    differences = [b - a for a, b in zip(champion, candidate, strict=True)]
    n = len(differences)
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(resamples))
    tail = (1 - confidence) / 2
    return Interval(
        mean=sum(differences) / n,
        low=means[int(tail * resamples)],
        high=means[min(resamples - 1, int((1 - tail) * resamples))],
        confidence=confidence,
        n=n,
    )
