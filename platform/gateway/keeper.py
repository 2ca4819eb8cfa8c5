"""Keeps the gateway's snapshot up to date, on a thread of its own: loads it at the start, when PostgreSQL says that
something changed, and every POLL_INTERVAL_S in case that was missed.

While PostgreSQL is away the last snapshot goes on serving: this process's own, or after a start the one that was kept
on disk. Does not know what is in a snapshot."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

import psycopg
from django.db import DatabaseError

from gateway.snapshot import EMPTY, Source
from gateway.snapshot_file import SnapshotFile

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 5.0
RECONNECT_INTERVAL_S = 0.5


class SnapshotKeeper:
    """Keeps `current` up to date, and a copy of it in `file`."""

    def __init__(
        self,
        source: Source,
        file: SnapshotFile,
        *,
        process: str,
        on_shipped: Callable[[Mapping[str, tuple[int, int]]], None],
    ) -> None:
        self.current = EMPTY
        self.is_loaded = False
        """Whether `current` is a snapshot of the installation, however old."""
        self.loads = 0
        self.failures = 0
        self._confirmed_at_s = time.monotonic()
        self._source = source
        self._file = file
        self._process = process
        self._on_shipped = on_shipped
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="snapshot", daemon=True)

    @property
    def age_s(self) -> float:
        """Seconds since PostgreSQL last said what `current` says; since the start when it never did."""
        return time.monotonic() - self._confirmed_at_s

    def start(self) -> None:
        """Begin loading; `is_loaded` tells when the first snapshot is there."""
        self._thread.start()

    def stop(self) -> None:
        """Stop soon. The thread may be waiting for PostgreSQL, so it is not waited for."""
        self._is_stopped.set()

    def _keep(self) -> None:
        is_away = False
        while not self._is_stopped.is_set():
            try:
                self._load()
                if is_away:
                    log.info("routes are loaded again")
                is_away = False
                self._source.wait(POLL_INTERVAL_S)
            except Exception as error:  # whatever it is, the calls go on with what is known
                self.failures += 1
                if not is_away:
                    is_expected = isinstance(error, DatabaseError | psycopg.Error)
                    log.warning(
                        "routes cannot be loaded, serving those known so far: %s",
                        error,
                        exc_info=not is_expected,
                    )
                    self._fall_back()
                is_away = True
                self._source.close()
                self._is_stopped.wait(RECONNECT_INTERVAL_S)
        self._source.close()

    def _load(self) -> None:
        asked_at_s = time.monotonic()
        self.current = self._source.load()
        self._confirmed_at_s = asked_at_s
        self.is_loaded = True
        self.loads += 1
        self._file.keep(self.current)
        self._on_shipped(self._source.shipped(self._process))

    def _fall_back(self) -> None:
        """Serve what is on disk, unless something newer is known."""
        if self.is_loaded or (kept := self._file.read()) is None:
            return
        # A clock that was set back must not make the file younger than this process.
        age_s = max(0.0, time.time() - kept.confirmed_at_s)
        self._confirmed_at_s -= age_s
        self.current = kept.snapshot
        self.is_loaded = True
        log.warning("keys and routes are those that were known %.0f s ago", age_s)
