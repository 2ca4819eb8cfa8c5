"""Changes the value of a JSON object's top-level string member in the bytes themselves: all others stay as
they were.

Works on bytes that a JSON parser has accepted; does not check them again."""

import re

import orjson

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


def replace_string(body: bytes, member: str, value: str) -> bytes:
    """`body` with every top-level `member` whose value is a string set to `value`.

    Every one, because parsers differ in which of two equal keys they believe."""
    pieces = []
    copied = 0
    depth = 0
    for token in _TOKEN.finditer(body):
        start, end = token.span()
        first = body[start]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif depth == 1 and (colon := _COLON.match(body, end)):
            # A string before a colon is a key; no value stands before one.
            value_start = colon.end()
            if (
                _is_key(body[start:end], member)
                and (old := _TOKEN.match(body, value_start))
                and old[0][:1] == b'"'
            ):
                pieces += [body[copied : old.start()], orjson.dumps(value)]
                copied = old.end()
    return b"".join([*pieces, body[copied:]])


def _is_key(token: bytes, member: str) -> bool:
    if b"\\" not in token:
        return token[1:-1] == member.encode()
    try:
        return bool(orjson.loads(token) == member)
    except orjson.JSONDecodeError:  # a lone surrogate: not the member's name
        return False
