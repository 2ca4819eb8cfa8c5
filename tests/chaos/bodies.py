"""Digests of all stored bytes of a project, as `python -m tests.chaos.bodies PROJECT`: one JSON array a line.

A process of its own, because the product's reading door goes by Django's settings, which belong to the experiment's
home. Digests are all that the oracle needs: it can make every answer again."""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from uuid import UUID

import django
import orjson

django.setup()

from telemetry.bodies import bodies_of  # noqa: E402
from telemetry.models import Call  # noqa: E402

BATCH = 500


def bodies(project_id: UUID) -> Iterator[tuple[str, bytes, bytes]]:
    """Call id, request and response of every call whose bytes are stored: the only place that knows how."""
    ids = Call.objects.filter(project_id=project_id).order_by("started_at").values_list("id", flat=True)
    for batch in batched(ids.distinct().iterator(BATCH), BATCH):
        for call_id, body in bodies_of(project_id, batch).items():
            yield str(call_id), body.request, body.response


def batched(ids: Iterable[UUID], size: int) -> Iterator[list[UUID]]:
    """The ids, so many at a time."""
    remaining = iter(ids)
    while batch := list(islice(remaining, size)):
        yield batch


if __name__ == "__main__":
    for call_id, request, response in bodies(UUID(sys.argv[1])):
        line = (
            call_id,
            hashlib.sha256(request).hexdigest(),
            len(response),
            hashlib.sha256(response).hexdigest(),
        )
        sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
