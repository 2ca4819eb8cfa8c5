"""What a snapshot says about itself in figures, gathered while its episodes pass. Pure.

Without floats, so that it may be quoted in the ledger."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from math import sqrt
from typing import Any

from learning.models import RewardSpecVersion

FORMAT = 2
"""Of the file: one canonical episode document of schema 2 a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """An episode that the filters let pass."""

    payload: bytes
    reward: float | None
    step_count: int
    task_key: str
    model_version_ids: tuple[str, ...]
    principal: str
    built_at: datetime
    started_at: datetime | None
    excluded: tuple[str, ...]
    """Why it must not be in the file: `caller`, `key`, `signal`, `unreadable`, `no_reward`."""

    @property
    def is_kept(self) -> bool:
        return not self.excluded


@dataclass(slots=True)
class _Span:
    first: datetime | None = None
    last: datetime | None = None

    def see(self, at: datetime | None) -> None:
        if at is not None:
            self.first = min(self.first or at, at)
            self.last = max(self.last or at, at)

    def to_dict(self) -> dict[str, str | None]:
        return {
            "first": self.first.isoformat() if self.first else None,
            "last": self.last.isoformat() if self.last else None,
        }


@dataclass(slots=True)
class Manifest:
    """Sums over the episodes seen; its size does not grow with their number, but for names of tasks."""

    episodes: int = 0
    steps: int = 0
    excluded: "Counter[str]" = field(default_factory=Counter)
    _left_out: int = 0
    _mean: float = 0.0
    _squares: float = 0.0
    _least: float = 0.0
    _most: float = 0.0
    _tasks: "Counter[str]" = field(default_factory=Counter)
    _versions: set[str] = field(default_factory=set)
    _principals: "Counter[str]" = field(default_factory=Counter)
    _built: _Span = field(default_factory=_Span)
    _began: _Span = field(default_factory=_Span)

    def see(self, chosen: Chosen) -> None:
        """Count an episode, kept or left out."""
        if chosen.reward is None or chosen.excluded:
            self._left_out += 1
            self.excluded.update(chosen.excluded)
            return
        self.episodes += 1
        self.steps += chosen.step_count
        # Welford: the mean and the sum of squared distances, without all rewards at hand.
        distance = chosen.reward - self._mean
        self._mean += distance / self.episodes
        self._squares += distance * (chosen.reward - self._mean)
        self._least = min(self._least, chosen.reward) if self.episodes > 1 else chosen.reward
        self._most = max(self._most, chosen.reward) if self.episodes > 1 else chosen.reward
        if chosen.task_key:
            self._tasks[chosen.task_key] += 1
        self._versions.update(chosen.model_version_ids)
        self._principals[chosen.principal] += 1
        self._built.see(chosen.built_at)
        self._began.see(chosen.started_at)

    def excluded_in_words(self) -> str:
        """E.g. `3 were left out: caller 2, no_reward 1`."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.excluded.items()))
        return f"{self._left_out} were left out: {reasons}" if reasons else "none were built"

    def to_dict(self, version: RewardSpecVersion, filters: dict[str, object]) -> dict[str, Any]:
        deviation = sqrt(self._squares / self.episodes) if self.episodes else 0.0
        return {
            "format": FORMAT,
            "episodes": self.episodes,
            "steps": self.steps,
            "reward_spec": {"id": str(version.id), "name": str(version), "digest": version.digest},
            "filters": filters,
            "mean_reward": f"{self._mean:.6f}",
            "rewards": {
                "min": f"{self._least:.6f}",
                "max": f"{self._most:.6f}",
                "standard_deviation": f"{deviation:.6f}",
            },
            "task_keys": sorted(self._tasks),
            "groups": {
                "tasks": len(self._tasks),
                "with_two_or_more": sum(count > 1 for count in self._tasks.values()),
            },
            "model_version_ids": sorted(self._versions),
            "runs_began": self._began.to_dict(),
            "built": self._built.to_dict(),
            "excluded": {"episodes": self._left_out, "reasons": dict(sorted(self.excluded.items()))},
            "principals": [
                {"principal": name, "episodes": count, "share": f"{count / self.episodes:.6f}"}
                for name, count in self._principals.most_common()
            ],
        }
