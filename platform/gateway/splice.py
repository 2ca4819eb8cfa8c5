"""Changes members of a JSON object in the bytes themselves: all other bytes stay as they were.

Works on bytes that a JSON parser has accepted; does not check them again. Of equal keys every one is changed,
because parsers differ in which of two they believe."""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

import orjson

# A string, with the colon behind it when it is a key, or a bracket. Outside strings JSON has no quotes, so a match that
# begins outside a string is a whole token; matches follow each other from the start of the text, so all do.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"([ \t\r\n]*:[ \t\r\n]*)?|[{}\[\]]', re.DOTALL)
_SCALAR = re.compile(rb"[^ \t\r\n,\]}]+")
_SPACE = b" \t\r\n"


@dataclass(slots=True)
class Member:
    """Where a member stands in the bytes."""

    name: str
    depth: int
    """1 for a member of the outermost object, 2 for one of an object in it, lists counted."""
    within: str
    """The outermost object's member that it is in; itself at depth 1."""
    start: int
    """Of the key's opening quote."""
    value_start: int
    value_end: int


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes that take the place of others."""

    start: int
    end: int
    new: bytes = b""


def members(
    body: bytes, wanted: Container[str], *, depths: Container[int] = frozenset({1}), start: int = 0
) -> list[Member]:
    """The members of these names at these depths, in order, of the object that begins at or behind `start`. What
    follows the object is not looked at."""
    found: list[Member] = []
    unclosed: list[Member] = []
    depth = 0
    within = ""
    for token in _TOKEN.finditer(body, start):
        first = body[token.start()]
        if first == 0x22:
            if depth in depths and token.end(1) >= 0:
                name = _text(body[token.start() : token.start(1)])
                within = name if depth == 1 else within
                if name in wanted:
                    member = Member(
                        name, depth, within, token.start(), token.end(), _scalar_end(body, token.end())
                    )
                    found.append(member)
                    if body[token.end()] in b"{[":
                        unclosed.append(member)
        elif first in b"{[":
            depth += 1
        else:
            depth -= 1
            if unclosed and unclosed[-1].depth == depth:
                unclosed.pop().value_end = token.end()
            if depth == 0:
                break
    return found


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
    return edited(
        body,
        [
            Edit(found.value_start, found.value_end, new)
            for found in members(body, {member})
            if body[found.value_start] == 0x22
        ],
    )


def set_member(body: bytes, member: str, value: bytes) -> bytes:
    """`body` with every top-level `member` set to the JSON `value`."""
    return edited(body, [Edit(at.value_start, at.value_end, value) for at in members(body, {member})])


def append_member(body: bytes, member: str, value: bytes) -> bytes:
    """`body` with one more member of the JSON `value`, behind all others."""
    end = len(body[: body.rindex(b"}")].rstrip(_SPACE))
    comma = b"" if body[end - 1] == 0x7B else b","  # only an empty object has a brace there
    return edited(body, [Edit(end, end, comma + orjson.dumps(member) + b":" + value)])


def remove_member(body: bytes, member: str) -> bytes:
    """`body` without any top-level `member`, and without the commas that stood for it."""
    return edited(body, removals(body, members(body, {member})))


def removals(body: bytes, gone: Iterable[Member]) -> list[Edit]:
    """The edits that take members out, each with the comma before it; of an object's first members the comma
    behind."""
    edits: list[Edit] = []
    for member in gone:
        before = len(body[: member.start].rstrip(_SPACE)) - 1
        is_first = body[before] != 0x2C or (bool(edits) and before < edits[-1].end)
        if not is_first:
            edits.append(Edit(before, member.value_end))
            continue
        rest = body[member.value_end :].lstrip(_SPACE)
        end = member.value_end
        if rest[:1] == b",":
            end = len(body) - len(rest[1:].lstrip(_SPACE))
        edits.append(Edit(member.start, end))
    return edits


def _scalar_end(body: bytes, start: int) -> int:
    """The end of a string, number or literal; of an object or list its start."""
    if body[start] in b"{[":
        return start
    found = (_TOKEN if body[start] == 0x22 else _SCALAR).match(body, start)
    assert found is not None
    return found.start(1) if found.re is _TOKEN and found.end(1) >= 0 else found.end()


def _text(token: bytes) -> str:
    if b"\\" not in token:
        return token[1:-1].decode("utf-8", "replace")
    try:
        return str(orjson.loads(token))
    except orjson.JSONDecodeError:  # a lone surrogate
        return ""
