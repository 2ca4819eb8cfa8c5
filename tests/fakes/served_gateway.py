"""The gateway on a real port, in this process, over a snapshot that the test writes instead of PostgreSQL."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import UUID

import httpx
import uvloop

from accounts import keys
from gateway.app import Gateway, Limits
from gateway.limits import Limit
from gateway.routing import ProjectRoutes, Timeouts, Upstream
from gateway.snapshot import EMPTY, Caller, Snapshot, Webhook
from gateway.snapshot_file import SnapshotFile
from gateway.wire.server import Server
from kernel.ids import uuid7
from release.routing import Route
from telemetry.metrics import Rules
from telemetry.otel import Tracing
from telemetry.records import BeginRecord, EndRecord, Record
from telemetry.spool import Spool, segments

PEPPER = b"p" * 32
NO_REDIS = "unix:///nowhere/redis.sock"
"""Limits are counted by the gateway alone then."""


class WrittenSource:
    """A snapshot source that a test writes to."""

    def __init__(self) -> None:
        self.snapshot = EMPTY
        self._changed = threading.Event()

    def load(self) -> Snapshot:
        self._changed.clear()
        return self.snapshot

    def shipped(self, process: str) -> Mapping[str, tuple[int, int]]:
        return {}

    def wait(self, timeout_s: float) -> None:
        self._changed.wait(0.05)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Tenant:
    """A project and its key."""

    project_id: UUID
    key_id: UUID
    key: str


@dataclass
class ServedGateway:
    """A gateway under test: `origin` to call it, `add_tenant` to let somebody in, `records` to see what it kept."""

    app: Gateway
    source: WrittenSource
    spool_folder: Path
    origin: str
    timeouts: Timeouts

    def add_tenant(
        self, *, upstream: str = "", credential: str = "", routes: Mapping[str, Route] | None = None
    ) -> Tenant:
        tenant = Tenant(uuid7(), uuid7(), keys.mint())
        old = self.source.snapshot
        upstreams = (
            [
                Upstream(
                    id=uuid7(),
                    name="provider",
                    base_url=upstream,
                    credential=credential,
                    timeouts=self.timeouts,
                )
            ]
            if upstream
            else []
        )
        projects = ProjectRoutes(deployments=dict(routes or {}), upstreams=tuple(upstreams))
        self.source.snapshot = replace(
            old,
            callers={
                **old.callers,
                keys.digest(tenant.key, PEPPER): Caller(tenant.key_id, tenant.project_id),
            },
            projects={**old.projects, tenant.project_id: projects},
        )
        self._settle()
        return tenant

    def set_routes(self, tenant: Tenant, routes: ProjectRoutes, *, limits: Sequence[Limit] = ()) -> None:
        """Replace everything that the tenant's project may call."""
        old = self.source.snapshot
        self.source.snapshot = replace(
            old,
            projects={**old.projects, tenant.project_id: routes},
            limits={**old.limits, tenant.project_id: tuple(limits)},
        )
        self._settle()

    def set_rules(self, tenant: Tenant, rules: Rules) -> None:
        """What the tenant's feedback is held against."""
        old = self.source.snapshot
        self.source.snapshot = replace(old, rules={**old.rules, tenant.project_id: rules})
        self._settle()

    def add_webhook(self, address: str, webhook: Webhook) -> None:
        """Let a business system send signals under the address."""
        old = self.source.snapshot
        self.source.snapshot = replace(old, webhooks={**old.webhooks, address: webhook})
        self._settle()

    def remove_tenant(self, tenant: Tenant) -> None:
        digest = keys.digest(tenant.key, PEPPER)
        callers = {key: caller for key, caller in self.source.snapshot.callers.items() if key != digest}
        self.source.snapshot = replace(self.source.snapshot, callers=callers)
        self._settle()

    def _settle(self) -> None:
        wait_until(lambda: self.app._keeper.current is self.source.snapshot)

    def records(self) -> list[Record]:
        return [entry.record for segment in segments(self.spool_folder) for entry in segment.read()]

    def call(self, call_id: str) -> tuple[BeginRecord, EndRecord]:
        """The two records of a call, once both are there."""
        found: list[Any] = []

        def both() -> bool:
            found[:] = [r for r in self.records() if getattr(r, "call_id", None) == UUID(call_id)]
            return len(found) == 2

        wait_until(both)
        return found[0], found[1]


def wait_until(condition: Any, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served_gateway(
    folder: Path,
    *,
    first_byte_timeout_s: float = 20.0,
    idle_timeout_s: float = 20.0,
    max_spool_bytes: int = 1 << 30,
    tracing: Tracing | None = None,
    limits: Limits | None = None,
    open_spool: Callable[[], Spool] | None = None,
    redis_url: str = NO_REDIS,
) -> Iterator[ServedGateway]:
    """Serve a gateway of its own while the block runs."""
    source = WrittenSource()
    timeouts = Timeouts(first_byte_s=first_byte_timeout_s, idle_s=idle_timeout_s)
    app = Gateway(
        source=source,
        snapshot_file=SnapshotFile(folder / "snapshot.sealed", key=PEPPER),
        open_spool=open_spool or (lambda: Spool(folder, max_bytes=max_spool_bytes)),
        limits=limits or Limits(timeouts=timeouts, has_peers=redis_url != NO_REDIS),
        key_pepper=PEPPER,
        tracing=tracing or Tracing(),
        redis_url=redis_url,
    )
    ready: Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()

    async def serve() -> None:
        app.open()
        server = Server(app.serve)
        await server.start("127.0.0.1", 0, backlog=1024)
        stop = asyncio.Event()
        ready.put((server.port, asyncio.get_running_loop(), stop))
        await stop.wait()
        await server.stop(grace_s=1.0)
        await app.close()

    thread = threading.Thread(target=uvloop.run, args=(serve(),), daemon=True)
    thread.start()
    port, loop, stop = ready.get(timeout=20)
    origin = f"http://127.0.0.1:{port}"
    wait_until(lambda: httpx.get(f"{origin}/readyz").status_code == 200)
    yield ServedGateway(app, source, folder, origin, timeouts)
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    assert not thread.is_alive()
