"""A request's bytes as a skeleton and its long pieces: what agents send again and again is recognised by content.

Cuts at the structure of JSON, for every dialect alike: an element of `messages` or `input`, or another top-level
value, is a piece when it is long. The skeleton is the rest, with a SHA-256 in the place of each piece. Both depend
on the bytes alone, and put together they are those bytes again; what is no JSON object is one piece.
Pure: how skeletons and pieces are kept is `telemetry.chains`' and `telemetry.bodies`' business."""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from json.scanner import make_scanner

LONG_BYTES = 1024
"""From this length on a piece is stored by itself. Shorter ones cost more as rows than they take in a skeleton."""

_LISTS = frozenset({"messages", "input"})
"""Members whose elements are pieces, rather than the whole value: they grow from turn to turn."""
_DIGEST_BYTES = 32
_SPACES = frozenset(" \t\r\n")
# Numbers are not looked at: as text they cost nothing and have no limit.
_scan = make_scanner(json.JSONDecoder(parse_float=str, parse_int=str))  # type: ignore[arg-type]  # as json does

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A request without its long pieces."""

    text: bytes
    """What is left, with digests in it."""
    places: tuple[int, ...]
    """Where in `text` the digests stand."""

    def packed(self) -> bytes:
        """The form in which it is stored; two that begin alike have forms that are alike."""
        return (
            struct.pack(f">II{len(self.places)}I", len(self.places), len(self.text), *self.places) + self.text
        )

    def digests(self) -> list[bytes]:
        """The digests of its pieces, in order."""
        return [self.text[at : at + _DIGEST_BYTES] for at in self.places]

    def parts(self, pieces: Mapping[bytes, bytes]) -> Iterator[bytes]:
        """The request's bytes, part by part. Raises KeyError for a piece that is not there."""
        at = 0
        for place in self.places:
            yield self.text[at:place]
            at = place + _DIGEST_BYTES
            yield pieces[self.text[place:at]]
        yield self.text[at:]


def unpacked(data: bytes) -> tuple[Skeleton, int]:
    """A skeleton from its stored form, and where that form ends. Raises struct.error when it is none."""
    count, length = struct.unpack_from(">II", data)
    places = struct.unpack_from(f">{count}I", data, 8)
    begin = 8 + 4 * count
    return Skeleton(data[begin : begin + length], places), begin + length


@dataclass(frozen=True, slots=True)
class Cut:
    """What a request was cut into."""

    skeleton: Skeleton
    pieces: dict[bytes, bytes]
    """By SHA-256."""
    landmarks: list[int]
    """A hash of each list element together with the one before it, in order: requests that share one are
    probably turns of one conversation. Good within one process only."""


def cut(body: bytes) -> Cut:
    """Cut a request's bytes."""
    values, elements = _spans(body)
    pieces: dict[bytes, bytes] = {}
    text: list[bytes] = []
    places: list[int] = []
    at = length = 0
    for begin, end in values:
        if end - begin < LONG_BYTES:
            continue
        piece = body[begin:end]
        digest = sha256(piece).digest()
        pieces[digest] = piece
        text += body[at:begin], digest
        length += begin - at
        places.append(length)
        length += _DIGEST_BYTES
        at = end
    text.append(body[at:])
    hashes = [0, *(hash(body[begin:end]) for begin, end in elements)]
    return Cut(Skeleton(b"".join(text), tuple(places)), pieces, [hash(pair) for pair in pairwise(hashes)])


def _spans(body: bytes) -> tuple[list[Span], list[Span]]:
    """Where the values that may be pieces lie, in order, and which of them are list elements."""
    try:
        # Structure is ASCII, and Latin-1 has one character a byte: positions in the text are those in the bytes.
        return _walk(body.decode("latin-1"))
    except (ValueError, StopIteration, IndexError, RecursionError):
        return [(0, len(body))], []


def _walk(text: str) -> tuple[list[Span], list[Span]]:
    values: list[Span] = []
    elements: list[Span] = []
    at = _expect(text, 0, "{")
    while text[at] != "}":
        name, at = _scan(text, at)
        at = _expect(text, at, ":")
        if name in _LISTS and text[at] == "[":
            at = _expect(text, at, "[")
            while text[at] != "]":
                begin = at
                _, at = _scan(text, begin)
                values.append((begin, at))
                elements.append((begin, at))
                at = _next(text, at, "]")
            at += 1
        else:
            begin = at
            _, at = _scan(text, begin)
            values.append((begin, at))
        at = _next(text, at, "}")
    if _space(text, at + 1) != len(text):
        raise ValueError("something follows the object")
    return values, elements


def _next(text: str, at: int, end: str) -> int:
    """Past a value: where the next one begins, or where `end` stands."""
    at = _space(text, at)
    return at if text[at] == end else _expect(text, at, ",")


def _expect(text: str, at: int, character: str) -> int:
    """Past this character and the space around it."""
    at = _space(text, at)
    if text[at] != character:
        raise ValueError(f"{character} expected at {at}")
    return _space(text, at + 1)


def _space(text: str, at: int) -> int:
    """Past white space."""
    while text[at : at + 1] in _SPACES:
        at += 1
    return at
