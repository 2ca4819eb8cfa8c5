"""The data plane as a raw ASGI application: who calls, what is asked for, which of the few handlers answers.

Relaying is `gateway.relay`, the record of it `gateway.capture`; what may be called is in the snapshot. Runs
without Django's request stack, and without PostgreSQL and Redis once the first snapshot is here."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import aiohttp
import orjson
from yarl import URL

from accounts import keys
from gateway import encodings, feedback, metrics
from gateway.capture import Capture, RunGuess, served_by
from gateway.dialects import chat
from gateway.errors import Refused, bad_request
from gateway.headers import Header, first, to_upstream
from gateway.lag import ShippingLag
from gateway.relay import Client, ClientGone, Order, Receive, Relay, Send, open_session
from gateway.run_names import Naming, named_run, run_name
from gateway.snapshot import Caller, SnapshotKeeper, Source, UpstreamTarget
from gateway.splice import replace_string
from kernel.ids import uuid7
from release.routing import Route, choose
from telemetry.models import CallOutcome
from telemetry.otel import Tracing
from telemetry.records import BeginRecord
from telemetry.spool import Spool, SpoolBroken, SpoolFull

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 100 << 20
"""Of a request that has to be read before it can be sent on; what passes through has no limit here."""
MAX_LAG_S = 3600.0
"""A gateway whose oldest record waits longer than this to be shipped says that it is not ready."""
MODELS_TIMEOUT_S = 10.0

_RUN_PATH = re.compile(r"/r/([^/]+)(/v1(?:/.*)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long an upstream may keep a caller waiting."""

    first_byte_timeout_s: float
    idle_timeout_s: float


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request to `/v1`, with the caller that its key belongs to."""

    caller: Caller
    method: str
    path: str
    """Behind `/v1`, percent-encoded as it came."""
    query: str
    headers: Sequence[Header]
    path_run_name: str
    started_at: int
    client: Client


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
        self._metrics = metrics.Metrics()
        self._lag = ShippingLag()
        self._spool: Spool
        self._keeper: SnapshotKeeper
        self._session: aiohttp.ClientSession
        self._relay: Relay
        self._capture: Capture

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

    async def _serve(self, scope: dict[str, Any], client: Client) -> None:
        try:
            path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
            run_path = _RUN_PATH.fullmatch(path)
            path_run_name = unquote(run_path[1]) if run_path else ""
            path = run_path[2] if run_path else path
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
                await self._tell(path, client)
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
        if request.method == "POST" and request.path == chat.PATH:
            await self._chat(request)
        elif request.method == "POST" and request.path == "/feedback":
            await self._feedback(request)
        elif request.method == "GET" and request.path == "/models" and self._routes(request):
            await self._models(request)
        elif request.method == "GET" and (alias := _alias(request, self._routes(request))):
            await request.client.answer(200, orjson.dumps(_model(alias)))
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
        return self._keeper.current.routes.get(request.caller.project_id, {})

    def _upstream(self, request: Request) -> UpstreamTarget | None:
        """The project's provider, or None when it has none. Raises Refused when its credential is
        unreadable."""
        upstream = self._keeper.current.upstreams.get(request.caller.project_id)
        if upstream is not None and upstream.credential is None:
            raise Refused(
                502,
                f"The credential of the upstream {_origin(upstream.base_url)} cannot be read: set the upstream again.",
                type="upstream_error",
                code="upstream_credential",
            )
        return upstream

    async def _chat(self, request: Request) -> None:
        body = await request.client.body(MAX_BODY_BYTES)
        plain = _decoded(body, first(request.headers, b"content-encoding"))
        asked = chat.parse_request(plain)
        name = run_name(Naming(request.headers, request.path_run_name, asked.metadata_run_id))
        routes = self._routes(request)
        route = routes.get(asked.model)
        upstream = self._upstream(request) if route is None else None
        if route is None and upstream is None:
            raise _no_such_model(asked.model, sorted(routes))
        retry_count = _retry_count(request.headers)
        run = self._capture.guess_run(request.caller, asked.messages, name=name, retry_count=retry_count)
        fields: dict[str, Any] = {"model_requested": asked.model, "stream": asked.stream, "request": plain}
        headers = request.headers
        own: list[Header] = []
        if route is not None:
            target = choose(route, str(run.run_id))
            url, credential = f"{target.node_url}/v1{chat.PATH}", ""
            body = replace_string(plain, "model", target.served_name)
            headers = [(key, value) for key, value in headers if key != b"content-encoding"]
            fields |= served_by(route, target)
            own.append((b"x-ratchet-model-version", target.version.encode()))
        else:
            assert upstream is not None
            url, credential = upstream.base_url + request.path, upstream.credential or ""
            fields["model_served"] = asked.model
        record = self._begin_record(request, chat.NAME, run, retry_count=retry_count, **fields)
        order = Order(
            method=request.method,
            url=_with_query(url, request.query),
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
        record = self._begin_record(request, "", run, retry_count=_retry_count(request.headers))
        has_body = any(key in {b"content-length", b"transfer-encoding"} for key, _ in request.headers)
        headers = to_upstream(request.headers, upstream.credential or "")
        length = first(request.headers, b"content-length")
        if length:
            headers.append(("content-length", length))
        order = Order(
            method=request.method,
            url=_with_query(upstream.base_url + request.path, request.query),
            headers=headers,
            body=_streamed(request.client) if has_body else None,
            answer_headers=_own_headers(record),
        )
        if not has_body:
            request.client.cancel_when_gone()
        await self._run(request, record, order)

    def _begin_record(
        self, request: Request, dialect: str, run: RunGuess | None, /, *, retry_count: int, **fields: Any
    ) -> BeginRecord:
        hashes = run.hashes if run else None
        return BeginRecord(
            call_id=uuid7(),
            project_id=request.caller.project_id,
            api_key_id=request.caller.key_id,
            started_at=request.started_at,
            dialect=dialect,
            method=request.method,
            path=f"/v1{request.path}",
            retry_count=retry_count,
            run_hint=run.run_id if run else None,
            run_name=run.name if run else "",
            prefix_hash=hashes.prefix if hashes else None,
            parent_hashes=hashes.parents if hashes else (),
            **fields,
        )

    async def _run(self, request: Request, record: BeginRecord, order: Order) -> None:
        call = self._capture.begin(record, first(request.headers, b"traceparent"))
        self._metrics.in_flight += 1
        try:
            await self._relay.run(order, request.client, call)
        finally:
            call.end(CallOutcome.UNREACHABLE)  # says nothing when the relay has ended the call, as it should
            self._metrics.in_flight -= 1

    async def _models(self, request: Request) -> None:
        """The project's aliases, then what its upstream lists; without the upstream when that cannot be
        had."""
        aliases = sorted(self._routes(request))
        models = [_model(alias) for alias in aliases]
        upstream = self._keeper.current.upstreams.get(request.caller.project_id)
        if upstream is not None and upstream.credential is not None:
            listed = await self._upstream_models(request, upstream)
            models += [model for model in listed if model.get("id") not in aliases]
        await request.client.answer(200, orjson.dumps({"object": "list", "data": models}))

    async def _upstream_models(self, request: Request, upstream: UpstreamTarget) -> list[dict[str, Any]]:
        headers = [
            header
            for header in to_upstream(request.headers, upstream.credential or "")
            if header[0] != "accept-encoding"
        ]
        try:
            async with (
                asyncio.timeout(MODELS_TIMEOUT_S),
                self._session.get(
                    URL(_with_query(f"{upstream.base_url}/models", request.query), encoded=True),
                    headers=headers,
                    allow_redirects=False,
                ) as response,
            ):
                data = orjson.loads(await response.read())["data"]
                return [model for model in data if isinstance(model, dict)]
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            log.info("models of %s are not listed: %s", _origin(upstream.base_url), type(error).__name__)
            return []

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

    async def _tell(self, path: str, client: Client) -> None:
        """The gateway about itself."""
        match path:
            case "/healthz":
                await client.answer(200, b'{"status":"ok"}')
            case "/readyz":
                problems = self._problems()
                body = orjson.dumps({"status": "not ready" if problems else "ready", "problems": problems})
                await client.answer(503 if problems else 200, body)
            case "/metrics":
                body = metrics.exposition(self._metrics, self._gauges())
                await client.start(200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])
                await client.finish(body)
            case _:
                raise Refused(
                    404,
                    f"Nothing is served at {path}: the API is below /v1, so the base URL ends in /v1.",
                    code="unknown_url",
                )

    def _problems(self) -> list[str]:
        problems = []
        if not self._keeper.is_loaded:
            problems.append("keys and routes have not been loaded yet")
        if not self._spool.is_writable:
            problems.append("the spool cannot be written: records are being lost")
        lag_s = self._lag.age_s(self._spool.position, time.monotonic())
        if lag_s > MAX_LAG_S:
            problems.append(
                f"the oldest record has been waiting for {lag_s:.0f} s to be shipped: is ingest running?"
            )
        return problems

    def _gauges(self) -> dict[str, tuple[str, float]]:
        lag_s = self._lag.age_s(self._spool.position, time.monotonic())
        return {
            "spool_bytes": ("Bytes of this process's spool.", self._spool.size_bytes),
            "capture_losses_total": ("Records that could not be kept.", self._spool.losses),
            "unshipped_seconds": ("Age of the oldest record that is not in the database.", lag_s),
            "snapshot_loads_total": ("Loads of keys and routes.", self._keeper.loads),
            "snapshot_failures_total": ("Loads of keys and routes that failed.", self._keeper.failures),
        }


async def _streamed(client: Client) -> AsyncIterator[bytes]:
    async for piece in client.pieces():
        yield piece
    client.cancel_when_gone()


def _own_headers(record: BeginRecord) -> list[Header]:
    own = [(b"x-ratchet-call-id", str(record.call_id).encode())]
    if record.run_hint is not None:
        own.append((b"x-ratchet-run-id", str(record.run_hint).encode()))
    return own


def _decoded(body: bytes, encoding: str) -> bytes:
    try:
        return encodings.decode(body, encoding)
    except encodings.Undecodable as error:
        raise bad_request(f"The request body cannot be read: {error}.", param="content-encoding") from None


def _retry_count(headers: Sequence[Header]) -> int:
    text = first(headers, b"x-stainless-retry-count")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0


def _alias(request: Request, routes: Mapping[str, Route]) -> str:
    name = unquote(request.path.removeprefix("/models/"))
    return name if request.path.startswith("/models/") and name in routes else ""


def _model(alias: str) -> dict[str, Any]:
    """An alias in the shape of OpenAI's model object. It has no date of its own."""
    return {"id": alias, "object": "model", "created": 0, "owned_by": "ratchet"}


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


def _with_query(url: str, query: str) -> str:
    return f"{url}?{query}" if query else url


def _origin(url: str) -> str:
    return str(URL(url).origin())


def _clock_us() -> int:
    return time.time_ns() // 1000
