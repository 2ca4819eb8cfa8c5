"""Digests of all stored bytes of a project, as `python -m tests.chaos.bodies PROJECT`: one JSON array a line.

A process of its own, because the product's reading door goes by Django's settings, which belong to the experiment's
home. Digests are all that the oracle needs: it can make every answer again."""

import hashlib
import sys
from collections.abc import Iterator

import django
import orjson

django.setup()

from telemetry.models import CallBody  # noqa: E402


def bodies(project_id: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Call id, request and response of every call whose bytes are stored: the only place that knows how."""
    for body in CallBody.objects.filter(project_id=project_id).iterator(500):
        yield str(body.call_id), bytes(body.request), bytes(body.response)


if __name__ == "__main__":
    for call_id, request, response in bodies(sys.argv[1]):
        line = (
            call_id,
            hashlib.sha256(request).hexdigest(),
            len(response),
            hashlib.sha256(response).hexdigest(),
        )
        sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
