"""`make bench-ingest`: how fast does ingest drain a spool, and how little room do an agent's calls take?

Works on a database of its own, which it makes and drops. Storage: the recorded airline runs, as the demo's agent sends
them, against a table of raw requests and answers; PostgreSQL measures both. Speed: small chat calls, begin and end of
about 2 KB together, one ingest process, beside the rate at which one gateway core captured when that was measured."""

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import django

from tests.benchmarks.publish import Row, publish

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.conf import settings  # noqa: E402 - all that follows needs Django's settings
from django.db import connection  # noqa: E402

from accounts.models import ApiKey, Organization, Project  # noqa: E402
from config import embedded  # noqa: E402
from demo import recorded  # noqa: E402
from kernel import clock  # noqa: E402
from kernel.ids import uuid7  # noqa: E402
from telemetry.bodies import bodies_of  # noqa: E402
from telemetry.ingest import Ingester  # noqa: E402
from telemetry.models import Call  # noqa: E402
from telemetry.records import BeginRecord, EndRecord  # noqa: E402
from telemetry.spool import Spool  # noqa: E402

CALLS = 60_000
DRAIN_PER_SECOND = 10_000
"""The target while nobody has measured the gateway: twice what one of its cores should capture."""
SMALL = 1000
"""Bytes of a small call's request; its answer is as long."""
STORED = ("telemetry_callbody", "telemetry_piece")


@contextmanager
def database() -> Iterator[None]:
    """A database of its own on the home's server."""
    started = embedded.start(settings.ENVIRONMENT)
    name = connection.creation.create_test_db(verbosity=0, autoclobber=True)
    try:
        yield
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)
        embedded.stop(settings.ENVIRONMENT, servers=started)


def tenant() -> ApiKey:
    now = clock.now()
    organization = Organization.objects.create(name=f"bench {uuid7()}", created_at=now)
    project = Project.objects.create(organization=organization, name="bench", created_at=now)
    return ApiKey.objects.create(
        project=project, name="agent", prefix="rk_bench", digest=uuid7().bytes * 2, created_at=now
    )


def _call(
    key: ApiKey, request: bytes, response: bytes, *, stream: bool = False
) -> tuple[BeginRecord, EndRecord]:
    """The two records that a gateway writes of a call."""
    call_id, now = uuid7(), time.time_ns() // 1000
    begin = BeginRecord(
        call_id=call_id, project_id=key.project_id, api_key_id=key.id, started_at=now, dialect="chat",
        method="POST", path="/v1/chat/completions", model_requested="gpt-4o", stream=stream, run_hint=uuid7(),
        prefix_hash=call_id.bytes * 2, request=request,
    )  # fmt: skip
    end = EndRecord(
        call_id=call_id, outcome="complete", status_code=200, response_id=f"chatcmpl-{call_id.hex}",
        finish_reason="stop", prompt_tokens=200, completion_tokens=40, echo_hash=uuid7().bytes * 2,
        upstream_id=key.project_id, first_byte_at=now + 400, ended_at=now + 900, response=response,
        response_type="text/event-stream" if stream else "application/json",
    )  # fmt: skip
    return begin, end


def airline() -> Iterator[tuple[bytes, bytes, bool]]:
    """Request, answer and whether it streamed, of every call of the recorded runs, interleaved as in the demo."""
    rng = random.Random(7)
    turns = [_turns(run["traj"], stream=number % 4 == 0) for number, run in enumerate(recorded.load_runs())]
    while turns:
        run = rng.choice(turns[:8])
        try:
            yield next(run)
        except StopIteration:
            turns.remove(run)


def _turns(messages: list[dict[str, Any]], *, stream: bool) -> Iterator[tuple[bytes, bytes, bool]]:
    history: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "assistant":
            whole = recorded.completion(history, message)
            request = {"messages": history, "model": "gpt-4o"} | ({"stream": True} if stream else {})
            sent = json.dumps(
                request, ensure_ascii=False, separators=(",", ":")
            ).encode()  # as the SDK sends it
            events = b"".join(recorded.events(whole, with_usage=False))
            yield sent, events if stream else json.dumps(whole).encode(), stream
            answer = whole["choices"][0]["message"]
            message = {name: value for name, value in answer.items() if value is not None}
        history = [*history, message]


