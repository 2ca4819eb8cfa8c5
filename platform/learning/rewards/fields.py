"""Reading the fields of a reward spec: each refusal starts with the path of the field and says what would fit.

Knows nothing of what the fields mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

LARGEST = 1e6
"""No weight, bound or stated number is larger: beyond it, amounts could not be told apart as floats."""


class InvalidRewardSpec(ValueError):
    """A document that is no reward spec; the message starts with the path of the field."""


def mapping(value: object, path: str) -> dict[str, Any]:
    """A mapping whose keys are text."""
    if not isinstance(value, dict):
        raise InvalidRewardSpec(f"{path or 'the document'}: must be a mapping, got {kind_of(value)}")
    for key in value:
        if not isinstance(key, str) or not key.strip():
            # YAML reads yes, no, on, off and 5 as something other than text.
            raise InvalidRewardSpec(f"{under(path, str(key))}: names are text; put {key!r} in quotes")
    return value


def known(document: Mapping[str, Any], path: str, names: Collection[str]) -> None:
    """Refuse keys that are none of `names`."""
    for key in document:
        if key not in names:
            raise InvalidRewardSpec(f"{under(path, key)}: unknown key; known: {', '.join(sorted(names))}")


def text(value: object, path: str, *, longest: int = 300) -> str:
    """Text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidRewardSpec(f"{path}: must be text, got {value!r}")
    if len(value) > longest:
        raise InvalidRewardSpec(f"{path}: must be at most {longest} characters, got {len(value)}")
    return value


def choice(value: object, path: str, choices: Collection[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidRewardSpec(f"{path}: must be one of {', '.join(choices)}, got {value!r}")
    return value


def number(value: object, path: str, *, least: float = -LARGEST, most: float = LARGEST) -> float:
    """A finite number within bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRewardSpec(f"{path}: must be a number, got {value!r}")
    if not math.isfinite(value) or not least <= value <= most:
        raise InvalidRewardSpec(f"{path}: must be from {least:g} to {most:g}, got {value!r}")
    return float(value)


def bounds(value: object, path: str) -> tuple[float, float]:
    """`[lowest, highest]`."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise InvalidRewardSpec(f"{path}: must be two numbers, [lowest, highest], got {value!r}")
    low, high = number(value[0], f"{path}[0]"), number(value[1], f"{path}[1]")
    if low > high:
        raise InvalidRewardSpec(f"{path}: the lowest, {low:g}, is above the highest, {high:g}")
    return low, high


def required(document: Mapping[str, Any], key: str, path: str, hint: str) -> Any:
    """The value of a key that must be there."""
    if key not in document:
        raise InvalidRewardSpec(f"{under(path, key)}: missing; {hint}")
    return document[key]


def under(path: str, key: str) -> str:
    """The path of a key."""
    return f"{path}.{key}" if path else key


def kind_of(value: object) -> str:
    """What a person calls a value's type."""
    return {"NoneType": "nothing", "list": "a list", "str": "text"}.get(
        type(value).__name__, type(value).__name__
    )
