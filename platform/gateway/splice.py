"""Changes members of a JSON object in the bytes themselves: all other bytes stay as they were.

Works on bytes that a JSON parser has accepted; does not check them again. Of equal keys every one is changed,
because parsers differ in which of two they believe.

Nothing is parsed. In JSON a quote inside a string stands behind a backslash, so `"name"` without one before it opens
with a quote that begins or ends a string; a string's end is never followed by a letter, so it begins one, and that
string is `name`. Before a colon it is a key. How deep it stands is what brackets outside strings say."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import orjson

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[{}\[\]]', re.DOTALL)
_SCALAR = re.compile(rb"[^ \t\r\n,\]}]+")
_COMMA = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_SPACE = b" \t\r\n"


class Malformed(ValueError):
    """The bytes are not JSON."""


class Member(NamedTuple):
    """Where a member stands in the bytes."""

    start: int
    """Of the key's opening quote."""
    value_start: int
    value_end: int


class Edit(NamedTuple):
    """Bytes that take the place of others."""

    start: int
    end: int
    new: bytes = b""


def find(body: bytes, name: str, *, depth: int = 1, start: int = 0, end: int | None = None) -> list[Member]:
    """The members of this name, in order, of the object in `body[start:end]`: its own at depth 1, those of objects
    in it at 2 and beyond, lists counted. Raises Malformed where JSON is not."""
    end = len(body) if end is None else end
    # Letters may be written as escapes. Nobody does, and where nobody does a plain search is faster.
    is_escaped = b"\\u00" in body
    keys = [key for key in _key(name, is_escaped).finditer(body, start, end) if body[key.start() - 1] != 0x5C]
    depths = _depths(body, [key.start() for key in keys], start, end)
    return [
        Member(key.start(), key.end(), _value_end(body, key.end()))
        for key, at in zip(keys, depths, strict=True)
        if at == depth
    ]


def edited(body: bytes, edits: Iterable[Edit]) -> bytes:
    """`body` with all edits made; they are in order and do not overlap."""
    pieces = []
    copied = 0
    for edit in edits:
        pieces += [body[copied : edit.start], edit.new]
        copied = edit.end
    return b"".join([*pieces, body[copied:]])


def replace_string(body: bytes, member: str, value: str) -> bytes:
    """`body` with every top-level `member` whose value is a string set to `value`."""
    new = orjson.dumps(value)
    texts = [at for at in find(body, member) if body[at.value_start] == 0x22]
    return edited(body, [Edit(at.value_start, at.value_end, new) for at in texts])


def set_member(body: bytes, member: str, value: bytes) -> bytes:
    """`body` with every top-level `member` set to the JSON `value`."""
    return edited(body, [Edit(at.value_start, at.value_end, value) for at in find(body, member)])


def append_member(body: bytes, member: str, value: bytes) -> bytes:
    """`body` with one more member of the JSON `value`, behind all others."""
    end = _rstrip(body, body.rindex(b"}"))
    comma = b"" if body[end - 1] == 0x7B else b","  # only an empty object has a brace there
    return edited(body, [Edit(end, end, comma + orjson.dumps(member) + b":" + value)])


def remove_member(body: bytes, member: str) -> bytes:
    """`body` without any top-level `member`, and without the commas that stood for it."""
    return edited(body, removals(body, find(body, member)))


def removals(body: bytes, gone: Iterable[Member]) -> list[Edit]:
    """The edits that take members out, in order: each with the comma before it, an object's first ones with the
    comma behind."""
    edits: list[Edit] = []
    for member in gone:
        before = _rstrip(body, member.start) - 1
        is_first = body[before] != 0x2C or (bool(edits) and before < edits[-1].end)
        if not is_first:
            edits.append(Edit(_rstrip(body, before), member.value_end))
            continue
        behind = _COMMA.match(body, member.value_end)
        edits.append(Edit(member.start, behind.end() if behind else member.value_end))
    return edits


def _depths(body: bytes, places: Sequence[int], start: int, end: int) -> list[int]:
    """How many brackets are open at each place, none of which is in a string."""
    if len(places) == 1 and end - places[0] < places[0] - start:
        return [-_opened(body[places[0] : end])]  # all that are open there are closed until the end
    depths = []
    depth = 0
    for place in places:
        depth += _opened(body[start:place])
        depths.append(depth)
        start = place
    return depths


def _opened(json: bytes) -> int:
    bare = _STRING.sub(b"", json)
    return bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")


def _value_end(body: bytes, start: int) -> int:
    """The end of the value that begins at `start`."""
    first = body[start : start + 1]
    if first not in {b"{", b"["}:
        return _matched(_STRING if first == b'"' else _SCALAR, body, start)
    depth = 1
    end = start + 1
    while depth:
        end = _matched(_TO_BRACKET, body, end)
        depth += 1 if body[end - 1] in b"{[" else -1
    return end


def _matched(pattern: re.Pattern[bytes], body: bytes, start: int) -> int:
    found = pattern.match(body, start)
    if found is None:
        raise Malformed
    return found.end()


@cache
def _key(name: str, is_escaped: bool) -> re.Pattern[bytes]:
    letters = [re.escape(letter.encode()) for letter in name]
    if is_escaped:
        letters = [
            b"(?:%s|(?i:\\\\u%04x))" % (plain, ord(letter))
            for plain, letter in zip(letters, name, strict=True)
        ]
    return re.compile(b'"' + b"".join(letters) + b'"[ \t\r\n]*:[ \t\r\n]*')


def _rstrip(body: bytes, end: int) -> int:
    """`end`, moved before the white space before it."""
    while end and body[end - 1] in _SPACE:
        end -= 1
    return end
