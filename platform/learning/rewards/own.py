"""A project's own terms in Python: entry points of the group `ratchet.reward_terms`, held to their code's digest.

An own term is a function `(facts, **options)` that returns a number, a list with one number a step, or None when it
cannot say. The spec names the sha256 of its module's source, so that a reward never changes because code did. The
module's file alone is held to the digest: an own term stands on nothing but Python and `learning.rewards`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from learning.rewards.facts import Facts
from learning.rewards.fields import InvalidRewardSpec

GROUP = "ratchet.reward_terms"


class OwnTermRefused(InvalidRewardSpec):
    """The term is not installed, its code is not what the spec names, or it answered what is no number."""


def read(name: str, sha256: str, options: dict[str, Any], facts: Facts) -> float | list[float] | None:
    """What the own term says about an episode. Raises OwnTermRefused."""
    answer = load(name, sha256)(facts, **options)
    if answer is None:
        return None
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        if len(answer) != len(facts.steps):
            raise OwnTermRefused(
                f"own term {name!r}: answered {len(answer)} numbers for {len(facts.steps)} steps"
            )
        return [_number(name, value) for value in answer]
    return _number(name, answer)


@lru_cache(maxsize=256)
def load(name: str, sha256: str) -> Callable[..., Any]:
    """The function of an own term, if its module's source has this sha256. Raises OwnTermRefused."""
    entry = _entry(name)
    found = _digest(entry)
    if found != sha256:
        raise OwnTermRefused(
            f"own term {name!r}: the spec names code {sha256}, installed is {found} ({entry.module}); "
            "publish a spec with the installed code's digest, or install the code that the spec names"
        )
    function = entry.load()
    if not callable(function):
        raise OwnTermRefused(f"own term {name!r}: {entry.value} is no function")
    return function  # type: ignore[no-any-return]


def digest(name: str) -> str:
    """sha256 (hex) of the installed own term's module source: what a spec writes. Raises OwnTermRefused."""
    return _digest(_entry(name))


def _entry(name: str) -> EntryPoint:
    found = list(entry_points(group=GROUP, name=name))
    if len(found) != 1:
        installed = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
        raise OwnTermRefused(
            f"own term {name!r}: {'is installed more than once' if found else 'is not installed'}; "
            f"installed: {installed}"
        )
    return found[0]


def _digest(entry: EntryPoint) -> str:
    """Of the file, read before the module runs: code that is not the spec's is never executed."""
    try:
        spec = find_spec(entry.module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise OwnTermRefused(f"own term {entry.name!r}: module {entry.module} has no Python source")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _number(name: str, value: object) -> float:
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
        raise OwnTermRefused(f"own term {name!r}: must answer a finite number or None, answered {value!r}")
    return float(value)
