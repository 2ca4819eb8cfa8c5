"""Ratchet under a benchmark: a real gateway process, its PostgreSQL, a project with an upstream, its spool.

Capture is on as in production: records go to the spool on the disk. Ingest does not run, so that the spool can be
counted against the requests that were sent; `drain` then lets it run alone. Knows the home's layout, and how the
product starts what it embeds; the gateway itself is only ever a process with a port."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from config import embedded, environment
from telemetry.records import BeginRecord, EndRecord
from telemetry.spool import segments
from tests.benchmarks.peers import Door
from tests.benchmarks.pinned import CannotStart, Process, free_port, running

MANAGE = Path(__file__).parents[2] / "manage.py"
SPOOL_MAX_BYTES = 32 << 30
"""A soak's records stay until they have been counted."""
DRAIN_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class SpoolCount:
    """What a spool holds."""

    begun: int
    ended: int
    """Calls that have both their begin and their end record."""
    gaps: int
    """Sequence numbers that are missing between the first and the last of a boot."""
    size_bytes: int


class Installation:
    """A home of its own, made afresh."""

    def __init__(self, home: Path, upstream_port: int) -> None:
        self.home = home
        self._variables = {
            "RATCHET_HOME": str(home),
            "DATABASE_URL": "",
            "REDIS_URL": "",
            "RATCHET_SPOOL_MAX_BYTES": str(SPOOL_MAX_BYTES),
            "OTEL_EXPORTER_OTLP_ENDPOINT": "",
        }
        self._manage("migrate", "--verbosity", "0")
        upstream = f"http://127.0.0.1:{upstream_port}/v1"
        created = json.loads(self._manage("create_project", "bench", "--upstream", upstream))
        self._headers = {"authorization": f"Bearer {created['api_key']}"}

    @contextmanager
    def gateways(self, cores: Sequence[int], processes: int = 1) -> Iterator[tuple[list[Process], Door]]:
        """Gateway processes behind one port, with an empty spool. Raises CannotStart."""
        shutil.rmtree(self.home / "spool", ignore_errors=True)
        port = free_port()
        command = [sys.executable, "-m", "gateway", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--share-port"] if processes > 1 else []
        started: list[Process] = []
        try:
            for number in range(processes):
                log = self.home / f"gateway-{number}.log"
                started.append(Process(command, log=log, cores=cores, **self._variables))
            # One of them answers for the port; that the others are up shows in the spool.
            spool = self.home / "spool"
            for process in started:
                _wait_until(lambda: len(list(spool.glob("gateway-*/*.seg"))) == processes, process, 30)
                process.wait_ready(f"http://127.0.0.1:{port}/readyz")
            yield started, Door(port=port, headers=self._headers)
        finally:
            for process in started:
                process.stop()

    def count_spool(self) -> SpoolCount:
        """Read every record; call it when the gateways have ended."""
        begun, ended, gaps, size_bytes = set(), set(), 0, 0
        next_sequence: dict[tuple[str, str], int] = {}
        for segment in segments(self.home / "spool"):
            size_bytes += segment.path.stat().st_size
            boot = (segment.process, segment.boot)
            for entry in segment.read():
                gaps += entry.sequence - next_sequence.get(boot, 0)
                next_sequence[boot] = entry.sequence + 1
                if isinstance(entry.record, BeginRecord):
                    begun.add(entry.record.call_id)
                elif isinstance(entry.record, EndRecord):
                    ended.add(entry.record.call_id)
        return SpoolCount(len(begun), len(begun & ended), gaps, size_bytes)

    def drain(self, core: int) -> float:
        """Let ingest move the spool into PostgreSQL; the seconds that took, its start not counted."""
        spool, full = self.home / "spool", self.home / "spool-full"
        shutil.rmtree(full, ignore_errors=True)
        spool.rename(full)
        spool.mkdir()
        command = [sys.executable, str(MANAGE), "ingest"]
        with running(command, log=self.home / "ingest.log", cores=[core], **self._variables) as ingest:
            _wait_until(lambda: (spool / "ingest.lock").exists(), ingest, 30)
            began = time.monotonic()
            for folder in full.glob("gateway-*"):
                folder.rename(spool / folder.name)
            _wait_until(lambda: not any(spool.glob("*/*.seg")), ingest, DRAIN_TIMEOUT_S)
            return time.monotonic() - began

    def _manage(self, *arguments: str) -> str:
        command = [sys.executable, str(MANAGE), *arguments]
        done = subprocess.run(
            command, env={**os.environ, **self._variables}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CannotStart(f"{' '.join(arguments[:2])}: {done.stderr.strip()[-300:]}")
        return done.stdout


@contextmanager
def installation(home: Path, upstream_port: int) -> Iterator[Installation]:
    """Embedded servers, schema and project, made afresh; at the end only the logs are left."""
    told = environment.read({"RATCHET_HOME": str(home)})
    embedded.stop(told)  # what a killed benchmark left
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    embedded.start(told)
    try:
        yield Installation(home, upstream_port)
    finally:
        embedded.stop(told)
        # Where the data are: for root, the embedded server keeps them elsewhere behind a link.
        for folder in ((home / "postgres").resolve(), home / "spool", home / "spool-full"):
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until(condition: Callable[[], bool], process: Process, timeout_s: float) -> None:
    """Raises CannotStart when the process ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        process.require_alive()
        if time.monotonic() > deadline:
            raise CannotStart(f"it was not where it should be after {timeout_s:.0f} s; log: {process.log}")
        time.sleep(0.02)
