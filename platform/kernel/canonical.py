"""RFC 8785's canonical JSON, fast: one text for equal documents, so that a digest names them.

orjson writes strings, integers and the order of ASCII names exactly as the RFC asks; numbers with a fraction are
written here, as JavaScript would, and everything else is left to `rfc8785`, which is slow and always right."""

from typing import Any

import orjson
import rfc8785


class Unsayable(ValueError):
    """The document holds what canonical JSON has no text for: half a surrogate pair, a number that is none or an
    integer beyond 2**53, or nesting that is too deep."""


def dumps(document: Any) -> bytes:
    """The canonical text. Raises Unsayable."""
    try:
        return orjson.dumps(_written(document), option=orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER)
    except (_Slow, TypeError, RecursionError, rfc8785.FloatDomainError):
        pass  # TypeError: what orjson refuses
    try:
        return rfc8785.dumps(document)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise Unsayable(str(error)[:200]) from error


class _Slow(Exception):
    """Left to the slow writer."""


def _written(value: Any) -> Any:
    """The value with every float as the text that JavaScript gives it."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is dict:
        written = {}
        for name, item in value.items():
            # Beyond ASCII the RFC sorts by UTF-16 units, orjson by UTF-8 bytes.
            if type(name) is not str or not name.isascii():
                raise _Slow
            written[name] = _written(item)
        return written
    if kind is list or kind is tuple:
        return [_written(item) for item in value]
    if kind is float:
        # In this range Python writes the shortest digits without an exponent, as JavaScript does.
        if 1e-4 <= abs(value) < 1e16:
            return orjson.Fragment(repr(value).removesuffix(".0").encode())
        return orjson.Fragment(rfc8785.dumps(value))
    raise _Slow
