"""Rows in the form that PostgreSQL's COPY reads fastest: `FORMAT BINARY`, a field at a time.

Each function packs one value of one column type; None is NULL. Knows no table."""

import struct
from collections.abc import Iterable, Sequence
from uuid import UUID

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

_LENGTH = struct.Struct(">i").pack
_FIELDS = struct.Struct(">h").pack
_INT2 = struct.Struct(">ih").pack
_INT4 = struct.Struct(">ii").pack
_INT8 = struct.Struct(">iq").pack
_ARRAY = struct.Struct(">iiiii").pack
_NO_ITEMS = struct.Struct(">iiii").pack
_BYTEA_OID = 17
_VARCHAR_OID = 1043
_EPOCH_US = 946_684_800_000_000
"""PostgreSQL counts from the year 2000."""
_EPOCH_DAY = 730_120
"""Its first day, as `date.toordinal` counts."""


def row(fields: Sequence[bytes]) -> bytes:
    """A row of packed fields, in the order of the COPY's columns."""
    return _FIELDS(len(fields)) + b"".join(fields)


def uuid(value: UUID | None) -> bytes:
    return NULL if value is None else b"\x00\x00\x00\x10" + value.bytes


def varchar(value: str) -> bytes:
    return bytea(value.encode())


def bytea(value: bytes | None) -> bytes:
    return NULL if value is None else _LENGTH(len(value)) + value


def boolean(value: bool) -> bytes:
    return b"\x00\x00\x00\x01\x01" if value else b"\x00\x00\x00\x01\x00"


def int2(value: int | None) -> bytes:
    return NULL if value is None else _INT2(2, value)


def int4(value: int | None) -> bytes:
    return NULL if value is None else _INT4(4, value)


def int8(value: int | None) -> bytes:
    return NULL if value is None else _INT8(8, value)


def timestamptz(microseconds: int | None) -> bytes:
    """From Unix microseconds."""
    return NULL if microseconds is None else _INT8(8, microseconds - _EPOCH_US)


def date(ordinal: int) -> bytes:
    """From `date.toordinal`."""
    return _INT4(4, ordinal - _EPOCH_DAY)


def bytea_array(values: Sequence[bytes]) -> bytes:
    return _array(_BYTEA_OID, [bytea(value) for value in values])


def varchar_array(values: Sequence[str]) -> bytes:
    return _array(_VARCHAR_OID, [varchar(value) for value in values])


def _array(oid: int, items: Sequence[bytes]) -> bytes:
    if not items:
        return _NO_ITEMS(12, 0, 0, oid)
    return bytea(_ARRAY(1, 0, oid, len(items), 1) + b"".join(items))


def stream(rows: Iterable[bytes]) -> bytes:
    """What COPY is sent for these rows."""
    return HEADER + b"".join(rows) + TRAILER
