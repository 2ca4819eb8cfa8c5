"""The benchmark's own processes: mock upstream and load generator do what a measurement needs of them."""

import os
from pathlib import Path

import pytest

from tests.benchmarks.gateway_rows import CONNECTIONS, Figures
from tests.benchmarks.measuring import Times, prepared
from tests.benchmarks.peers import Portkey
from tests.benchmarks.pinned import CannotStart, running

MOMENT = Times(warm_up_s=0.0, closed_s=0.1, open_s=0.1, long_words=1)


def test_a_direct_call_is_measured_under_every_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    core = min(os.sched_getaffinity(0))
    figures = Figures(name="direct")
    with prepared(MOMENT, [core, core]) as bench:
        mock = bench.mock.pid
        # The mock in the place of a gateway, so that every part runs.
        bench.measure(figures, bench.direct, bench.mock, rounds=1)
    assert figures.problem == ""
    assert set(figures.closed) == {
        (mode, connections) for mode in (False, True) for connections in CONNECTIONS
    }
    assert all(outcome.answered > 0 for outcome in figures.closed.values())
    assert figures.sampled == figures.sampled_exact > 0
    measured = (figures.kept_per_second, figures.cpu_per_chunk_us, figures.memory_mb)
    assert all(value is not None and value > 0 for value in measured)
    assert None not in (figures.added_p50_ms, figures.added_p99_ms, figures.added_first_byte_ms)
    assert not Path(f"/proc/{mock}").exists()


def test_a_process_that_ends_says_its_last_words(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo first; echo 'the port is taken'; exit 3"]
    with (
        running(command, log=tmp_path / "log", cores=[min(os.sched_getaffinity(0))]) as process,
        pytest.raises(CannotStart, match="status 3: the port is taken"),
    ):
        process.wait_ready("http://127.0.0.1:1/")


def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotStart, match=r"could not be installed.*npm"):
        Portkey().install(tmp_path, print)
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(CannotStart, match="could not be installed: no network"):
        Portkey().install(tmp_path, print)


def test_processor_time_grows_with_work(tmp_path: Path) -> None:
    command = ["sh", "-c", "while true; do :; done"]
    with running(command, log=tmp_path / "log", cores=[min(os.sched_getaffinity(0))]) as process:
        before = process.cpu_s()
        while process.cpu_s() < before + 0.02:
            process.require_alive()
        assert process.memory_mb() > 0.1
