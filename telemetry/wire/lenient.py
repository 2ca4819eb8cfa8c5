"""Reading JSON of strangers without a raise: what is not of the expected shape is empty."""

import json
from collections.abc import Iterable
from typing import Any

import orjson


def load(body: bytes) -> Any:
    """The parsed JSON; None for what is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        # What orjson is too strict for, e.g. lone surrogates and NaN.
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def load_object(body: bytes) -> dict[str, Any]:
    """The parsed JSON object; an empty one for everything else."""
    return mapping(load(body))


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def count(value: Any) -> int | None:
    """A number of things; a database's integer holds it."""
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def total(values: Iterable[int | None]) -> int | None:
    """The sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def compact(value: Any) -> str:
    """A JSON value as text, equal for equal values; text stays as it is."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:  # lone surrogates, integers beyond 64 bits, 254 levels
        return repr(value)
