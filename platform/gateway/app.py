"""The data plane: who calls, what is asked for, which of the few handlers answers.

Relaying is `gateway.relay`, the record of it `gateway.capture`; what may be called is in `gateway.snapshot`. Runs
outside Django's request stack, and without PostgreSQL and Redis once the first snapshot is here."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import orjson

from gateway import external_keys, model_list, traces, websocket
from gateway.authentication import Authenticator
from gateway.breaker import Breakers
from gateway.capture import Capture, RunGuess, served_by
from gateway.dialects import table
from gateway.dialects.base import Dialect
from gateway.errors import Refused, bad_request
from gateway.feedback import Feedback
from gateway.headers import first, to_upstream
from gateway.keeper import SnapshotKeeper
from gateway.lag import ShippingLag
from gateway.limiter import Limiter, used_up
from gateway.metrics import Metrics
from gateway.relay import Order, Patience, Relay, Shipment
from gateway.request import Request
from gateway.routing import (
    CredentialUnreadable,
    Destination,
    ProjectRoutes,
    Timeouts,
    passthrough,
    plan,
)
from gateway.run_memory import RunMemory
from gateway.run_names import Naming, named_run, run_name, split_path
from gateway.snapshot import Source
from gateway.snapshot_file import SnapshotFile
from gateway.splice import replace_string
from gateway.status import Status
from gateway.webhooks import Webhooks
from gateway.wire.exchange import CallerGone, Exchange, Header
from gateway.wire.pool import Pool
from telemetry.metrics import ANYTHING
from telemetry.otel import Tracing
from telemetry.records import BeginRecord
from telemetry.spool import Spool
from telemetry.tracker import RunTracker

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 100 << 20
"""Of a request that has to be read before it can be sent on; what passes through has no limit here."""
_NO_ROUTES = ProjectRoutes()
_CLOSED_RUN = re.compile(r"/runs/([^/]+)/close")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the operator sets: patience with upstreams and callers, and how sure the capture is."""

    timeouts: Timeouts = field(default_factory=Timeouts)
    """For upstreams that set none of their own."""
    patience: Patience = field(default_factory=Patience)
    max_lag_s: float = 3600.0
    is_strict: bool = False
    has_peers: bool = False
    """Other gateways may answer calls of the same runs: they tell each other about them."""


