"""One experiment: start the product between a provider and its clients, let the schedule happen, wait until all is
drained, and hand the journals to the oracle.

Owns the order of things and the journal of what was done to whom and when (`faults.jsonl`); what is right is
`tests.chaos.oracle`'s."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg
import redis

from config import embedded
from tests.chaos.clients import Settings
from tests.chaos.clock import SetClock
from tests.chaos.disk import SpoolDisk
from tests.chaos.faults import (
    GATEWAYS,
    ClockJump,
    DiskFull,
    Fault,
    Flush,
    Kill,
    Outage,
    Pause,
    Planned,
    Shape,
    schedule,
    shelters_gateways,
)
from tests.chaos.journal import Journal, LineCount
from tests.chaos.product import ROOT, Installation, Product

TICK_S = 0.05
DRAIN_TIMEOUT_S = 180.0
LONGEST_S = 1800.0
"""An experiment that has not reached its number of requests by then ends anyway."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the experiment is."""

    doing: str
    elapsed_s: float
    requests: int
    kills: int


Say = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an experiment leaves behind for the oracle."""

    folder: Path
    """`clients.jsonl`, `provider.jsonl`, `faults.jsonl`, and the processes' logs."""
    installation: Installation
    project_id: str
    has_clock: bool
    is_disk_real: bool
    is_drained: bool
    """Whether the spool is empty and every call has its step."""
    drain_s: float
    kills: int
    died: Sequence[str]
    """Processes that ended by themselves."""


