"""`make bench-episodes`: how fast do calls become runs and episodes, and episodes a snapshot?

Works on a database of its own, which it makes and drops. Two worker processes share one project; what they do is what
the Celery task does. Ingest is not part of it (`bench_ingest` measures that). `--short` shows that it works."""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import django
import orjson

from tests.benchmarks.publish import Row, publish, show

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.conf import settings  # noqa: E402 - all that follows needs Django's settings
from django.db import connection  # noqa: E402

from accounts.models import ApiKey  # noqa: E402
from audit.actions import Actor  # noqa: E402
from demo import recorded  # noqa: E402
from kernel import clock  # noqa: E402
from kernel.ids import uuid7  # noqa: E402
from kernel.objects import ObjectStore  # noqa: E402
from learning import reward_specs, snapshots  # noqa: E402
from learning.episodes import due  # noqa: E402
from learning.models import DatasetSnapshot, Episode  # noqa: E402
from learning.rewards.spec import SUPPORT_DESK  # noqa: E402
from telemetry import runs, signals  # noqa: E402
from telemetry.ingest import Ingester  # noqa: E402
from telemetry.records import BeginRecord, EndRecord, SignalRecord  # noqa: E402
from telemetry.spool import Spool  # noqa: E402
from telemetry.stitching import extend, roll  # noqa: E402
from telemetry.stitching import said as said_of  # noqa: E402
from tests.benchmarks.bench_ingest import database, tenant  # noqa: E402

ACTOR = Actor.service("benchmark")
WORKERS = 2
SECONDS = 60
MEMORY_MB = 500
RUNS_A_SPOOL = 500


def live(key: ApiKey, count: int, folder: Path, *, first: int = 0) -> None:
    """Store the calls of `count` runs and an outcome for each, as gateways and ingest do."""
    recorded_runs = recorded.load_runs()
    for begin in range(first, first + count, RUNS_A_SPOOL):
        spool = Spool(folder / f"spool-{begin}")
        for number in range(begin, min(begin + RUNS_A_SPOOL, first + count)):
            _live_one(key, spool, recorded_runs[number % len(recorded_runs)]["traj"], number)
        spool.close()
        Ingester(folder / f"spool-{begin}").ingest_once(now=clock.now())


def _live_one(key: ApiKey, spool: Spool, trajectory: list[dict[str, Any]], number: int) -> None:
    history: list[dict[str, Any]] = []
    at = time.time_ns() // 1000 - 3_600_000_000
    call_id: UUID | None = None
    for message in trajectory:
        if message["role"] == "assistant":
            call_id, at = uuid7(), at + 1_000_000
            answer = recorded.completion(history, message)
            said = answer["choices"][0]["message"]
            hashes = roll(history)
            spool.append(BeginRecord(
                call_id=call_id, project_id=key.project_id, api_key_id=key.id, started_at=at, dialect="chat",
                method="POST", path="/v1/chat/completions", model_requested="gpt-4o", prefix_hash=hashes.prefix,
                parent_hashes=hashes.parents, repeat_hashes=hashes.repeats,
                result_hashes=hashes.results, request=orjson.dumps({"model": "gpt-4o", "messages": history}),
            ))  # fmt: skip
            spool.append(EndRecord(
                call_id=call_id, outcome="complete", status_code=200, finish_reason="stop", prompt_tokens=2000,
                completion_tokens=60, echo_hash=extend(hashes.prefix, said), said_hash=said_of(said),
                ended_at=at + 900_000,
                response=orjson.dumps(answer), response_type="application/json",
            ))  # fmt: skip
            message = {name: value for name, value in said.items() if value is not None}
        elif message["role"] == "user" and len(history) < 2:
            message = {**message, "content": f"{message['content']} (ticket {number})"}
        history.append(message)
    if call_id is not None:
        for name, value in (("resolved", number % 3 > 0), ("task", f"airline-{number % 50}")):
            spool.append(SignalRecord(
                signal_id=uuid7(), project_id=key.project_id, api_key_id=key.id, target_type="call_id",
                target=str(call_id), name=name, value=value, observed_at=at, received_at=at,
            ))  # fmt: skip


def long_run(calls: int) -> list[dict[str, Any]]:
    """An agent that goes on for `calls` turns."""
    turn = [
        {"role": "user", "content": "And the next one, please: " + "word " * 20},
        {"role": "assistant", "content": "Done. " + "reply " * 20},
    ]
    return turn * calls


def work(project_id: UUID) -> None:
    now = clock.now()
    runs.stitch_pending(project_id=project_id, now=now)
    signals.join_pending(project_id=project_id, now=now)
    due.build_due(project_id=project_id, now=now)


