"""`make bench-feedback`: how long does a signal take to be accepted, which means that it is on the disk?

One gateway process on the first core, the load generator on the second; an open loop of signals that are due at
a constant rate, so that a wait for the disk also counts for those behind it. Every signal that was accepted must be in
the spool afterwards. `--short` publishes nothing."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from telemetry.records import SignalRecord
from telemetry.spool import segments
from tests.benchmarks.load import Outcome, Plan
from tests.benchmarks.measuring import REPOSITORY
from tests.benchmarks.pinned import CannotStart, free_port
from tests.benchmarks.publish import Row, publish, show
from tests.benchmarks.ratchet import Installation, installation

RATE = 500
CONNECTIONS = 64
P99_MS = 10.0
ROUNDS = 5
SIGNAL = {
    "response_id": "chatcmpl-4711",
    "name": "resolved",
    "value": True,
    "observed_at": "2026-11-24T09:30:00Z",
}


def send(port: int, headers: dict[str, str], seconds: float, core: int) -> Outcome:
    """One round of the load generator. Raises CannotStart when it fails."""
    plan = Plan(
        port=port, path="/v1/feedback", headers=headers, body=SIGNAL, connections=CONNECTIONS, seconds=seconds,
        warm_up_s=0.5, rate=RATE, status=202,
    )  # fmt: skip
    done = subprocess.run(
        ["taskset", "-c", str(core), sys.executable, "-m", "tests.benchmarks.load"],
        cwd=REPOSITORY, input=json.dumps(asdict(plan)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise CannotStart(f"the load generator: {done.stderr.strip()[-200:]}")
    return Outcome(**json.loads(done.stdout))


def measure(home: Installation, seconds: float) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))
    with home.gateways(cores[:1]) as ([process], door):
        before_s = process.cpu_s()
        rounds = [send(door.port, dict(door.headers), seconds, cores[-1]) for _ in range(ROUNDS)]
        cpu_us = (process.cpu_s() - before_s) / sum(outcome.sent for outcome in rounds) * 1e6
    sent, errors = sum(outcome.sent for outcome in rounds), sum(outcome.errors for outcome in rounds)
    kept = sum(
        isinstance(entry.record, SignalRecord)
        for segment in segments(home.home / "spool")
        for entry in segment.read()
    )
    ordered = sorted(rounds, key=lambda outcome: outcome.p99_ms)
    middle, worst = ordered[len(ordered) // 2], ordered[-1]
    for outcome in rounds:
        if outcome.first_error:
            print(outcome.first_error)
    return [
        Row(
            f"accepted at {RATE}/s: median, middle of {ROUNDS} rounds",
            round(middle.p50_ms, 2),
            "ms",
            "",
            True,
        ),
        Row(
            "p99, middle of the rounds",
            round(middle.p99_ms, 2),
            "ms",
            f"< {P99_MS:g}",
            middle.p99_ms < P99_MS,
        ),
        Row("p99, worst of the rounds", round(worst.p99_ms, 2), "ms", "", True),
        Row("the gateway's CPU, for one signal", round(cpu_us), "us", "", True),
        Row("refused or unanswered", errors, "", "0", errors == 0),
        Row("on the disk afterwards", kept, "signals", f"{sent:,}", kept == sent),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one second a round; publishes nothing")
    options = parser.parse_args()
    folder = Path(os.environ.get("RATCHET_HOME", ".ratchet")).absolute() / "bench"
    # Nobody is called: the upstream's port only has to be one.
    with installation(folder / "feedback-home", free_port()) as home:
        rows = measure(home, 1.0 if options.short else 10.0)
    if options.short:
        show(rows)
        return 0
    return 0 if publish("feedback", rows) else 1


if __name__ == "__main__":
    sys.exit(main())
