"""The scripted provider on a real port of this machine: event streams over HTTP, and two WebSocket endpoints.

Keeps every request and frame as it came, in `received`, for the direct run and the run through the gateway to be
compared. `begin` names the run that follows."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from tests.conformance.provider import chat, messages, realtime, responses
from tests.conformance.provider.script import Turn

Events = Iterator[dict[str, Any]]


@dataclass
class Received:
    """A request, or the opening of a WebSocket with the frames that followed."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    """In order, names in lower case."""
    body: bytes = b""
    frames: list[str] = field(default_factory=list)


class Provider:
    """Answers by the script, turn by turn: as many tool results as the request shows, so far the script has come."""

    def __init__(self) -> None:
        self.base_url = ""
        self.received: list[Received] = []
        self._run = ""

    def begin(self, run: str) -> None:
        """Forget what was received; mint the ids of what follows for `run`."""
        self.received = []
        self._run = run

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        for dialect in (chat, responses, messages):
            app.router.add_post(dialect.PATH, self._streaming(dialect.tool_results, dialect.stream))
        app.router.add_get(realtime.PATH, self._realtime)
        app.router.add_get(responses.PATH, self._responses_socket)
        return app

    def _keep(self, request: web.Request, body: bytes = b"") -> Received:
        headers = [(name.decode().lower(), value.decode("latin-1")) for name, value in request.raw_headers]
        self.received.append(Received(request.method, request.raw_path, headers, body))
        return self.received[-1]

    def _streaming(
        self,
        tool_results: Callable[[dict[str, Any]], int],
        stream: Callable[[Turn, dict[str, Any]], Iterator[bytes]],
    ) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            self._keep(request, body)
            document = json.loads(body)
            turn = Turn(self._run, tool_results(document))
            headers = {
                "content-type": "text/event-stream; charset=utf-8",
                "x-request-id": turn.id("req_"),
                "x-ratelimit-remaining-requests": "9999",
            }
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            for piece in stream(turn, document):
                await response.write(piece)
            await response.write_eof()
            return response

        return answer

    async def _realtime(self, request: web.Request) -> web.WebSocketResponse:
        session = realtime.Session(self._run)
        return await self._converse(request, session.answers, greeting=session.greeting())

    async def _responses_socket(self, request: web.Request) -> web.WebSocketResponse:
        def answers(received: dict[str, Any]) -> Events:
            turn = Turn(self._run, responses.tool_results(received))
            return responses.events(turn, received)

        return await self._converse(request, answers)

    async def _converse(
        self,
        request: web.Request,
        answers: Callable[[dict[str, Any]], Events],
        greeting: dict[str, Any] | None = None,
    ) -> web.WebSocketResponse:
        received = self._keep(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if greeting:
            await socket.send_str(responses.text(greeting))
        async for message in socket:
            if message.type != WSMsgType.TEXT:
                break
            received.frames.append(message.data)
            for event in answers(json.loads(message.data)):
                await socket.send_str(responses.text(event))
        return socket


@contextmanager
def scripted_provider() -> Iterator[Provider]:
    """The provider, served by a thread of its own while the block runs."""
    provider = Provider()
    loop = asyncio.new_event_loop()
    stopped, ready = asyncio.Event(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(provider.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        provider.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await stopped.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    if not ready.wait(10):
        raise SystemExit("the scripted provider did not start")
    yield provider
    loop.call_soon_threadsafe(stopped.set)
    thread.join(10)
    loop.close()
