"""How a call's bytes are stored: the skeleton of its request and its answer, compressed against an earlier call's.

An agent sends its history again with each turn, so the turn before (the base) holds most of what this one says; a
call that goes on from nothing is compressed against the first of its kind. What is stored depends on the bytes of
the two calls alone, not on what this process remembers, so a call that is read from the spool twice does no harm.
Remembers bases, within bounds; to forget them costs space only. Pure: no tables."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Any
from uuid import UUID

import zstandard

from telemetry.pieces import Cut, Skeleton, cut, unpacked

LEVEL = 5
MAX_DEPTH = 100
"""How many links a reader follows at most, give or take the first of its kind."""
MAX_BASE_BYTES = 4 << 20
"""A payload longer than this is nobody's base: it would have to be unpacked for each that follows."""
MAX_FIRST_BYTES = 32 << 10
MEMORY_BYTES = 64 << 20
"""What the remembered bases take at most."""
MAX_FIRSTS = 1000
MAX_KNOWN_PIECES = 200_000
LOOK_BACK = 32
"""How many elements may be new in a turn (tool calls side by side, say) and its base still be found."""
TRAILING = 4
"""How many elements at a request's end may be gone in the next turn (a reminder, say), and it still be its base."""


class Undecodable(ValueError):
    """The stored bytes are not what was stored."""


@dataclass(frozen=True, slots=True)
class Link:
    """A call's bytes as they are stored."""

    base_id: UUID | None
    """The call against which `data` is compressed; of the same project and period."""
    request_sha256: bytes
    data: bytes
    new_pieces: dict[bytes, bytes]
    """Pieces that are not known to be stored, by digest."""


@dataclass(slots=True)
class _Base:
    call_id: UUID
    payload: bytes
    depth: int
    compressor: zstandard.ZstdCompressor | None = None
    """Made at first use; kept for the firsts, which are used again and again."""


class Chains:
    """The writing side of one process."""

    def __init__(self) -> None:
        self._plain = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        self.forget()

    def forget(self) -> None:
        """Nothing of what was added lately is sure to be stored."""
        self._bases: OrderedDict[Hashable, _Base] = OrderedDict()
        self._bases_bytes = 0
        self._firsts: OrderedDict[Hashable, _Base] = OrderedDict()
        self._known: OrderedDict[Hashable, None] = OrderedDict()

    def add(
        self,
        *,
        project_id: UUID,
        period: date,
        call_id: UUID,
        kind: Hashable,
        request: bytes,
        response: bytes,
    ) -> Link:
        """The link of one more call; `kind` is alike for calls whose bytes are probably alike."""
        scope = project_id, period
        parts = cut(request)
        payload = parts.skeleton.packed() + response
        landmarks = [(scope, landmark) for landmark in parts.landmarks[: -LOOK_BACK - 1 : -1]]
        base = self._base(landmarks)
        first = None if base else self._firsts.get((scope, kind))
        used = base or first
        data = (self._compressor(used, keep=used is first) if used else self._plain).compress(payload)
        made = _Base(call_id, payload, used.depth + 1 if used else 0)
        if used is None and len(payload) <= MAX_FIRST_BYTES and response:
            _remember(self._firsts, (scope, kind), made, MAX_FIRSTS)
        if len(payload) <= MAX_BASE_BYTES:
            # An opening alone, such as the system message of all runs, does not make a turn the base of another run.
            turns = parts.landmarks[1:] or parts.landmarks
            self._remember_base([(scope, landmark) for landmark in turns[-TRAILING:]], made)
        return Link(
            used.call_id if used else None, sha256(request).digest(), data, self._unknown(scope, parts)
        )

    def _base(self, landmarks: Sequence[Hashable]) -> _Base | None:
        for landmark in landmarks:
            base = self._bases.get(landmark)
            if base is not None:
                return base if base.depth < MAX_DEPTH else None
        return None

    def _remember_base(self, landmarks: Sequence[Hashable], base: _Base) -> None:
        for landmark in landmarks:
            replaced = self._bases.pop(landmark, None)
            self._bases_bytes += len(base.payload) - (len(replaced.payload) if replaced else 0)
            self._bases[landmark] = base
        while self._bases_bytes > MEMORY_BYTES:
            _, dropped = self._bases.popitem(last=False)
            self._bases_bytes -= len(dropped.payload)

    def _unknown(self, scope: Hashable, parts: Cut) -> dict[bytes, bytes]:
        new = {}
        for digest, piece in parts.pieces.items():
            key = scope, digest
            if key in self._known:
                self._known.move_to_end(key)
            else:
                _remember(self._known, key, None, MAX_KNOWN_PIECES)
                new[digest] = self._plain.compress(piece)
        return new

    def _compressor(self, base: _Base, *, keep: bool) -> zstandard.ZstdCompressor:
        if base.compressor is not None:
            return base.compressor
        dictionary = _dictionary(base.payload)
        if keep:
            dictionary.precompute_compress(level=LEVEL)
        made = zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary, write_checksum=True)
        if keep:
            base.compressor = made
        return made


def payload_of(data: bytes, base: bytes | None) -> bytes:
    """A link's payload, given its base's. Raises Undecodable."""
    try:
        if base is None:
            return zstandard.ZstdDecompressor().decompress(data)
        return zstandard.ZstdDecompressor(dict_data=_dictionary(base)).decompress(data)
    except zstandard.ZstdError as error:
        raise Undecodable(str(error)) from error


def split(payload: bytes) -> tuple[Skeleton, bytes]:
    """A payload's skeleton and answer."""
    skeleton, end = unpacked(payload)
    return skeleton, payload[end:]


def piece_of(data: bytes) -> bytes:
    """A stored piece's bytes. Raises Undecodable."""
    return payload_of(data, None)


def _dictionary(payload: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(payload, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _remember(memory: "OrderedDict[Hashable, Any]", key: Hashable, value: object, limit: int) -> None:
    memory[key] = value
    if len(memory) > limit:
        memory.popitem(last=False)
