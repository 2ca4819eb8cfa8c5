"""The bytes of calls, read back: what a client sent and what it was answered, byte for byte.

The one door to stored bytes. How they are compressed is `telemetry.chains`', how a request is cut `telemetry.pieces`';
they are written by `telemetry.ingest`. A body that does not come out as it went in is left out and logged, never
returned."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from uuid import UUID

from django.db import connection

from telemetry import chains
from telemetry.models import Piece
from telemetry.pieces import Skeleton

log = logging.getLogger(__name__)

# The calls that are asked for, then whatever they are compressed against. Ids first, bytes last, so that what many
# calls rest on is read once.
_LINKS = """
WITH RECURSIVE needed (period, call_id, base_id) AS (
    SELECT body.period, body.call_id, body.base_id
    FROM telemetry_callbody AS body
    JOIN telemetry_call AS call
      ON call.id = body.call_id AND body.period = date_trunc('month', call.started_at AT TIME ZONE 'UTC')::date
    WHERE call.project_id = %(project)s AND call.id = ANY(%(calls)s::uuid[])
  UNION
    SELECT base.period, base.call_id, base.base_id
    FROM needed
    JOIN telemetry_callbody AS base ON base.period = needed.period AND base.call_id = needed.base_id
)
SELECT call_id, body.period, body.base_id, body.request_sha256, body.response_type, body.data
FROM needed JOIN telemetry_callbody AS body USING (period, call_id)
WHERE body.project_id = %(project)s
"""


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of one call."""

    response: bytes
    """What of the answer was received; empty when nothing was, or when it was left out."""
    response_type: str
    """Its media type."""
    _skeleton: Skeleton
    _pieces: Mapping[bytes, bytes]

    @property
    def request(self) -> bytes:
        """What the client sent. Put together at each call: requests of one run share most of their memory."""
        return b"".join(self._skeleton.parts(self._pieces))


@dataclass(frozen=True, slots=True)
class _Stored:
    period: date
    base_id: UUID | None
    request_sha256: bytes
    response_type: str
    data: bytes


def bodies_of(project_id: UUID, call_ids: Iterable[UUID]) -> dict[UUID, Body]:
    """The bytes of these calls of the project, in two queries. Calls without bytes are left out: those that no
    dialect reads, those whose bytes were shed or whose month was dropped, and other projects'."""
    wanted = list(call_ids)
    if not wanted:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(_LINKS, {"project": project_id, "calls": wanted})
        stored = {
            call_id: _Stored(period, base_id, bytes(digest), response_type, bytes(data))
            for call_id, period, base_id, digest, response_type, data in cursor.fetchall()
        }
    payloads = _unpacked(stored)
    parts = {call_id: chains.split(payloads[call_id]) for call_id in wanted if call_id in payloads}
    pieces = _pieces(
        project_id,
        {stored[call_id].period for call_id in parts},
        {digest for skeleton, _ in parts.values() for digest in skeleton.digests()},
    )
    found = {}
    for call_id, (skeleton, response) in parts.items():
        if _is_whole(skeleton, pieces, stored[call_id].request_sha256):
            found[call_id] = Body(response, stored[call_id].response_type, skeleton, pieces)
        else:
            log.error("the stored request of call %s is damaged", call_id)
    return found


def _unpacked(stored: Mapping[UUID, _Stored]) -> dict[UUID, bytes]:
    """Payloads by call; bases before what rests on them."""
    payloads: dict[UUID, bytes] = {}
    for call_id in stored:
        chain = []
        at: UUID | None = call_id
        while at is not None and at not in payloads and at in stored:
            chain.append(at)
            at = stored[at].base_id
        for link in reversed(chain):
            base_id = stored[link].base_id
            if base_id is not None and base_id not in payloads:
                log.error("the stored bytes of call %s rest on call %s, which is not there", link, base_id)
                break
            try:
                payloads[link] = chains.payload_of(
                    stored[link].data, payloads[base_id] if base_id is not None else None
                )
            except chains.Undecodable as error:
                log.error("the stored bytes of call %s are damaged: %s", link, error)
                break
    return payloads


def _pieces(project_id: UUID, periods: set[date], digests: set[bytes]) -> dict[bytes, bytes]:
    rows = Piece.objects.filter(project_id=project_id, period__in=periods, sha256__in=digests)
    pieces = {}
    for digest, data in rows.values_list("sha256", "data"):
        try:
            pieces[bytes(digest)] = chains.piece_of(bytes(data))
        except chains.Undecodable as error:
            log.error("piece %s of project %s is damaged: %s", bytes(digest).hex(), project_id, error)
    return pieces


def _is_whole(skeleton: Skeleton, pieces: Mapping[bytes, bytes], digest: bytes) -> bool:
    whole = sha256()
    try:
        for part in skeleton.parts(pieces):
            whole.update(part)
    except KeyError:
        return False
    return whole.digest() == digest
