"""`make bench-stitching`: are the calls of a run found together, and no stranger's among them?

Works on a database of its own, which it makes and drops. Each traffic is stitched twice, in projects of their own:
by what the calls say alone, and with the run ids that one gateway's live tracker would have told."""

import os
import random
import sys
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import django

from tests.benchmarks.publish import Grid, Line, Row, publish

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from accounts.models import ApiKey  # noqa: E402 - all that follows needs Django's settings
from gateway.run_names import named_run  # noqa: E402
from kernel import clock  # noqa: E402
from kernel.ids import uuid7  # noqa: E402
from telemetry import runs  # noqa: E402
from telemetry.models import Call, CallOutcome  # noqa: E402
from telemetry.stitching import extend, roll, said  # noqa: E402
from telemetry.tracker import RunTracker, response_anchor  # noqa: E402
from tests.benchmarks import stitching_hard as hard  # noqa: E402
from tests.benchmarks.bench_ingest import database, tenant  # noqa: E402
from tests.benchmarks.stitching_score import Placed, owners, score  # noqa: E402
from tests.benchmarks.stitching_traffic import (  # noqa: E402
    Scenario,
    Timed,
    airline,
    alike,
    interleave,
    openai,
)

WIDTH = 32
SEED = 11
EACH = 40
RECALL = 0.99
COLUMNS = (
    ("calls", ""), ("runs", ""), ("precision", ""), ("recall", ""), ("strays", ""), ("strays held for sure", ""),
)  # fmt: skip


@dataclass(frozen=True)
class Stitched:
    placed: list[Placed]
    parents: int
    """Runs of sub-agents."""
    parents_found: int
    parents_wrong: int
    calls_per_second: float


def stitch(traffic: Sequence[Timed], *, with_hints: bool) -> Stitched:
    """Store the calls in a project of their own, stitch them, and look where they are."""
    key = tenant()
    calls = stored(traffic, key, with_hints=with_hints)
    began = time.perf_counter()
    runs.stitch_pending(project_id=key.project_id, now=clock.now())
    seconds = time.perf_counter() - began
    steps = {
        call.id: call.step
        for call in Call.objects.filter(project_id=key.project_id).select_related("step__run__parent_step")
        if call.step is not None
    }
    truth = {call.id: timed.exchange for call, timed in zip(calls, traffic, strict=True)}
    placed = [
        Placed(truth[call.id].kind, truth[call.id].run, step.run_id, step.run.confidence == 1)
        for call in calls
        if (step := steps[call.id])
    ]
    owner = owners(placed)
    due = {exchange.run: exchange.parent for exchange in truth.values() if exchange.parent}
    found = {
        owner[step.run_id]: owner[step.run.parent_step.run_id]
        for step in steps.values()
        if step.run.parent_step is not None
    }
    right = sum(found.get(run) == parent for run, parent in due.items())
    return Stitched(placed, len(due), right, len(found) - right, len(calls) / seconds)


def stored(traffic: Sequence[Timed], key: ApiKey, *, with_hints: bool) -> list[Call]:
    """The rows of the calls, as ingest writes them."""
    hints = live_hints(traffic, key) if with_hints else {}
    now = clock.now() - timedelta(hours=1) - timedelta(seconds=max(timed.ended_at for timed in traffic))
    calls = []
    for number, timed in enumerate(traffic):
        exchange, hashes = timed.exchange, roll(timed.exchange.messages)
        calls.append(
            Call(
                id=uuid7(), project_id=key.project_id, api_key=key, process="bench", boot="bench",
                sequence=number, method="POST", dialect=exchange.dialect, path="/v1/bench",
                model_requested="gpt-4o", retry_count=exchange.retry_count, run_name=exchange.name,
                run_hint=hints.get(number), continues=exchange.continues, trace_id=exchange.trace_id,
                response_id=exchange.response_id, prefix_hash=hashes.prefix,
                parent_hashes=list(hashes.parents), repeat_hashes=list(hashes.repeats),
                result_hashes=list(hashes.results),
                echo_hash=extend(hashes.prefix, exchange.answer) if exchange.answer else None,
                said_hash=said(exchange.answer) if exchange.answer else None,
                outcome=CallOutcome.COMPLETE if exchange.answer else CallOutcome.UPSTREAM_ERROR,
                started_at=now + timedelta(seconds=timed.started_at),
                ended_at=now + timedelta(seconds=timed.ended_at),
            )
        )  # fmt: skip
    Call.objects.bulk_create(random.Random(SEED).sample(calls, len(calls)))
    return calls