def together(count: int, do: Callable[[], None]) -> tuple[float, float]:
    """Run `do` in `count` processes; seconds until the last ends, and the largest memory of one in MB."""
    connection.close()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def measured() -> None:
        do()
        results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    began = time.perf_counter()
    processes = [context.Process(target=measured) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    took_s = time.perf_counter() - began
    if any(process.exitcode for process in processes):
        raise SystemExit("a worker failed; see above")
    return took_s, max(results.get() for _ in processes)


def measure_building(folder: Path, counts: list[int]) -> list[Row]:
    """One project that grows: the cost of a run at each of these sizes."""
    key = tenant()
    reward_specs.publish(
        project=key.project, name="desk", document=SUPPORT_DESK.to_dict(), actor=ACTOR, now=clock.now()
    )
    rows, lived, costs = [], 0, []
    for count in counts:
        live(key, count - lived, folder, first=lived)
        took_s, memory_mb = together(WORKERS, lambda: work(key.project_id))
        added, lived = count - lived, count
        costs.append(took_s / added)
        built = Episode.objects.filter(project=key.project).count()
        rows += [
            Row(f"{count:,} runs: episodes", built, "episodes", f"{count:,}", built == count),
            Row(
                f"{count:,} runs: the last {added:,} stitched, scored, built", round(took_s, 1), "s", "", True
            ),
            Row(f"{count:,} runs: for one run", round(1000 * took_s / added, 2), "ms", "", True),
            Row(f"{count:,} runs: memory of a worker", round(memory_mb), "MB", "", True),
        ]
    for_10_000_s = costs[-1] * 10_000
    rows.append(
        Row("10,000 runs at the last rate", round(for_10_000_s, 1), "s", "<= 60", for_10_000_s <= SECONDS)
    )
    growth = costs[-1] / costs[0]
    rows.append(Row("cost of a run, last size to first", round(growth, 2), "times", "<= 1.3", growth <= 1.3))
    return rows


def measure_long_run(folder: Path, calls: int) -> list[Row]:
    key = tenant()
    reward_specs.publish(
        project=key.project, name="desk", document=SUPPORT_DESK.to_dict(), actor=ACTOR, now=clock.now()
    )
    spool = Spool(folder / "long")
    _live_one(key, spool, long_run(calls), 1)
    spool.close()
    Ingester(folder / "long").ingest_once(now=clock.now())
    took_s, memory_mb = together(1, lambda: work(key.project_id))
    episode = Episode.objects.get(project=key.project)
    return [
        Row(f"a run of {calls:,} calls: steps", episode.step_count, "steps", f"{calls:,}", episode.step_count == calls),
        Row(f"a run of {calls:,} calls", round(took_s, 1), "s", "", True),
        Row(f"a run of {calls:,} calls: size", round(len(episode.payload) / 1e6, 2), "MB", "", True),
        Row(f"a run of {calls:,} calls: memory", round(memory_mb), "MB", "", True),
    ]  # fmt: skip


def measure_snapshot(folder: Path, count: int) -> list[Row]:
    """The built episodes, copied under other run ids until there are enough."""
    settings.LARGE_OBJECTS = ObjectStore(folder / "objects")
    source = Episode.objects.order_by("created_at").first()
    if source is None:
        raise SystemExit("no episode was built")
    project = source.project
    columns = [field.column for field in Episode._meta.local_fields if field.column not in {"id", "run_id"}]
    names = ", ".join(f'"{column}"' for column in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO learning_episode (id, run_id, {names}) SELECT gen_random_uuid(), gen_random_uuid(), {names}"
            " FROM learning_episode, generate_series(1, %s) WHERE project_id = %s LIMIT %s",
            [count, project.id, max(0, count - Episode.objects.filter(project=project).count())],
        )

    def freeze() -> None:
        snapshots.freeze(project=project, name="all", actor=ACTOR, now=clock.now() + timedelta(seconds=1))

    took_s, memory_mb = together(1, freeze)
    frozen = DatasetSnapshot.objects.get(project=project, name="all")
    read_s, read_mb = together(1, lambda: snapshots.verify(frozen))
    most_s = SECONDS * count / 100_000
    return [
        Row("snapshot: episodes", frozen.episode_count, "episodes", f"{count:,}", frozen.episode_count == count),
        Row("snapshot: freezing it", round(took_s, 1), "s", f"<= {most_s:g}", took_s <= most_s),
        Row("snapshot: memory", round(memory_mb), "MB", f"< {MEMORY_MB}", memory_mb < MEMORY_MB),
        Row("snapshot: verifying it", round(read_s, 1), "s", "", True),
        Row("snapshot: memory while verifying", round(read_mb), "MB", "", True),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes, and nothing is published")
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 11_000], help="sizes of the project")
    parser.add_argument("--snapshot", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=2000, help="of the long run")
    options = parser.parse_args()
    sizes = ([100, 300], 1000, 200) if options.short else (options.runs, options.snapshot, options.calls)
    with database(), tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        rows = measure_building(folder, sizes[0])
        rows += measure_snapshot(folder, sizes[1])
        rows += measure_long_run(folder, sizes[2])
    if options.short:
        show(rows)
        return 0
    return 0 if publish("episodes", rows) else 1


if __name__ == "__main__":
    sys.exit(main())