class Gateway:
    """Everything behind the listening socket. `open`, then `serve` for every exchange, then `close`."""

    def __init__(
        self,
        *,
        source: Source,
        snapshot_file: SnapshotFile,
        open_spool: Callable[[], Spool],
        limits: Limits,
        key_pepper: bytes,
        tracing: Tracing,
        redis_url: str,
    ) -> None:
        self._source = source
        self._snapshot_file = snapshot_file
        self._open_spool = open_spool
        self._limits = limits
        self._authenticator = Authenticator(key_pepper)
        self._tracing = tracing
        self._redis_url = redis_url
        self._metrics = Metrics()
        self._lag = ShippingLag()
        self._breakers = Breakers()
        self._pool = Pool()
        self._relay = Relay(self._pool, self._breakers, limits.patience)
        self._spool: Spool
        self._keeper: SnapshotKeeper
        self._capture: Capture
        self._status: Status
        self._feedback: Feedback
        self._webhooks: Webhooks
        self._traces: traces.Traces
        self._limiter: Limiter
        self._run_memory: RunMemory | None

    def open(self) -> None:
        """Raises OSError when the spool cannot be opened."""
        spool = self._spool = self._open_spool()
        self._keeper = SnapshotKeeper(
            self._source,
            self._snapshot_file,
            process=spool.process,
            on_shipped=lambda shipped: self._lag.shipped(shipped.get(spool.boot, (0, 0))),
        )
        self._limiter = Limiter(self._redis_url, lambda: self._keeper.current.limits)
        self._run_memory = RunMemory(self._redis_url) if self._limits.has_peers else None
        self._capture = Capture(
            spool=spool,
            metrics=self._metrics,
            tracing=self._tracing,
            limiter=self._limiter,
            clock_us=_clock_us,
            is_strict=self._limits.is_strict,
            tracker=RunTracker(),
            run_memory=self._run_memory,
        )
        self._feedback = Feedback(
            spool=spool,
            limiter=self._limiter,
            metrics=self._metrics,
            rules=lambda project_id: self._keeper.current.rules.get(project_id, ANYTHING),
        )
        self._webhooks = Webhooks(self._feedback, self._limiter)
        self._traces = traces.Traces(spool=spool, limiter=self._limiter, metrics=self._metrics)
        self._status = Status(
            spool=spool,
            keeper=self._keeper,
            lag=self._lag,
            metrics=self._metrics,
            breakers=self._breakers,
            limiter=self._limiter,
            run_memory=self._run_memory,
            max_lag_s=self._limits.max_lag_s,
        )
        self._keeper.start()
        self._limiter.start()
        if self._run_memory is not None:
            self._run_memory.start()
        self._pool.start()

    async def close(self) -> None:
        """Once no exchange is under way."""
        self._keeper.stop()
        self._pool.stop()
        await self._limiter.stop()
        if self._run_memory is not None:
            await self._run_memory.stop()
        await asyncio.to_thread(self._spool.close)
        await asyncio.to_thread(self._tracing.close)

    async def serve(self, exchange: Exchange) -> None:
        """Answer one exchange, whatever it is."""
        path = exchange.target.decode("latin-1")
        try:
            path, _, query = path.partition("?")
            path, path_run_name = split_path(path)
            if path == "/v1" or path.startswith("/v1/"):
                webhook = self._webhooks.addressed(exchange.method, path, self._keeper)
                request = Request(
                    webhook.caller if webhook else self._authenticator.caller(exchange.headers, self._keeper),
                    exchange.method,
                    path[3:],
                    query,
                    exchange.headers,
                    path_run_name,
                    _clock_us(),
                    exchange,
                )
                await (self._webhooks.answer(request, webhook) if webhook else self._handle(request))
            else:
                self._status.answer(path, exchange)
        except CredentialUnreadable as error:
            self._refuse(
                Refused(502, str(error), type="upstream_error", code="upstream_credential"), path, exchange
            )
        except Refused as refusal:
            self._refuse(refusal, path, exchange)
        except CallerGone:
            raise  # nobody is left to be told
        except Exception:
            log.exception("a request failed inside the gateway")
            if not exchange.has_begun:
                failure = Refused(500, "The gateway failed; its log says why.", type="server_error")
                self._refuse(failure, path, exchange)

    def _refuse(self, refusal: Refused, path: str, exchange: Exchange) -> None:
        self._metrics.refused[refusal.status] += 1
        if path == traces.PATH:
            traces.refuse(refusal, exchange)
        else:
            exchange.answer(refusal.status, refusal.body(path), refusal.headers)

    async def _handle(self, request: Request) -> None:
        if (".." in request.path or "%" in request.path) and ".." in unquote(request.path).split("/"):
            raise bad_request("The path must not contain `..`.")
        routes = self._keeper.current.projects.get(request.caller.project_id, _NO_ROUTES)
        if request.method == "POST" and request.path == "/feedback":
            await self._feedback.answer(request)
            return
        if request.method == "POST" and (closed := _CLOSED_RUN.fullmatch(request.path)):
            await self._feedback.close_run(request, unquote(closed[1]))
            return
        if request.method == "POST" and request.path == traces.PATH.removeprefix("/v1"):
            await self._traces.answer(request)
            return
        names = model_list.names(routes)
        if request.method == "GET" and request.path == "/models" and names:
            await model_list.answer_all(request, names, _lists_models(routes), self._pool)
            return
        if request.method == "GET" and (alias := model_list.name_asked_for(request.path, names)):
            model_list.answer_one(request, alias)
            return
        if exceeded := self._limiter.refuse(request.caller, request.started_at / 1e6):
            raise used_up(exceeded)
        dialect = table.BY_PATH.get(request.path) if request.method == "POST" else None
        if request.exchange.is_upgrade:
            await self._tunnel(request, routes)
        elif dialect is not None:
            await self._call(request, routes, dialect)
        else:
            await self._pass_through(request, routes)

    async def _call(self, request: Request, routes: ProjectRoutes, dialect: Dialect) -> None:
        """A call that a dialect reads."""
        body = await request.body(MAX_BODY_BYTES)
        plain = request.decoded(body)
        document = _parsed(plain)
        asked = dialect.parse_request(document)
        name = run_name(Naming(request.headers, request.path_run_name, asked.metadata_run_id))
        run = await self._capture.find_run(
            request.caller,
            asked.messages,
            name=name,
            retry_count=request.retry_count,
            continues=asked.previous_response_id,
            trace_id=request.trace_id,
        )
        destinations = plan(
            routes,
            model=asked.model,
            dialect=dialect.name,
            run_id=str(run.run_id),
            defaults=self._limits.timeouts,
        )
        if not destinations:
            raise _no_such_model(asked.model, model_list.names(routes))
        planned = served_by(destinations[0], asked.model)
        record = request.begin_record(
            run,
            dialect=dialect.name,
            model_requested=asked.model,
            model_served=planned.model_served,
            model_version_id=planned.model_version_id,
            deployment_id=planned.deployment_id,
            is_canary=planned.is_canary,
            stream=asked.stream,
            external_key=external_keys.of(request.headers, document),
            is_opted_out=asked.is_opted_out,
            request=plain,
        )
        own = _own_headers(record)

        def prepare(destination: Destination) -> Shipment:
            sent = body
            if destination.model and destination.model != asked.model:
                sent = replace_string(plain, "model", destination.model)
            addition = dialect.ask_more(
                sent if sent is not body else plain,
                document,
                asks_usage=destination.asks_usage,
                is_own_node=destination.is_own,
            )
            without: list[bytes] = []
            if addition is not None:
                sent = addition.body
                without.append(b"accept-encoding")  # what is hidden has to be found
            if sent is not body:
                without.append(b"content-encoding")
            version = (
                [(b"x-ratchet-model-version", destination.version.encode())] if destination.version else []
            )
            return Shipment(
                to_upstream(request.headers, destination.auth, without=without),
                sent,
                addition,
                [*own, *version],
            )

        order = Order(method=request.method, path=request.target, plan=destinations, prepare=prepare)
        await self._run(request, record, order, dialect)

    async def _pass_through(self, request: Request, routes: ProjectRoutes) -> None:
        """Everything that is not interpreted: relayed to the project's upstream, the exchange noted without
        its bytes."""
        upstream = self._upstream_of(request, routes)
        record = request.begin_record(_named(request))
        own = _own_headers(record)
        exchange = request.exchange

        def prepare(destination: Destination) -> Shipment:
            headers = to_upstream(request.headers, destination.auth)
            length = first(request.headers, b"content-length")
            if length:
                headers.append((b"content-length", length.encode("latin-1")))
            return Shipment(headers, exchange.pieces() if exchange.has_body else None, None, own)

        order = Order(
            method=request.method,
            path=request.target,
            plan=[upstream],
            prepare=prepare,
            is_replayable=not exchange.has_body,
        )
        await self._run(request, record, order, None)

    async def _run(
        self, request: Request, record: BeginRecord, order: Order, dialect: Dialect | None
    ) -> None:
        call = self._capture.begin(record, request.caller, dialect=dialect, trace=request.trace)
        self._metrics.in_flight += 1
        try:
            await self._relay.run(order, request.exchange, call)
        finally:
            call.end_unsaid()
            self._metrics.in_flight -= 1

    async def _tunnel(self, request: Request, routes: ProjectRoutes) -> None:
        upstream = self._upstream_of(request, routes)
        await websocket.relay(request, upstream, _named(request), self._pool, self._capture)

    def _upstream_of(self, request: Request, routes: ProjectRoutes) -> Destination:
        upstream = passthrough(routes, family=request.family)
        if upstream is None:
            raise Refused(
                404,
                f"/v1{request.path} is not answered here: the project has no upstream to pass it to. Set one, or use"
                " /v1/chat/completions with one of the project's models.",
                code="unknown_url",
            )
        return upstream


