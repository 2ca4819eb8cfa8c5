"""Processes of a benchmark: started on given cores, waited for, measured, stopped.

Knows nothing of what they are. `$RATCHET_HOME/bench` holds their logs."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class CannotStart(RuntimeError):
    """A process ended, or did not answer in time; the sentence holds its last words."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A running process and its children."""

    def __init__(self, command: Sequence[str], *, log: Path, cores: Sequence[int], **variables: str) -> None:
        self.log = log
        pinned = ["taskset", "-c", ",".join(map(str, cores)), *command]
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches the benchmark only, which then stops its processes in order.
            self._process = subprocess.Popen(
                pinned,
                cwd=log.parent,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, url: str) -> None:
        """Until `url` answers anything below 500. Raises CannotStart."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(url):
            self.require_alive()
            if time.monotonic() > deadline:
                raise CannotStart(f"it did not answer within {START_TIMEOUT_S:.0f} s; log: {self.log}")
            time.sleep(0.05)

    def require_alive(self) -> None:
        """Raises CannotStart when the process has ended."""
        if self._process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise CannotStart(f"it ended with status {self._process.returncode}: {lines[-1][:200]}")

    def pin(self, cores: Sequence[int]) -> None:
        """Move all its threads to these cores."""
        for process in self._family():
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores)

    def memory_mb(self) -> float:
        """Resident memory of the process and its children, in MB of 10^6 bytes."""
        return sum(process.memory_info().rss for process in self._family()) / 1e6

    def cpu_s(self) -> float:
        """Processor time that all its threads have taken, to the nanosecond (psutil counts in hundredths)."""
        total = 0
        for process in self._family():
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
        return total / 1e9

    def _family(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what has not ended in time."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def running(
    command: Sequence[str], *, log: Path, cores: Sequence[int], **variables: str
) -> Iterator[Process]:
    """The process, stopped at the end whatever happens. Raises CannotStart for a missing program."""
    try:
        process = Process(command, log=log, cores=cores, **variables)
    except FileNotFoundError as error:
        raise CannotStart(f"{error.filename} is not installed") from None
    try:
        yield process
    finally:
        process.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.HTTPError:
        return False
