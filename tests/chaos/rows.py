"""What the product stored, read back for the oracle: call rows, digests of their bytes, signals, losses.

The only module here that knows tables. Rows by plain SQL, so that a selector's mistake cannot hide one; bytes by the
product's own door, in `tests.chaos.bodies`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import psycopg
from psycopg.rows import class_row

from tests.chaos.product import Installation


@dataclass(frozen=True, slots=True)
class CallRow:
    id: str
    outcome: str
    status_code: int | None
    process: str
    boot: str
    sequence: int
    response_id: str
    is_shed: bool
    """Bytes of it were left out, because the disk was full."""
    is_stitched: bool
    started_at: datetime


@dataclass(frozen=True, slots=True)
class SignalRow:
    id: str
    target: str
    idempotency_key: str
    has_run: bool


@dataclass(frozen=True, slots=True)
class LossRow:
    process: str
    boot: str
    first_sequence: int
    last_sequence: int
    count: int
    """Of the records in this range."""
    reason: str


@dataclass(frozen=True, slots=True)
class BodyDigest:
    """The bytes of a call, as far as they have to be known to be compared."""

    call_id: str
    request_sha256: str
    response_bytes: int
    response_sha256: str


@dataclass(frozen=True)
class Stored:
    """All of it, for one project."""

    calls: Sequence[CallRow]
    """Doubled ones as often as they are there."""
    bodies: Sequence[BodyDigest]
    signals: Sequence[SignalRow]
    losses: Sequence[LossRow]
    """Of the whole installation: whose records they were is what a loss does not know."""


def read(installation: Installation, project_id: str, *, known_losses: Iterable[LossRow] = ()) -> Stored:
    """What is stored of a project; `known_losses` are those of earlier experiments."""
    with psycopg.connect(installation.env.database_url) as connection:
        new = set(_losses(connection)) - set(known_losses)
        return Stored(
            calls=_calls(connection, project_id),
            bodies=_bodies(installation, project_id),
            signals=_signals(connection, project_id),
            losses=sorted(new, key=lambda row: (row.process, row.boot, row.first_sequence)),
        )


def losses(installation: Installation) -> list[LossRow]:
    """Every loss of the installation so far."""
    with psycopg.connect(installation.env.database_url) as connection:
        return _losses(connection)


def _calls(connection: "psycopg.Connection[Any]", project_id: str) -> list[CallRow]:
    with connection.cursor(row_factory=class_row(CallRow)) as cursor:
        return cursor.execute(
            "SELECT id::text, outcome, status_code, process, boot, sequence, response_id, is_shed,"
            " step_id IS NOT NULL AS is_stitched, started_at FROM telemetry_call WHERE project_id = %s",
            [project_id],
        ).fetchall()


def _bodies(installation: Installation, project_id: str) -> list[BodyDigest]:
    lines = installation.python("-m", "tests.chaos.bodies", project_id).splitlines()
    return [BodyDigest(*orjson.loads(line)) for line in lines]


def _signals(connection: "psycopg.Connection[Any]", project_id: str) -> list[SignalRow]:
    with connection.cursor(row_factory=class_row(SignalRow)) as cursor:
        return cursor.execute(
            "SELECT id::text, target, idempotency_key, run_id IS NOT NULL AS has_run"
            " FROM telemetry_signal WHERE project_id = %s",
            [project_id],
        ).fetchall()


def _losses(connection: "psycopg.Connection[Any]") -> list[LossRow]:
    with connection.cursor(row_factory=class_row(LossRow)) as cursor:
        return cursor.execute(
            "SELECT process, boot, first_sequence, last_sequence, count, reason FROM telemetry_captureloss"
        ).fetchall()
