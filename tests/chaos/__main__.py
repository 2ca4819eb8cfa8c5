"""`make chaos`, as `python -m tests.chaos [--seed N]`: the experiment, its progress, its table.

Exits 1 on any violation, and then keeps the journals and logs; `$RATCHET_HOME/bench/chaos.json` has the figures."""

import argparse
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks.publish import Row, publish
from tests.chaos import experiment, faults
from tests.chaos.oracle import CRASHED, KINDS, Verdict, judge
from tests.chaos.product import Installation

SHOWN = 15


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="repeat the schedule of an earlier run")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    shape = faults.LONG
    # Also for a shell that started this in the background: what was started is ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    console.print(f"Seed {seed}: repeat this schedule with `make chaos SEED={seed}`")
    home = Path(os.environ.get("RATCHET_HOME") or ".ratchet").absolute()
    place = home / "chaos" / time.strftime("%Y%m%d-%H%M%S")
    console.print("Starting PostgreSQL and Redis of the experiment's own ...")
    installation = Installation.make(place / "home")
    began = time.monotonic()
    try:
        evidence = _run(console, installation, place / "traffic", shape, seed)
        console.print(f"Drained in {evidence.drain_s:.1f} s; comparing journals with rows ...")
        verdict = judge(evidence)
    finally:
        installation.delete()
    rows = _rows(verdict, evidence, shape, seed, time.monotonic() - began)
    holds = publish("chaos", rows, command=f"make chaos SEED={seed}")
    for kind, sentences in verdict.violations.items():
        for sentence in sentences[:SHOWN]:
            console.print(f"[red]{kind}[/red]: {sentence}", highlight=False)
        if len(sentences) > SHOWN:
            console.print(f"[red]{kind}[/red]: and {len(sentences) - SHOWN} more")
    if not holds:
        console.print(f"Journals and logs: {place / 'traffic'}")
    return 0 if holds else 1


def _run(
    console: Console, installation: Installation, folder: Path, shape: faults.Shape, seed: int
) -> experiment.Evidence:
    columns = (
        TextColumn("{task.completed:>7.0f} requests"),
        BarColumn(),
        TextColumn("{task.fields[kills]:>3} kills"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=shape.requests, kills=0, doing="starting")
        last_line = time.monotonic()

        def say(now: experiment.Progress) -> None:
            nonlocal last_line
            if now.requests:
                progress.update(bar, completed=now.requests, kills=now.kills, doing=now.doing)
            else:
                progress.update(bar, doing=now.doing)
            if not console.is_terminal and time.monotonic() - last_line > 15:
                console.print(
                    f"{now.elapsed_s:6.0f} s  {now.requests} requests  {now.kills} kills  {now.doing}"
                )
                last_line = time.monotonic()

        return experiment.run(installation, folder, shape, seed=seed, say=say)


def _rows(
    verdict: Verdict, evidence: experiment.Evidence, shape: faults.Shape, seed: int, seconds: float
) -> list[Row]:
    kills = evidence.kills
    rows = [
        Row("seed", seed, "", "", True),
        Row("requests", verdict.requests, "", f">= {shape.requests}", verdict.requests >= shape.requests),
        Row("kill -9 of gateway, ingest and worker", kills, "", f">= {shape.kills}", kills >= shape.kills),
        Row("pieces of feedback accepted", verdict.feedback, "", "", True),
        Row("call rows", verdict.rows, "", "", True),
    ]
    for kind in KINDS:
        count = len(verdict.violations[kind])
        rows.append(Row(kind if kind == CRASHED else f"requests {kind}", count, "", "0", count == 0))
    rows += [
        Row(
            "calls served on a full disk and not recorded",
            verdict.lost_on_full_disk,
            "",
            "counted in loss rows",
            True,
        ),
        Row("records in loss rows, disk full", verdict.counted_losses, "", "", True),
        Row("records without bytes in loss rows, disk full", verdict.counted_sheds, "", "", True),
        Row("calls in flight at a kill (gateway_died)", verdict.outcomes["gateway_died"], "", "", True),
        Row("clock jumps (needs a C compiler)", int(evidence.has_clock), "1 = yes", "", True),
        Row("full disk by a file system of its own", int(evidence.is_disk_real), "1 = yes", "", True),
        Row("spool drained and calls stitched after the end", round(evidence.drain_s, 1), "s", "", True),
        Row("whole experiment", round(seconds), "s", "", True),
    ]
    return rows


if __name__ == "__main__":
    sys.exit(main())
