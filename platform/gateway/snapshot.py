"""What the gateway knows of the installation: keys, aliases, upstreams, in memory, always whole.

A thread of its own loads it: at the start, when PostgreSQL says that something changed, and every
POLL_INTERVAL_S in case that was missed. While PostgreSQL is away the last snapshot goes on serving. Decides
nothing about calls."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import psycopg
from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.db import DatabaseError, connection

from accounts.selectors import live_keys
from gateway.limits import Limit
from gateway.models import Upstream as UpstreamRow
from gateway.routing import ProjectRoutes, Timeouts, Upstream
from kernel.notify import ROUTES_CHANGED
from release.routing import Route
from release.selectors import routes
from telemetry.models import SpoolPosition

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 5.0
RECONNECT_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the API key and its project."""

    key_id: UUID
    project_id: UUID


@dataclass(frozen=True)
class Snapshot:
    """One consistent view. Never changed, only replaced."""

    callers: Mapping[bytes, Caller]
    """By the digest of the API key."""
    projects: Mapping[UUID, ProjectRoutes]
    limits: Mapping[UUID, tuple[Limit, ...]]


EMPTY = Snapshot(callers={}, projects={}, limits={})


class Source(Protocol):
    """Where snapshots come from."""

    def load(self) -> Snapshot: ...

    def shipped(self, process: str) -> Mapping[str, tuple[int, int]]:
        """Boot -> segment and byte offset up to which a process's spool is in the database."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when something may have changed, at the latest after `timeout_s`."""
        ...

    def close(self) -> None: ...


class DatabaseSource:
    """PostgreSQL, over this thread's Django connection. Listening begins before the first load, so no change
    is missed."""

    def load(self) -> Snapshot:
        self._listen()
        by_project: dict[UUID, dict[str, Route]] = {}
        for route in routes():
            by_project.setdefault(UUID(route.project_id), {})[route.alias] = route
        cipher = Fernet(settings.KEYRING.credential_key)
        upstreams = {row.project_id: _target(row, cipher) for row in UpstreamRow.objects.all()}
        return Snapshot(
            callers={key.digest: Caller(UUID(key.key_id), UUID(key.project_id)) for key in live_keys()},
            projects={
                project_id: ProjectRoutes(
                    deployments=by_project.get(project_id, {}),
                    upstreams=(upstreams[project_id],) if project_id in upstreams else (),
                )
                for project_id in {*by_project, *upstreams}
            },
            limits={},
        )

    def shipped(self, process: str) -> Mapping[str, tuple[int, int]]:
        rows = SpoolPosition.objects.filter(process=process).order_by("segment")
        return {row.boot: (row.segment, row.offset_bytes) for row in rows}

    def wait(self, timeout_s: float) -> None:
        for _ in self._listen().notifies(timeout=timeout_s, stop_after=1):
            pass

    def close(self) -> None:
        connection.close()

    def _listen(self) -> "psycopg.Connection[Any]":
        is_new = connection.connection is None
        connection.ensure_connection()
        listening: psycopg.Connection[Any] = connection.connection
        if is_new:
            listening.execute(f"LISTEN {ROUTES_CHANGED}")
        return listening


def _target(row: UpstreamRow, cipher: Fernet) -> Upstream:
    credential: str | None = None
    try:
        credential = cipher.decrypt(bytes(row.credential)).decode() if row.credential else ""
    except InvalidToken:
        log.error("the credential of upstream %s cannot be read: was keyring.json replaced?", row.base_url)
    return Upstream(
        id=row.id,
        name=row.base_url,
        base_url=row.base_url,
        credential=credential,
        timeouts=Timeouts(
            connect_s=settings.ENVIRONMENT.connect_timeout_s,
            first_byte_s=settings.ENVIRONMENT.first_byte_timeout_s,
            idle_s=settings.ENVIRONMENT.idle_timeout_s,
        ),
    )


class SnapshotKeeper:
    """Keeps `current` up to date on a thread of its own."""

    def __init__(
        self, source: Source, *, process: str, on_shipped: Callable[[Mapping[str, tuple[int, int]]], None]
    ) -> None:
        self.current = EMPTY
        self.is_loaded = False
        self.loads = 0
        self.failures = 0
        self._source = source
        self._process = process
        self._on_shipped = on_shipped
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="snapshot", daemon=True)

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
                self.current = self._source.load()
                self.is_loaded = True
                self.loads += 1
                self._on_shipped(self._source.shipped(self._process))
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
                is_away = True
                self._source.close()
                self._is_stopped.wait(RECONNECT_INTERVAL_S)
        self._source.close()
