"""What the gateway says about itself: `/healthz`, `/readyz`, `/metrics`.

Only reads what the other parts know of themselves; the text format of the numbers is `gateway.metrics`."""

import time
from dataclasses import dataclass

import orjson

from gateway.breaker import Breakers, State
from gateway.errors import Refused
from gateway.keeper import SnapshotKeeper
from gateway.lag import ShippingLag
from gateway.limiter import Limiter
from gateway.metrics import Family, Metrics, by, exposition
from gateway.run_memory import RunMemory
from gateway.wire.exchange import Exchange
from telemetry.spool import Spool


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The parts that are asked how they do."""

    spool: Spool
    keeper: SnapshotKeeper
    lag: ShippingLag
    metrics: Metrics
    breakers: Breakers
    limiter: Limiter
    run_memory: RunMemory
    max_lag_s: float
    """A gateway whose oldest record waits longer than this to be shipped says that it is not ready."""

    def answer(self, path: str, exchange: Exchange) -> None:
        """Answer one of the pages. Raises Refused (404) for every other path."""
        match path:
            case "/healthz":
                exchange.answer(200, b'{"status":"ok"}')
            case "/readyz":
                problems = self._problems()
                body = orjson.dumps({"status": "not ready" if problems else "ready", "problems": problems})
                exchange.answer(503 if problems else 200, body)
            case "/metrics":
                body = exposition([*self.metrics.families(), *self._families()])
                exchange.answer(200, body, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])
            case _:
                raise Refused(
                    404,
                    f"Nothing is served at {path}: the API is below /v1, so the base URL ends in /v1.",
                    code="unknown_url",
                )

    def _problems(self) -> list[str]:
        problems = []
        if not self.keeper.is_loaded:
            problems.append("keys and routes have not been loaded yet")
        if not self.spool.is_writable:
            problems.append("the spool cannot be written: records are being lost")
        if self.spool.sync_problem:
            problems.append(
                f"the spool cannot be synced: a power cut may take records ({self.spool.sync_problem})"
            )
        lag_s = self._lag_s()
        if lag_s > self.max_lag_s:
            problems.append(
                f"the oldest record has been waiting for {lag_s:.0f} s to be shipped: is ingest running?"
            )
        return problems

    def _families(self) -> list[Family]:
        breakers = [
            ({"upstream": name, "id": str(key)}, float(state != State.CLOSED))
            for key, name, state in self.breakers.states(time.monotonic())
        ]
        alone = float(self.limiter.is_alone)
        return [
            Family(
                "process_info",
                "Which process answers: its spool's name.",
                [({"process": self.spool.process}, 1)],
            ),
            Family("spool_bytes", "Bytes of this process's spool.", [({}, self.spool.size_bytes)]),
            Family("capture_losses_total", "Records that could not be kept.", [({}, self.spool.losses)]),
            Family(
                "shed_total",
                "Records left out or kept without their body, by reason.",
                by("reason", {reason.value: count for reason, count in self.spool.shed.items()}),
            ),
            Family("spool_level", "How much is being left out, 0 to 4.", [({}, self.spool.level)]),
            Family(
                "spool_sync_failures_total",
                "Failures of the thread that syncs the spool to its disk.",
                [({}, self.spool.sync_failures)],
            ),
            Family(
                "unshipped_seconds",
                "Age of the oldest record that is not in the database.",
                [({}, self._lag_s())],
            ),
            Family("snapshot_loads_total", "Loads of keys and routes.", [({}, self.keeper.loads)]),
            Family(
                "snapshot_failures_total",
                "Loads of keys and routes that failed.",
                [({}, self.keeper.failures)],
            ),
            Family(
                "snapshot_stale_seconds",
                "Since keys and routes were last seen in the database; a few while it is there.",
                [({}, self.keeper.age_s)],
            ),
            Family("breaker_open", "1 while calls go elsewhere first, or a probe is due.", breakers),
            Family("limits_alone", "1 while limits are not shared over Redis.", [({}, alone)]),
            Family(
                "run_lookups_total",
                "Calls whose run had to be looked up in Redis, by result.",
                by("result", self.run_memory.lookups),
            ),
        ]

    def _lag_s(self) -> float:
        return self.lag.age_s(self.spool.position, time.monotonic())
