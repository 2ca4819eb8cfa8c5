"""Running the trainer: one document in, progress lines while it works, one result out, in a process of its
own.

The process gets a clean environment: no address of a database, no broker, nobody's keys. What the documents
mean is the callers' business. While the process works, the lease on its row is renewed; without the lease,
it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernel import clock
from learning import leases
from learning.leases import Lease
from learning.models import LeasedJob

TRAINER: Sequence[str] = (sys.executable, "-P", "-m", "workers.trainer")
"""The trainer's command line, before the command and the folder."""
POLL_INTERVAL_S = 0.2
RENEW_INTERVAL_S = 3.0
STOP_TIMEOUT_S = 10.0
"""Between SIGTERM and SIGKILL."""
_LAST_WORDS = 2000


class ProcessFailed(Exception):
    """The process ended without a good result; the sentence says what it reported."""


def run(
    model: type[LeasedJob],
    held: Lease,
    *,
    command: str,
    folder: Path,
    threads: int = 2,
    trainer: Sequence[str] = TRAINER,
) -> dict[str, Any]:
    """Run `trainer command folder` to its end and return its result.json.

    Raises ProcessFailed, or LeaseLost after the process has been killed."""
    log = folder / "trainer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*trainer, command, str(folder)],
            cwd=folder,
            env=clean_environment(folder, threads),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _watch(process, model, held, folder / "progress.jsonl")
    finally:
        _stop(process)
    return _result(folder, process.returncode, log)


def clean_environment(folder: Path, threads: int) -> dict[str, str]:
    """All that the trainer is told of the world."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith(("CUDA_", "NVIDIA_"))}
    count = str(threads)
    return kept | {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        # Waiting threads sleep instead of spinning: on two cores shared with other work, a training step took
        # 4 to 8 s this way, and 20 to 50 s the other.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }


def _watch(process: "subprocess.Popen[bytes]", model: type[LeasedJob], held: Lease, progress: Path) -> None:
    """Wait for the end; hand on progress and renew the lease meanwhile. Raises LeaseLost."""
    size, renew_due = 0, time.monotonic() + RENEW_INTERVAL_S
    while process.poll() is None:
        time.sleep(POLL_INTERVAL_S)
        grown = progress.stat().st_size if progress.exists() else 0
        if grown != size or time.monotonic() >= renew_due:
            leases.renew(
                model, held, now=clock.now(), progress=_latest_line(progress) if grown != size else None
            )
            size, renew_due = grown, time.monotonic() + RENEW_INTERVAL_S
    leases.renew(model, held, now=clock.now(), progress=_latest_line(progress))


def _latest_line(path: Path) -> Mapping[str, Any] | None:
    """The last whole line; None while there is none."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        line = json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None
    return line if isinstance(line, dict) else None


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the process and whatever it has started; nothing to do for one that has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _result(folder: Path, returncode: int, log: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict):
        words = log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:].strip()
        raise ProcessFailed(
            f"the trainer ended with code {returncode} and no result; its last words: {words or 'none'}"
        )
    if result.get("status") != "succeeded":
        error = result.get("error")
        told = (
            f"{error.get('type')}: {error.get('message')}" if isinstance(error, dict) else "no reason given"
        )
        raise ProcessFailed(f"the trainer failed: {told}")
    return result
