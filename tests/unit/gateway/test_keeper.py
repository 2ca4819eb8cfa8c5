"""What serves while PostgreSQL cannot be asked: the latest that is known, wherever that lies."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from gateway.keeper import SnapshotKeeper
from gateway.snapshot import EMPTY, Caller, Snapshot
from gateway.snapshot_file import SnapshotFile
from tests.fakes.served_gateway import wait_until

KNOWN = replace(EMPTY, callers={b"digest": Caller(uuid4(), uuid4())})
KEY = b"k" * 44


class Database:
    """PostgreSQL, which may be away (None)."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self.snapshot = snapshot
        self.changed = threading.Event()

    def load(self) -> Snapshot:
        if self.snapshot is None:
            raise psycopg.OperationalError("connection refused")
        return self.snapshot

    def shipped(self, process: str) -> Mapping[str, tuple[int, int]]:
        return {}

    def wait(self, timeout_s: float) -> None:
        self.changed.wait(0.02)

    def close(self) -> None:
        pass


@pytest.fixture
def file(tmp_path: Path) -> SnapshotFile:
    return SnapshotFile(tmp_path / "snapshot.sealed", key=KEY)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.keeper.RECONNECT_INTERVAL_S", 0.02)


@contextmanager
def keeping(database: Database, file: SnapshotFile) -> Iterator[SnapshotKeeper]:
    keeper = SnapshotKeeper(database, file, process="gateway-1", on_shipped=lambda shipped: None)
    keeper.start()
    yield keeper
    keeper.stop()
    keeper._thread.join(5)


def test_with_nothing_on_disk_nothing_is_known_until_the_database_answers(file: SnapshotFile) -> None:
    database = Database(None)
    with keeping(database, file) as keeper:
        wait_until(lambda: keeper.failures > 1)
        assert not keeper.is_loaded
        database.snapshot = KNOWN
        wait_until(lambda: keeper.is_loaded)
        assert keeper.current == KNOWN


def test_after_a_start_the_file_serves_until_the_database_answers(
    file: SnapshotFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with keeping(Database(KNOWN), file):
        wait_until(lambda: file.read() is not None)
    an_hour_ago_s = time.time() - 3600
    os.utime(tmp_path / "snapshot.sealed", (an_hour_ago_s, an_hour_ago_s))
    database = Database(None)
    with keeping(database, file) as keeper:
        wait_until(lambda: keeper.is_loaded)
        assert keeper.current == KNOWN
        wait_until(lambda: keeper.failures > 2)
        assert (keeper.loads, round(keeper.age_s, -2)) == (0, 3600)
        assert caplog.text.count("keys and routes are those that were known 3600 s ago") == 1
        database.snapshot = EMPTY
        wait_until(lambda: keeper.loads > 0)
        assert keeper.current == EMPTY
        assert keeper.age_s < 60
    kept = file.read()
    assert kept is not None
    assert kept.snapshot == EMPTY


def test_a_database_that_goes_away_leaves_what_this_process_knows(file: SnapshotFile) -> None:
    database = Database(KNOWN)
    with keeping(database, file) as keeper:
        wait_until(lambda: keeper.loads > 0)
        database.snapshot = None
        wait_until(lambda: keeper.failures > 0)
        file.keep(EMPTY)
        failures = keeper.failures
        wait_until(lambda: keeper.failures > failures + 1)
        assert keeper.current == KNOWN
