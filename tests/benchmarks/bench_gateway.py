"""`make bench-gateway`: what the gateway costs, with capture on, beside a direct call and beside its peers.

Every gateway is one process on the machine's first core; load generator and mock upstream share the second. What
is measured how: docs/benchmarks.md. `--only NAME ...` and `--short` are for working on the gateway: they publish
nothing."""

import argparse
import os
import sys
import time
from dataclasses import replace

from tests.benchmarks import gateway_rows
from tests.benchmarks.gateway_rows import Figures, Kept, Scaling, Soak
from tests.benchmarks.measuring import SHORT, Bench, Times, prepared
from tests.benchmarks.peers import PEERS, Peer
from tests.benchmarks.pinned import CannotStart
from tests.benchmarks.publish import publish, show
from tests.benchmarks.ratchet import Installation, installation

SOAK_STEPS = 10


def measure_peer(bench: Bench, peer: Peer) -> Figures:
    """Install, start, measure, stop. What goes wrong is the figures' problem."""
    figures = Figures(name=peer.name, language=peer.language)
    folder = bench.folder / "peers" / peer.name
    folder.mkdir(parents=True, exist_ok=True)
    process = None
    try:
        peer.install(folder, lambda line: bench.say(f"{peer.name}: {line} ..."))
        process, door = peer.launch(folder, bench.direct.port, bench.gateway_core)
        process.wait_ready(f"http://127.0.0.1:{door.port}/")
        bench.measure(figures, door, process, bench.times.peer_rounds)
    except (CannotStart, OSError) as error:
        figures.problem = str(error)[:200].replace("|", "/").replace("\n", " ")
    finally:
        if process:
            process.stop()
    return figures


def measure_ours(bench: Bench, home: Installation) -> tuple[Figures, Kept]:
    """The same for Ratchet; then its spool is counted, and ingest empties it."""
    figures = Figures(name="Ratchet, capturing", language="Python")
    with home.gateways([bench.gateway_core]) as ([process], door):
        bench.measure(figures, door, process, bench.times.our_rounds)
    bench.begin("counting the spool, draining it", 1)
    kept = count(home, figures.sent)
    drained_per_second = round(figures.sent / home.drain(bench.gateway_core))
    return figures, replace(kept, drained_per_second=drained_per_second)


def count(home: Installation, sent: int) -> Kept:
    """What the spool holds of `sent` requests."""
    held = home.count_spool()
    return Kept(
        sent=sent,
        incomplete=abs(sent - held.begun) + (held.begun - held.ended),
        gaps=held.gaps,
        bytes_per_call=held.size_bytes / max(1, sent),
    )


def soak(bench: Bench, home: Installation) -> Soak:
    """A long closed loop over eight connections; every fifth part of it is streams."""
    step = bench.times.soak_requests // SOAK_STEPS
    bench.begin(f"{bench.times.soak_requests:,} requests", SOAK_STEPS)
    memory_mb, outcomes = [], []
    began = time.monotonic()
    with home.gateways([bench.gateway_core]) as ([process], door):
        for number in range(SOAK_STEPS):
            outcomes.append(
                bench.load(door, is_stream=number % 5 == 0, connections=8, requests=step, seconds=120)
            )
            memory_mb.append(process.memory_mb())
        seconds = time.monotonic() - began
    bench.begin("counting the spool", 1)
    sent = sum(outcome.sent for outcome in outcomes)
    return Soak(
        requests=sent,
        errors=sum(outcome.errors for outcome in outcomes),
        early_requests=step,
        early_memory_mb=memory_mb[0],
        late_memory_mb=memory_mb[-1],
        per_second=sent / seconds,
        kept=count(home, sent),
    )


def try_scaling(bench: Bench, home: Installation) -> Scaling | None:
    """None when two processes cannot be had."""
    try:
        return scaling(bench, home)
    except CannotStart as error:
        bench.say(f"two processes on one port: {error}")
        return None


def scaling(bench: Bench, home: Installation) -> Scaling:
    """One process, then two behind one port; gateway, load and upstream are all free to use both cores."""
    cores = [bench.gateway_core, bench.load_core]
    bench.begin("1 process and 2", 2)
    bench.mock.pin(cores)
    per_second, taken_s = [], 0.0
    for processes in (1, 2):
        with home.gateways(cores, processes) as (started, door):
            before = sum(process.cpu_s() for process in [bench.mock, *started])
            outcome = bench.load(
                door,
                is_stream=False,
                connections=64,
                seconds=bench.times.scaling_s,
                warm_up_s=bench.times.warm_up_s,
                cores=cores,
            )
            if processes == 1:
                taken_s = sum(process.cpu_s() for process in [bench.mock, *started]) - before + outcome.cpu_s
                taken_s /= outcome.sent
        per_second.append(outcome.per_second)
    bench.mock.pin([bench.load_core])
    # The second figure's spool: both processes wrote to it, each to a folder of its own.
    return Scaling(
        one_per_second=per_second[0],
        two_per_second=per_second[1],
        ceiling=min(2.0, len(cores) / taken_s / per_second[0]),
        kept=count(home, outcome.sent),
    )


def main() -> int:
    """Measure, publish; 0 when every target holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--soak", action="store_true", help="with a long run of 1,000,000 requests")
    parser.add_argument(
        "--short", action="store_true", help="every part for a moment only; publishes nothing"
    )
    parser.add_argument("--only", nargs="*", metavar="PEER", help="these peers, or none; publishes nothing")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if options.only is None or peer.name in options.only]
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("bench-gateway needs two cores: one for the gateway, one for load and upstream")
    # This process and the database that it starts stay off the gateway's core.
    os.sched_setaffinity(0, cores[1:])
    with prepared(SHORT if options.short else Times(), cores) as bench:
        direct = Figures(name="direct")
        bench.measure(direct, bench.direct, None, rounds=0)
        bench.begin("a home for Ratchet", 1)
        try:
            with installation(bench.folder / "ratchet", bench.direct.port) as home:
                ours, kept = measure_ours(bench, home)
                gain = try_scaling(bench, home)
                long_run = soak(bench, home) if options.soak else None
        except CannotStart as error:
            sys.exit(f"Ratchet could not be measured: {error}")
        others = [measure_peer(bench, peer) for peer in peers]
    rows = gateway_rows.rows(ours, others, kept, gain, long_run)
    grids = gateway_rows.grids([direct, ours, *others])
    if options.short or options.only is not None:
        show(rows, grids)
        return 0
    return 0 if publish("gateway", rows, grids) else 1


if __name__ == "__main__":
    sys.exit(main())
