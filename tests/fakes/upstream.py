"""A provider on a real port of this machine, which answers from recordings or as a test tells it to.

What it received is kept as it came, headers in order and bytes untouched."""

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from demo.recorded import RecordedRuns, completion, events, load_runs


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the upstream answers. By default: as recorded, at once, whole."""

    status: int = 200
    body: bytes | None = None
    """Sent as it is; None answers a chat from the recordings and everything else with an echo."""
    headers: Sequence[tuple[str, str]] = ()
    delay_s: float = 0.0
    """Before the status line."""
    pause_s: float = 0.0
    """Between pieces."""
    split_bytes: int = 0
    """Size of the pieces; 0 leaves an answer in one piece, and a stream in one piece per event."""
    cut_after_bytes: int | None = None
    """Break the connection off after so much of the body."""
    is_gzipped: bool = False
    is_chunked: bool = False
    """Leave the length out, as streams do."""


@dataclass
class Received:
    """One request as it arrived, and whether its caller stayed."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    is_abandoned: bool = False
    """The caller went away before the end."""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


@dataclass
class FakeUpstream:
    """Tests read `received` and set `behaviour`."""

    origin: str = ""
    behaviour: Behaviour = field(default_factory=Behaviour)
    received: list[Received] = field(default_factory=list)

    def reset(self) -> None:
        self.behaviour = Behaviour()
        self.received.clear()

    @property
    def gone(self) -> int:
        """How many of the callers in `received` went away; one of an earlier test, noticed late, is not among them."""
        return sum(received.is_abandoned for received in self.received)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        behaviour = self.behaviour
        body = await request.read()
        headers = [(key.decode(), value.decode("latin-1")) for key, value in request.raw_headers]
        received = Received(request.method, request.raw_path, headers, body)
        self.received.append(received)
        try:
            await asyncio.sleep(behaviour.delay_s)
            return await self._answer(request, body, behaviour)
        except (asyncio.CancelledError, ConnectionError):
            received.is_abandoned = True
            raise

    async def _answer(self, request: web.Request, body: bytes, behaviour: Behaviour) -> web.StreamResponse:
        status, media_type, pieces = self._content(request, body, behaviour)
        if behaviour.is_gzipped:
            pieces = [gzip.compress(b"".join(pieces), mtime=0)]
        if behaviour.split_bytes:
            whole, size = b"".join(pieces), behaviour.split_bytes
            pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        answer = web.StreamResponse(status=status)
        answer.content_type = media_type
        if behaviour.is_gzipped:
            answer.headers["content-encoding"] = "gzip"
        for name, value in behaviour.headers:
            answer.headers.add(name, value)
        if not (behaviour.is_chunked or media_type == "text/event-stream"):
            answer.content_length = sum(map(len, pieces))
        await answer.prepare(request)
        sent = 0
        for piece in pieces:
            if behaviour.cut_after_bytes is not None and sent + len(piece) > behaviour.cut_after_bytes:
                await answer.write(piece[: behaviour.cut_after_bytes - sent])
                assert request.transport is not None
                request.transport.close()
                return answer
            await answer.write(piece)
            sent += len(piece)
            await asyncio.sleep(behaviour.pause_s)
        await answer.write_eof()
        return answer

    def _content(
        self, request: web.Request, body: bytes, behaviour: Behaviour
    ) -> tuple[int, str, list[bytes]]:
        stated = next((value for name, value in behaviour.headers if name == "content-type"), None)
        if behaviour.body is not None:
            return behaviour.status, stated or "application/json", [behaviour.body]
        if request.path.endswith("/chat/completions"):
            return _recorded(json.loads(body))
        if request.path.endswith("/models"):
            return 200, "application/json", [b'{"object":"list","data":[{"id":"gpt-4o","object":"model"}]}']
        echo = {"method": request.method, "path": request.raw_path, "size": len(body)}
        return 200, "application/json", [json.dumps(echo).encode()]


RUNS = load_runs()
_RECORDED = RecordedRuns(RUNS)


def _recorded(asked: dict[str, object]) -> tuple[int, str, list[bytes]]:
    messages = asked["messages"]
    assert isinstance(messages, list)
    answer = _RECORDED.answer(messages)
    if answer is None:
        error = {"message": "These messages were never recorded.", "type": "invalid_request_error"}
        return 400, "application/json", [json.dumps({"error": error}).encode()]
    whole = completion(messages, answer)
    if not asked.get("stream"):
        return 200, "application/json", [json.dumps(whole).encode()]
    options = asked.get("stream_options") or {}
    assert isinstance(options, dict)
    return 200, "text/event-stream", list(events(whole, with_usage=bool(options.get("include_usage"))))


@contextmanager
def fake_upstream() -> Iterator[FakeUpstream]:
    """The upstream, served by a thread of its own while the block runs."""
    upstream = FakeUpstream()
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    ready = threading.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=256 << 20)
        app.router.add_route("*", "/{path:.*}", upstream.handle)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1, auto_decompress=False
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        upstream.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stopped.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield upstream
    loop.call_soon_threadsafe(stopped.set)
    thread.join(10)
    loop.close()
