"""The policy server's HTTP routes: vLLM's face over the embedded engine, so that a GPU node with vLLM can
take its place.

Owns the names of the served models. An adapter's name stands for one set of weights for ever: it is never
loaded twice, and after an unload it only comes back with the same bytes. Wire formats are `protocol`'s,
decoding is `engine`'s."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web
from jinja2 import TemplateError

from learning.artifacts import UnsafeArtifact, directory_digest
from workers.policy_server import answers, protocol
from workers.policy_server.engine import Engine, Generation, Sampling, Token, prompt_ids
from workers.policy_server.lora import Adapter
from workers.policy_server.protocol import ApiError, ChatRequest, ChunkStream
from workers.policy_server.scheduler import GenerationFailed, Scheduler, Ticket

MAX_BODY_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter being served."""

    weights: Adapter
    path: str
    created: int


class PolicyServer:
    """The state behind the routes: one base model, the adapters by name, and the scheduler."""

    def __init__(
        self, engine: Engine, *, base: Path, name: str, max_batch: int = 32, max_waiting: int = 512
    ) -> None:
        self.engine, self.base, self.name = engine, base, name
        self.adapters: dict[str, LoadedAdapter] = {}
        self.digests: dict[str, str] = {}
        """The bytes that each adapter name has ever stood for."""
        self.created = int(time.time())
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.scheduler: Scheduler
        self.loading = asyncio.Lock()
        call_marks = (answers.CALL_OPEN, answers.CALL_CLOSE)
        known = engine.tokenizer.get_vocab()
        self.call_tokens = tuple(known[mark] for mark in call_marks if mark in known)
        self.text_of = lru_cache(maxsize=100_000)(
            lambda token_id: self._decode([token_id], skip_special=False)
        )

    def weights_for(self, model: str) -> Adapter | None:
        """The adapter that a model name means; None is the base.

        Raises:
            ApiError: 404, no such model.
        """
        if model == self.name:
            return None
        loaded = self.adapters.get(model)
        if loaded is None:
            raise ApiError(404, f"The model `{model}` does not exist.", kind="NotFoundError", param="model")
        return loaded.weights

    def submit(self, request: ChatRequest) -> Ticket:
        """Render the prompt and queue the answer.

        Raises:
            ApiError: 404 unknown model, 400 prompt that does not render or fit, 429 too many waiting.
        """
        adapter = self.weights_for(request.model)
        if self.scheduler.waiting >= self.max_waiting:
            raise ApiError(429, "too many requests are waiting; try again in a moment", kind="RateLimitError")
        try:
            prompt = prompt_ids(self.engine.tokenizer, request.messages, request.tools)
        except TemplateError as error:
            raise ApiError(
                400, f"the chat template refuses these messages: {error}", param="messages"
            ) from error
        room = self.engine.max_length - len(prompt)
        if room < 1 or (request.max_tokens or 1) > room:
            asked = f" and {request.max_tokens} in the completion" if request.max_tokens else ""
            raise ApiError(
                400,
                f"This model's maximum context length is {self.engine.max_length} tokens. However, you "
                f"requested {len(prompt)} tokens in the messages{asked}. Please reduce the length.",
                param="messages" if room < 1 else "max_tokens",
            )
        sampling = Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens or room,
            seed=request.seed,
            top_logprobs=request.top_logprobs,
            banned=() if request.tools_allowed else self.call_tokens,
        )
        generation = Generation(prompt=prompt, adapter=adapter, sampling=sampling)
        if request.stop:
            drawn: list[int] = []

            def stop(token: Token) -> bool:
                drawn.append(token.id)
                return any(s in self._decode(drawn) for s in request.stop)

            generation.stop = stop
        return self.scheduler.submit(generation)

    def text(self, tokens: list[Token], stop: tuple[str, ...]) -> str:
        """Tokens -> text, without the end mark, and cut before the first stop text."""
        text = self._decode([t.id for t in tokens])
        cuts = [position for s in stop if (position := text.find(s)) >= 0]
        return text[: min(cuts)] if cuts else text

    async def load(self, name: str, path: str) -> None:
        """Load an adapter under a new name, off the event loop; answers under way are not disturbed.

        Raises:
            ApiError: 400 name taken or files refused, 404 no such folder.
        """
        async with self.loading:
            if name in self.adapters or name == self.name:
                raise ApiError(
                    400,
                    f"The lora adapter '{name}' has already been loaded. Adapter names are immutable: load "
                    "new weights under a new name.",
                    kind="InvalidUserInput",
                    param="lora_name",
                )
            folder = Path(path)
            if not await asyncio.to_thread(folder.is_dir):
                raise ApiError(404, f"No adapter found for {path}", kind="NotFoundError", param="lora_path")
            try:
                digest, weights = await asyncio.to_thread(
                    lambda: (directory_digest(folder), self.engine.adapters.read(folder))
                )
            except UnsafeArtifact as error:
                raise ApiError(400, str(error), param="lora_path") from error
            if self.digests.setdefault(name, digest) != digest:
                raise ApiError(
                    400,
                    f"The name '{name}' stood for other weights before. Adapter names are immutable.",
                    kind="InvalidUserInput",
                    param="lora_name",
                )
            self.adapters[name] = LoadedAdapter(weights, path, int(time.time()))

    def unload(self, name: str) -> None:
        """Stop serving an adapter; answers under way keep it to their end.

        Raises:
            ApiError: 404, not loaded.
        """
        if self.adapters.pop(name, None) is None:
            raise ApiError(
                404, f"The lora adapter '{name}' cannot be found.", kind="NotFoundError", param="lora_name"
            )

    def _decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        text: str = self.engine.tokenizer.decode(ids, skip_special_tokens=skip_special)
        return text