@dataclass
class _Far:
    """The provider and the clients: processes of the experiment, not of the product."""

    folder: Path
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"tests.chaos.{name}", *arguments]
        path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log
            )

    def check(self) -> None:
        """Raise RuntimeError when one has ended: the experiment would show nothing."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise RuntimeError(
                    f"the experiment's {name} ended; its last words are in {self.folder / name}.log"
                )

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(150)
        process.kill()
        process.wait()


def run(
    installation: Installation,
    folder: Path,
    shape: Shape,
    *,
    seed: int,
    say: Say = lambda progress: None,
    gateway_wrapper: Sequence[str] = (),
) -> Evidence:
    """Run one experiment; its journals lie in `folder`. `gateway_wrapper`: see `Product`."""
    folder.mkdir(parents=True)
    upstream_port, *ports = _free_ports(1 + GATEWAYS)
    project_id, api_key = installation.make_project(folder.name, f"http://127.0.0.1:{upstream_port}/v1")
    clock = SetClock.build(folder)
    disk = SpoolDisk(installation.env.spool, shape.spool_disk_bytes)
    product = Product(installation, ports=ports, logs=folder, clock=clock, gateway_wrapper=gateway_wrapper)
    far = _Far(folder)
    doing = _Doing(installation, product, disk, clock, Journal(folder / "faults.jsonl"))
    settings = Settings(ports=ports, api_key=api_key, seed=seed, clients=shape.clients, think_s=shape.think_s)
    settings.write(folder / "settings.json")
    disk.mount()
    try:
        far.start("provider", str(upstream_port), str(folder / "provider.jsonl"))
        product.start()
        far.start("clients", str(folder / "settings.json"), str(folder / "clients.jsonl"))
        begun = LineCount(folder / "clients.jsonl", b'"request_sha256"')
        refused = LineCount(folder / "clients.jsonl", b'"result":"refused"')
        planned = schedule(shape, seed, with_clock=clock is not None)

        def count() -> int:
            far.check()
            return begun.now() - refused.now()

        asyncio.run(_happen(doing, planned, shape, count, say))
        far.stop("clients")
        began = time.monotonic()
        is_drained = _drain(installation, product, project_id, doing.died, say)
        return Evidence(
            folder=folder,
            installation=installation,
            project_id=project_id,
            has_clock=clock is not None,
            is_disk_real=disk.is_mounted,
            is_drained=is_drained,
            drain_s=time.monotonic() - began,
            kills=doing.kills,
            died=doing.died,
        )
    finally:
        for name in list(far.running):
            far.stop(name)
        product.kill()
        disk.unmount()


async def _happen(
    doing: "_Doing", planned: Sequence[Planned], shape: Shape, count: Callable[[], int], say: Say
) -> None:
    """Every fault at its time, until the schedule is through and enough requests have been made."""
    began = time.monotonic()

    async def in_turn(several: Sequence[Planned]) -> None:
        for one in several:
            await asyncio.sleep(began + one.at_s - time.monotonic())
            await doing.do(one.fault)

    async def watch() -> None:
        while True:
            doing.look_after()
            elapsed_s, requests = time.monotonic() - began, count()
            say(Progress(doing.words, elapsed_s, requests, doing.kills))
            if (is_through.is_set() and requests >= shape.requests) or elapsed_s > LONGEST_S:
                return
            await asyncio.sleep(0.5)

    is_through = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        kills = [one for one in planned if isinstance(one.fault, Kill)]
        await asyncio.gather(
            in_turn([one for one in planned if one not in kills]), *(in_turn([kill]) for kill in kills)
        )
        is_through.set()
        await watching


class _Doing:
    """Does what the schedule says, and writes down when it began and ended."""

    def __init__(
        self,
        installation: Installation,
        product: Product,
        disk: SpoolDisk,
        clock: SetClock | None,
        journal: Journal,
    ) -> None:
        self._installation = installation
        self._product = product
        self._disk = disk
        self._clock = clock
        self._journal = journal
        self._processes = {process.name: process for process in product.processes}
        self._now: dict[int, str] = {}
        # Held while gateways must not be killed (see `faults`); a kill that comes upon it waits.
        self._shelter = asyncio.Lock()
        self.kills = 0
        self.died: list[str] = []

    @property
    def words(self) -> str:
        return ", ".join(self._now.values()) or "traffic"

    async def do(self, fault: Fault) -> None:
        self._now[id(fault)] = _words(fault)
        async with self._shelter if _needs_shelter(fault) else contextlib.nullcontext():
            if shelters_gateways(fault):
                await asyncio.to_thread(self._product.wait_ready)
            began = time.monotonic()
            await self._happen(fault)
        if isinstance(fault, Kill) and fault.target.startswith("gateway"):
            await asyncio.to_thread(self._processes[fault.target].wait_ready)
        self._journal.write(fault=type(fault).__name__, began=began, ended=time.monotonic(), **asdict(fault))
        del self._now[id(fault)]

    async def _happen(self, fault: Fault) -> None:
        match fault:
            case Kill(target):
                self._processes[target].kill_9()
                self._processes[target].start()
                self.kills += 1
            case Pause(target, seconds):
                self._processes[target].send(signal.SIGSTOP)
                await asyncio.sleep(seconds)
                self._processes[target].send(signal.SIGCONT)
            case Outage():
                await self._take_away(fault)
            case Flush():
                with redis.Redis(
                    unix_socket_path=str(self._installation.env.sockets / "redis.sock")
                ) as client:
                    client.flushall()
            case DiskFull(seconds):
                await self._fill_disk(seconds)
            case ClockJump(offset_s, seconds):
                assert self._clock is not None
                self._clock.set(offset_s)
                await asyncio.sleep(seconds)
                self._clock.set(0)

    def look_after(self) -> None:
        """Start again what ended by itself, as a supervisor does; that it did is a finding."""
        for process in self._processes.values():
            if process.has_died:
                self.died.append(process.name)
                process.start()

    async def _take_away(self, outage: Outage) -> None:
        if outage.is_crash:
            await asyncio.to_thread(self._installation.crash_postgres)
        else:
            await asyncio.to_thread(embedded.stop, self._installation.env, servers=outage.servers)
        await asyncio.sleep(outage.seconds)
        await asyncio.to_thread(embedded.start, self._installation.env)

    async def _fill_disk(self, seconds: float) -> None:
        pids = [gateway.pid for gateway in self._product.gateways]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._disk.fill(pids)
            await asyncio.sleep(TICK_S)
        self._disk.free(pids)
        # Not ready before they have written down what they lost; a kill would take that with it.
        await asyncio.to_thread(self._product.wait_ready)


def _needs_shelter(fault: Fault) -> bool:
    is_gateway_killed = isinstance(fault, Kill) and fault.target.startswith("gateway")
    return is_gateway_killed or shelters_gateways(fault)


def _words(fault: Fault) -> str:
    match fault:
        case Kill(target):
            return f"kill -9 {target}"
        case Pause(target, seconds):
            return f"{target} stands still for {seconds:g} s"
        case Outage(servers, seconds, is_crash):
            return f"{' and '.join(servers)} {'crashed' if is_crash else 'stopped'} for {seconds:g} s"
        case Flush():
            return "FLUSHALL"
        case DiskFull(seconds):
            return f"the spool's disk is full for {seconds:g} s"
        case ClockJump(offset_s, _):
            return f"clocks jump by {offset_s:+d} s"


def _drain(installation: Installation, product: Product, project_id: str, died: list[str], say: Say) -> bool:
    """End the gateways in order, then wait until ingest has emptied the spool and every call is stitched."""
    for gateway in product.gateways:
        gateway.stop()
    died += [process.name for process in (product.ingest, product.worker, product.beat) if process.has_died]
    began = time.monotonic()
    with psycopg.connect(installation.env.database_url, autocommit=True) as connection:
        while time.monotonic() < began + DRAIN_TIMEOUT_S:
            waiting = len(list(installation.env.spool.glob("*/*.seg")))
            unstitched = connection.execute(
                "SELECT count(*) FROM telemetry_call WHERE project_id = %s AND stitched_at IS NULL",
                [project_id],
            ).fetchone()
            assert unstitched is not None
            if not waiting and not unstitched[0]:
                return True
            words = f"draining: {waiting} segments, {unstitched[0]} calls without a step"
            say(Progress(words, time.monotonic() - began, 0, 0))
            time.sleep(0.2)
    return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
