"""The data plane as a raw ASGI application: who calls, what is asked for, which of the few handlers answers.

Relaying is `gateway.relay`, the record of it `gateway.capture`; what may be called is in `gateway.snapshot`. Runs
without Django's request stack, and without PostgreSQL and Redis once the first snapshot is here."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import aiohttp
import orjson

from accounts import keys
from gateway import feedback, model_list
from gateway.capture import Capture, RunGuess, served_by
from gateway.dialects import chat
from gateway.errors import Refused, bad_request
from gateway.headers import Header, first, to_upstream
from gateway.lag import ShippingLag
from gateway.metrics import Metrics
from gateway.relay import Client, ClientGone, Order, Receive, Relay, Send, open_session
from gateway.request import Request
from gateway.routing import ProjectRoutes, Upstream
from gateway.run_names import Naming, named_run, run_name, split_path
from gateway.snapshot import Caller, SnapshotKeeper, Source
from gateway.splice import replace_string
from gateway.status import Status
from release.routing import Route, choose
from telemetry.models import CallOutcome
from telemetry.otel import Tracing
from telemetry.records import BeginRecord
from telemetry.spool import Spool, SpoolBroken, SpoolFull

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 100 << 20
"""Of a request that has to be read before it can be sent on; what passes through has no limit here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long an upstream may keep a caller waiting."""

    first_byte_timeout_s: float
    idle_timeout_s: float


class Gateway:
    """The ASGI application. Its lifespan opens and closes what it holds."""

    def __init__(
        self,
        *,
        source: Source,
        open_spool: Callable[[], Spool],
        limits: Limits,
        key_pepper: bytes,
        tracing: Tracing,
    ) -> None:
        self._source = source
        self._open_spool = open_spool
        self._limits = limits
        self._key_pepper = key_pepper
        self._tracing = tracing
        self._metrics = Metrics()
        self._lag = ShippingLag()
        self._spool: Spool
        self._keeper: SnapshotKeeper
        self._session: aiohttp.ClientSession
        self._relay: Relay
        self._capture: Capture
        self._status: Status

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, Client(receive, send))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._open()
        except OSError as error:
            log.error("the spool cannot be opened: %s", error)
            await send({"type": "lifespan.startup.failed", "message": "the spool cannot be opened"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._keeper.stop()
        await self._session.close()
        await asyncio.to_thread(self._spool.close)
        await asyncio.to_thread(self._tracing.close)
        await send({"type": "lifespan.shutdown.complete"})

    def _open(self) -> None:
        spool = self._spool = self._open_spool()
        self._keeper = SnapshotKeeper(
            self._source,
            process=spool.process,
            on_shipped=lambda shipped: self._lag.shipped(shipped.get(spool.boot, (0, 0))),
        )
        self._keeper.start()
        self._session = open_session()
        self._relay = Relay(
            self._session,
            first_byte_timeout_s=self._limits.first_byte_timeout_s,
            idle_timeout_s=self._limits.idle_timeout_s,
        )
        self._capture = Capture(spool, self._metrics, self._tracing, _clock_us)
        self._status = Status(spool=spool, keeper=self._keeper, lag=self._lag, metrics=self._metrics)

    async def _serve(self, scope: dict[str, Any], client: Client) -> None:
        try:
            raw_path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
            path, path_run_name = split_path(raw_path)
            if path == "/v1" or path.startswith("/v1/"):
                request = Request(
                    caller=self._authenticate(scope["headers"]),
                    method=scope["method"],
                    path=path.removeprefix("/v1"),
                    query=scope["query_string"].decode("latin-1"),
                    headers=scope["headers"],
                    path_run_name=path_run_name,
                    started_at=_clock_us(),
                    client=client,
                )
                await self._handle(request)
            else:
                await self._status.answer(path, client)
        except Refused as refusal:
            self._metrics.refused[refusal.status] += 1
            await client.answer(refusal.status, refusal.body())
        except ClientGone:
            pass
        except Exception:
            log.exception("a request failed inside the gateway")
            if not client.has_answer_begun:
                failure = Refused(500, "The gateway failed; its log says why.", type="server_error")
                self._metrics.refused[failure.status] += 1
                await client.answer(failure.status, failure.body())

    async def _handle(self, request: Request) -> None:
        if ".." in unquote(request.path).split("/"):
            raise bad_request("The path must not contain `..`.")
        routes = self._routes(request)
        if request.method == "POST" and request.path == chat.PATH:
            await self._chat(request)
        elif request.method == "POST" and request.path == "/feedback":
            await self._feedback(request)
        elif request.method == "GET" and request.path == "/models" and routes:
            await model_list.answer_all(request, routes, self._known_upstream(request), self._session)
        elif request.method == "GET" and (alias := model_list.alias_asked_for(request.path, routes)):
            await model_list.answer_one(request, alias)
        else:
            await self._pass_through(request)

    def _authenticate(self, headers: Sequence[Header]) -> Caller:
        if not self._keeper.is_loaded:
            raise Refused(
                503,
                "The gateway has just started and does not know its keys yet: try again in a moment.",
                type="server_error",
                code="starting",
            )
        scheme, _, key = first(headers, b"authorization").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _unauthorized(
                "No API key was given. Send the project's key as `Authorization: Bearer rk_...`."
            )
        if not keys.well_formed(key):
            raise _unauthorized(
                "This is not a Ratchet key (they look like rk_...). Use the project's key here; the provider's own key"
                " belongs to the project's upstream."
            )
        caller = self._keeper.current.callers.get(keys.digest(key, self._key_pepper))
        if caller is None:
            raise _unauthorized(
                "This API key is unknown or was revoked. Make a new one for the project and use that."
            )
        return caller

    def _routes(self, request: Request) -> Mapping[str, Route]:
        return self._project(request).deployments

    def _project(self, request: Request) -> ProjectRoutes:
        return self._keeper.current.projects.get(request.caller.project_id, ProjectRoutes())

    def _known_upstream(self, request: Request) -> Upstream | None:
        return next(iter(self._project(request).upstreams), None)

    def _upstream(self, request: Request) -> Upstream | None:
        """The project's provider, or None when it has none. Raises Refused when its credential is
        unreadable."""
        upstream = self._known_upstream(request)
        if upstream is not None and upstream.credential is None:
            raise Refused(
                502,
                f"The credential of the upstream {upstream.name} cannot be read: set the upstream again.",
                type="upstream_error",
                code="upstream_credential",
            )
        return upstream

    async def _chat(self, request: Request) -> None:
        body = await request.client.body(MAX_BODY_BYTES)
        plain = request.decoded(body)
        asked = chat.parse_request(plain)
        name = run_name(Naming(request.headers, request.path_run_name, asked.metadata_run_id))
        routes = self._routes(request)
        route = routes.get(asked.model)
        upstream = self._upstream(request) if route is None else None
        if route is None and upstream is None:
            raise _no_such_model(asked.model, sorted(routes))
        run = self._capture.guess_run(
            request.caller, asked.messages, name=name, retry_count=request.retry_count
        )
        fields: dict[str, Any] = {"model_requested": asked.model, "stream": asked.stream, "request": plain}
        headers = request.headers
        own: list[Header] = []
        if route is not None:
            target = choose(route, str(run.run_id))
            base_url, credential = f"{target.node_url}/v1", ""
            body = replace_string(plain, "model", target.served_name)
            headers = [(key, value) for key, value in headers if key != b"content-encoding"]
            fields |= served_by(route, target)
            own.append((b"x-ratchet-model-version", target.version.encode()))
        else:
            assert upstream is not None
            base_url, credential = upstream.base_url, upstream.credential or ""
            fields["model_served"] = asked.model
        record = request.begin_record(run, dialect=chat.NAME, **fields)
        order = Order(
            method=request.method,
            url=request.url_at(base_url),
            headers=to_upstream(headers, credential),
            body=body,
            answer_headers=[*_own_headers(record), *own],
        )
        request.client.cancel_when_gone()
        await self._run(request, record, order)

    async def _pass_through(self, request: Request) -> None:
        """Everything that is not interpreted: relayed to the project's upstream, the exchange noted without
        its bytes."""
        upstream = self._upstream(request)
        if upstream is None:
            raise Refused(
                404,
                f"/v1{request.path} is not answered here: the project has no upstream to pass it to. Set one, or use"
                " /v1/chat/completions with one of the project's models.",
                code="unknown_url",
            )
        name = run_name(Naming(request.headers, request.path_run_name, ""))
        run = RunGuess(named_run(request.caller.key_id, name), name) if name else None
        record = request.begin_record(run)
        headers = to_upstream(request.headers, upstream.credential or "")
        length = first(request.headers, b"content-length")
        if length:
            headers.append(("content-length", length))
        order = Order(
            method=request.method,
            url=request.url_at(upstream.base_url),
            headers=headers,
            body=_streamed(request.client) if request.has_body else None,
            answer_headers=_own_headers(record),
        )
        if not request.has_body:
            request.client.cancel_when_gone()
        await self._run(request, record, order)

    async def _run(self, request: Request, record: BeginRecord, order: Order) -> None:
        call = self._capture.begin(record, first(request.headers, b"traceparent"))
        self._metrics.in_flight += 1
        try:
            await self._relay.run(order, request.client, call)
        finally:
            call.end(CallOutcome.UNREACHABLE)  # says nothing when the relay has ended the call, as it should
            self._metrics.in_flight -= 1

    async def _feedback(self, request: Request) -> None:
        body = await request.client.body(feedback.MAX_BODY_BYTES)
        record = feedback.parse(body, caller=request.caller, received_at=request.started_at)
        try:
            self._spool.append(record)
            # Accepted means kept: unlike a call, feedback can be sent again.
            await asyncio.wrap_future(self._spool.synced())
        except (SpoolFull, SpoolBroken):
            raise Refused(
                503, "The feedback could not be stored: try again later.", type="server_error", code="spool"
            ) from None
        self._metrics.feedback += 1
        await request.client.answer(202, orjson.dumps({"id": record.signal_id, "status": "accepted"}))


async def _streamed(client: Client) -> AsyncIterator[bytes]:
    async for piece in client.pieces():
        yield piece
    client.cancel_when_gone()


def _own_headers(record: BeginRecord) -> list[Header]:
    own = [(b"x-ratchet-call-id", str(record.call_id).encode())]
    if record.run_hint is not None:
        own.append((b"x-ratchet-run-id", str(record.run_hint).encode()))
    return own


def _no_such_model(model: str, aliases: list[str]) -> Refused:
    has = f"It has: {', '.join(aliases)}." if aliases else "It has no model of its own and no upstream yet."
    return Refused(
        404,
        f"The model `{model}` does not exist in this project. {has}",
        param="model",
        code="model_not_found",
    )


def _unauthorized(message: str) -> Refused:
    return Refused(401, message, code="invalid_api_key")


def _clock_us() -> int:
    return time.time_ns() // 1000