_SERVER = web.AppKey("server", PolicyServer)


def make_app(server: PolicyServer) -> web.Application:
    """The aiohttp application; the engine's thread starts and stops with it."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
    app[_SERVER] = server
    app.router.add_get("/health", _health)
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_post("/v1/load_lora_adapter", _load)
    app.router.add_post("/v1/unload_lora_adapter", _unload)
    app.cleanup_ctx.append(_scheduling)
    return app


async def _scheduling(app: web.Application) -> Any:
    server = app[_SERVER]
    server.scheduler = Scheduler(server.engine, asyncio.get_running_loop(), max_batch=server.max_batch)
    yield
    await asyncio.to_thread(server.scheduler.stop)


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except ApiError as error:
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return web.json_response(error.body(), status=error.status, headers=headers)
    except GenerationFailed as error:
        return _failure(500, f"the model failed: {error}", "InternalServerError")
    except web.HTTPException as error:
        return _failure(
            error.status, error.reason, "NotFoundError" if error.status == 404 else "BadRequestError"
        )


def _failure(status: int, message: str, kind: str) -> web.Response:
    return web.json_response(ApiError(status, message, kind=kind).body(), status=status)


async def _health(_request: web.Request) -> web.Response:
    return web.Response()


async def _models(request: web.Request) -> web.Response:
    server = request.app[_SERVER]
    length = server.engine.max_length
    entries = [
        protocol.model_entry(
            name=server.name, root=str(server.base), parent=None, max_length=length, created=server.created
        )
    ]
    for name, loaded in server.adapters.items():
        entries.append(
            protocol.model_entry(
                name=name, root=loaded.path, parent=server.name, max_length=length, created=loaded.created
            )
        )
    return web.json_response(protocol.models_response(entries))


async def _chat(request: web.Request) -> web.StreamResponse:
    server = request.app[_SERVER]
    chat = protocol.parse_chat(await _json(request))
    ticket = server.submit(chat)
    call_id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    try:
        if chat.stream:
            return await _stream(request, server, chat, ticket, call_id, created)
        while (update := await ticket.updates.get()) is not None:
            if isinstance(update, GenerationFailed):
                raise update
        generation = ticket.generation
        answer = _answer(server, chat, generation.tokens)
        return web.json_response(
            protocol.chat_response(
                request=chat,
                call_id=call_id,
                created=created,
                answer=answer,
                tool_call_ids=_call_ids(answer),
                tokens=generation.tokens,
                prompt=generation.prompt,
                finish_reason=generation.finish_reason or "stop",
                text_of=server.text_of,
            )
        )
    finally:
        # Also when the client went away: its place in the batch is free after the step under way.
        ticket.generation.cancelled = True


async def _stream(
    request: web.Request, server: PolicyServer, chat: ChatRequest, ticket: Ticket, call_id: str, created: int
) -> web.StreamResponse:
    generation = ticket.generation
    chunks = ChunkStream(
        request=chat, call_id=call_id, created=created, prompt=generation.prompt, text_of=server.text_of
    )
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    await _send(response, chunks.opening())
    drawn: list[Token] = []
    sent = ""
    while (update := await ticket.updates.get()) is not None:
        if isinstance(update, GenerationFailed):
            # The status line is gone: the error travels as an event, and without [DONE] the stream is visibly
            # cut.
            await _send(response, ApiError(500, str(update), kind="InternalServerError").body())
            return response
        drawn += update
        text = _settled(server.text(drawn, chat.stop), chat)
        chunk = chunks.tokens(update, text[len(sent) :])
        sent += text[len(sent) :]
        if chunk is not None:
            await _send(response, chunk)
    answer = _answer(server, chat, drawn)
    finish = generation.finish_reason or "stop"
    for chunk in chunks.closing(answer, _call_ids(answer), answer.content[len(sent) :], finish):
        await _send(response, chunk)
    await response.write(b"data: [DONE]\n\n")
    return response


def _settled(text: str, chat: ChatRequest) -> str:
    """The part of an unfinished answer's text that can be sent: no half characters, tool calls or stop
    texts."""
    text = text.rstrip("\ufffd")
    for stop in chat.stop:
        for length in range(len(stop) - 1, 0, -1):
            if text.endswith(stop[:length]):
                text = text[:-length]
                break
    return answers.streamable(text) if chat.tools_allowed else text


def _answer(server: PolicyServer, chat: ChatRequest, tokens: list[Token]) -> answers.Answer:
    text = server.text(tokens, chat.stop)
    return answers.parse(text) if chat.tools_allowed else answers.Answer(text, ())


def _call_ids(answer: answers.Answer) -> list[str]:
    return [f"call_{uuid.uuid4().hex}" for _ in answer.tool_calls]


async def _load(request: web.Request) -> web.Response:
    body = await _json(request)
    name, path = (body.get(key) if isinstance(body, dict) else None for key in ("lora_name", "lora_path"))
    if not (isinstance(name, str) and name and isinstance(path, str) and path):
        raise ApiError(
            400,
            "Both 'lora_name' and 'lora_path' must be provided.",
            kind="InvalidUserInput",
            param="lora_path" if name else "lora_name",
        )
    await request.app[_SERVER].load(name, path)
    return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")


async def _unload(request: web.Request) -> web.Response:
    body = await _json(request)
    name = body.get("lora_name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not name:
        raise ApiError(400, "'lora_name' needs to be provided.", kind="InvalidUserInput", param="lora_name")
    request.app[_SERVER].unload(name)
    return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