def live_hints(traffic: Sequence[Timed], key: ApiKey) -> dict[int, UUID]:
    """What a gateway tells each caller, by the call's number, as requests and answers come by."""
    tracker, hints = RunTracker(), dict[int, UUID]()
    moments = [(timed.started_at, number, False) for number, timed in enumerate(traffic)]
    moments += [(timed.ended_at, number, True) for number, timed in enumerate(traffic)]
    for _, number, is_end in sorted(moments):
        exchange = traffic[number].exchange
        hashes = roll(exchange.messages)
        if not is_end and exchange.name:
            hints[number] = named_run(key.id, exchange.name)
        elif not is_end:
            guess = tracker.open(
                key.id, hashes, exchange.retry_count, continues=exchange.continues, trace_id=exchange.trace_id
            )
            hints[number] = guess.run_id
        elif exchange.answer:
            tracker.answered(key.id, hints[number], extend(hashes.prefix, exchange.answer))
            if exchange.dialect == "responses" and exchange.response_id:
                tracker.answered(key.id, hints[number], response_anchor(exchange.response_id))
    return hints


def measure(
    name: str, scenarios: Sequence[Scenario], lost_kinds: Sequence[str] = ()
) -> tuple[list[Row], list[Grid]]:
    """Rows with targets for what can be known; what cannot must not be held for sure. `lost_kinds` cannot be known,
    nor can runs that are alike word for word for a while."""
    traffic = interleave(scenarios, width=WIDTH, seed=SEED)
    lost = alike(traffic) | {timed.exchange.run for timed in traffic if timed.exchange.kind in lost_kinds}
    untold, told = (stitch(traffic, with_hints=with_hints) for with_hints in (False, True))
    rows = [*rows_of(name, untold, lost), *rows_of(f"{name}, told live", told, lost)]
    kinds = dict.fromkeys(call.kind for call in untold.placed)
    if len(kinds) == 1:
        return rows, []
    lines = {kind: line_of(kind, untold.placed) for kind in sorted(kinds)}
    grids = [
        Grid(
            f"{name}: {part}",
            COLUMNS,
            [line for kind, line in lines.items() if (kind in lost_kinds) == is_lost],
        )
        for part, is_lost in (("can be known", False), ("cannot be known", True))
    ]
    return rows, grids


def rows_of(name: str, stitched: Stitched, lost: Set[str]) -> list[Row]:
    known = score(stitched.placed, lambda call: call.truth not in lost)
    unknown = score(stitched.placed, lambda call: call.truth in lost)
    recall, sure = known.recall or 0, known.sure_strays + unknown.sure_strays
    rows = [
        Row(f"{name}: precision of links", known.precision, "", "", True),
        Row(f"{name}: recall of links", recall, "", f">= {RECALL}", recall >= RECALL),
        Row(f"{name}: strays, of {known.calls:,}", known.strays, "calls", "0", not known.strays),
        Row(f"{name}: strays where nobody can know, of {unknown.calls:,}", unknown.strays, "calls", "", True),
        Row(f"{name}: strays of either sort that are held for sure", sure, "calls", "0", not sure),
        Row(f"{name}: stitched", round(stitched.calls_per_second), "calls/s", "", True),
    ]
    if stitched.parents:
        missed, wrong = stitched.parents - stitched.parents_found, stitched.parents_wrong
        rows += [
            Row(
                f"{name}: sub-agents without their parent, of {stitched.parents}",
                missed, "runs", "0", not missed,
            ),
            Row(f"{name}: runs with a wrong parent", wrong, "runs", "0", not wrong),
        ]  # fmt: skip
    return rows


def line_of(kind: str, placed: Sequence[Placed]) -> Line:
    of = score(placed, lambda call: call.kind == kind)
    return Line(kind, (of.calls, of.runs, of.precision, of.recall, of.strays, of.sure_strays))


def main() -> int:
    with database():
        parts = [
            measure("airline", airline()),
            measure("OpenAI's", openai()),
            measure("hard", hard.scenarios(each=EACH, seed=SEED), [*map(hard.name_of, hard.UNKNOWABLE)]),
        ]
    rows = [row for part, _ in parts for row in part]
    return 0 if publish("stitching", rows, [grid for _, part in parts for grid in part]) else 1


if __name__ == "__main__":
    sys.exit(main())