def measure_storage(folder: Path) -> list[Row]:
    key, spool = tenant(), Spool(folder)
    sent: dict[UUID, tuple[bytes, bytes]] = {}
    for request, response, stream in airline():
        records = _call(key, request, response, stream=stream)
        for record in records:
            spool.append(record)
        sent[records[0].call_id] = request, response
    spool.close()
    Ingester(folder).ingest_once(now=clock.now())
    bodies = bodies_of(key.project_id, sent)
    wrong = sum(
        call_id not in bodies or (bodies[call_id].request, bodies[call_id].response) != call
        for call_id, call in sent.items()
    )
    raw, raw_plain = (_raw_bytes(sent, storage) for storage in ("EXTENDED", "EXTERNAL"))
    stored = sum(_relation_bytes(table) for table in STORED)
    size = sum(len(request) + len(response) for request, response in sent.values())
    return [
        Row("airline: calls", len(sent), "calls", "", True),
        Row("airline: requests and answers", round(size / 1e6, 2), "MB", "", True),
        Row("airline: calls that do not come back byte for byte", wrong, "calls", "0", wrong == 0),
        Row("airline: raw table", round(raw / 1e6, 2), "MB", "", True),
        Row("airline: raw table, uncompressed", round(raw_plain / 1e6, 2), "MB", "", True),
        Row("airline: stored", round(stored / 1e6, 2), "MB", "", True),
        Row(
            "airline: times smaller than the raw table",
            round(raw / stored, 1),
            "times",
            ">= 8",
            raw >= 8 * stored,
        ),
        Row("airline: times smaller than uncompressed", round(raw_plain / stored, 1), "times", "", True),
    ]


def _raw_bytes(sent: dict[UUID, tuple[bytes, bytes]], storage: str) -> int:
    """What a table of whole requests and answers takes."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS raw_body")
        cursor.execute("CREATE TABLE raw_body (call_id uuid PRIMARY KEY, request bytea, response bytea)")
        for column in ("request", "response"):
            cursor.execute(f"ALTER TABLE raw_body ALTER COLUMN {column} SET STORAGE {storage}")
        with cursor.copy("COPY raw_body FROM STDIN") as copy:
            for call_id, (request, response) in sent.items():
                copy.write_row((call_id, request, response))
    return _relation_bytes("raw_body")


def _relation_bytes(table: str) -> int:
    """Table, indexes and TOAST, partitions included."""
    with connection.cursor() as cursor:
        cursor.execute(f"VACUUM {table}")
        cursor.execute(
            "SELECT pg_total_relation_size(%s) + coalesce(sum(pg_total_relation_size(inhrelid)), 0)"
            " FROM pg_inherits WHERE inhparent = %s::regclass",
            [table, table],
        )
        return int(cursor.fetchone()[0])


def measure_speed(folder: Path, calls: int) -> list[Row]:
    key, spool, rng = tenant(), Spool(folder), random.Random(11)
    append_s = 0.0
    for _ in range(calls):
        records = _call(key, *_small(rng))
        began = time.perf_counter()
        for record in records:
            spool.append(record)
        append_s += time.perf_counter() - began
    spool.close()
    append_us = append_s / calls / 2 * 1e6

    gc.freeze()  # as `manage.py ingest` does
    gc.set_threshold(100_000)
    ingester = Ingester(folder)
    began, cpu_began = time.perf_counter(), time.process_time()
    ingester.ingest_once(now=clock.now())
    per_second = calls / (time.perf_counter() - began)
    cpu_us = (time.process_time() - cpu_began) / calls * 1e6
    stored = Call.objects.filter(project_id=key.project_id).count()
    captured = _captured_per_second()
    target = 2 * captured if captured else DRAIN_PER_SECOND
    return [
        Row("append of one record of about 1 KB", round(append_us, 1), "us", "< 15", append_us < 15),
        Row("drain: calls stored, once each", stored, "calls", f"{calls:,}", stored == calls),
        Row("drain: ingest's own CPU, for one call", round(cpu_us, 1), "us", "", True),
        Row("drain: one gateway core captures", captured, "calls/s", "", True),
        Row(
            "drain: one ingest process",
            round(per_second),
            "calls/s",
            f">= {target:,.0f}",
            per_second >= target,
        ),
    ]


def _captured_per_second() -> float | None:
    """What one gateway core captured, from the last `make bench-gateway` of this home; None before the first."""
    results = Path(settings.ENVIRONMENT.home) / "bench" / "gateway.json"
    if not results.exists():
        return None
    rows = json.loads(results.read_text())["rows"]
    return next(
        (row["value"] for row in rows if row["name"].startswith("captured requests on one core")), None
    )


def _small(rng: random.Random) -> tuple[bytes, bytes]:
    """A chat request and its answer; half of each differs from call to call."""
    words = [rng.randbytes(SMALL // 4).hex() for _ in range(2)]
    fixed = "You are the support desk of a lamp shop. Be brief, be kind. ".ljust(SMALL // 2, "x")
    request = {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": fixed}, {"role": "user", "content": words[0]}],
    }
    answer = recorded.completion([], {"role": "assistant", "content": words[1]})
    return json.dumps(request).encode(), json.dumps(answer).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS)
    options = parser.parse_args()
    with database(), tempfile.TemporaryDirectory() as folder:
        rows = measure_storage(Path(folder) / "airline")
        rows += measure_speed(Path(folder) / "small", options.calls)
    return 0 if publish("ingest", rows) else 1


if __name__ == "__main__":
    sys.exit(main())