def _lists_models(routes: ProjectRoutes) -> Destination | None:
    """Whose models stand behind the project's own names; nobody's while the credential cannot be read."""
    try:
        return passthrough(routes)
    except CredentialUnreadable:
        return None


def _parsed(body: bytes) -> dict[str, Any]:
    """The request's JSON object. Raises Refused (400)."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = error.msg
        try:
            # orjson is stricter than some upstreams, e.g. with lone surrogates: those may judge for themselves.
            document = json.loads(body.decode())
        except (ValueError, RecursionError):
            raise bad_request(f"The request body is not valid JSON: {reason}.") from None
    if not isinstance(document, dict):
        raise bad_request("The request body must be a JSON object.")
    return document


def _named(request: Request) -> RunGuess | None:
    """The run that the caller names in its headers or path, for calls whose bodies are not read."""
    name = run_name(Naming(request.headers, request.path_run_name, ""))
    return RunGuess(named_run(request.caller.key_id, name), name) if name else None


def _own_headers(record: BeginRecord) -> list[Header]:
    own = [(b"x-ratchet-call-id", str(record.call_id).encode())]
    if record.run_hint is not None:
        own.append((b"x-ratchet-run-id", str(record.run_hint).encode()))
    return own


def _no_such_model(model: str, names: Sequence[str]) -> Refused:
    has = f"It has: {', '.join(names)}." if names else "It has no model of its own and no upstream yet."
    return Refused(
        404,
        f"The model `{model}` does not exist in this project. {has}",
        param="model",
        code="model_not_found",
    )


def _clock_us() -> int:
    return time.time_ns() // 1000
