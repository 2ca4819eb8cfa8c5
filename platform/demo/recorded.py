"""The far side of the wire: an OpenAI-compatible provider that answers with what a real agent once answered.

100 recorded runs of an airline's service agent; a request whose messages equal a recorded history gets the recorded
answer, as JSON or as an event stream. Anything else is refused, as a provider refuses a bad request. Run it by
`python -m demo.recorded`; it says where it listens in its first line."""

import argparse
import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web

DATA = Path(__file__).with_name("data") / "tau_airline_gpt4o_runs.jsonl.gz"
CREATED = 1_730_000_000
MODEL = "gpt-4o-2024-08-06"
CHUNK_CHARACTERS = 24


def load_runs() -> list[dict[str, Any]]:
    """The recorded runs: `task_id`, `trial`, `reward` and `traj`, the messages in OpenAI's format."""
    with gzip.open(DATA, "rt") as lines:
        return [json.loads(line) for line in lines]


class RecordedRuns:
    """The recorded answers by the history before them. Runs with equal histories so far were answered alike."""

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        self._answers = {
            _key(run["traj"][:index]): message
            for run in runs
            for index, message in enumerate(run["traj"])
            if message["role"] == "assistant"
        }

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The recorded assistant message for this history; None for one that was never recorded."""
        return self._answers.get(_key(messages))


def _key(messages: Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal histories, whatever optional members an SDK adds or leaves out."""
    return json.dumps(
        [
            [
                message["role"],
                message.get("content"),
                [
                    [c["id"], c["function"]["name"], c["function"]["arguments"]]
                    for c in message.get("tool_calls") or []
                ],
                message.get("tool_call_id"),
            ]
            for message in messages
        ]
    )


def completion(messages: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> dict[str, Any]:
    """The provider's JSON for an answer. Usage counts a token for every four characters: the recording has none."""
    prompt, made = len(json.dumps(messages)) // 4, max(1, len(json.dumps(answer)) // 4)
    message = {"role": "assistant", "content": answer.get("content"), "refusal": None}
    if answer.get("tool_calls"):
        message["tool_calls"] = [_plain_call(call) for call in answer["tool_calls"]]
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": "tool_calls" if answer.get("tool_calls") else "stop",
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made},
        "system_fingerprint": "fp_recorded",
    }


def events(whole: Mapping[str, Any], *, with_usage: bool) -> Iterator[bytes]:
    """The same answer as an event stream: deltas of a few characters, tool calls piece by piece, then `[DONE]`."""
    choice, message = whole["choices"][0], whole["choices"][0]["message"]
    frame = {"id": whole["id"], "object": "chat.completion.chunk", "created": CREATED, "model": MODEL}

    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        body = {**frame, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        return _event(body | ({"usage": None} if with_usage else {}))

    yield chunk({"role": "assistant", "content": "" if message["content"] else None})
    for piece in _pieces(message["content"] or ""):
        yield chunk({"content": piece})
    for index, call in enumerate(message.get("tool_calls", [])):
        head = {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
        yield chunk({"tool_calls": [{"index": index, **head}]})
        for piece in _pieces(call["function"]["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, choice["finish_reason"])
    if with_usage:
        yield _event({**frame, "choices": [], "usage": whole["usage"]})
    yield b"data: [DONE]\n\n"


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), CHUNK_CHARACTERS):
        yield text[start : start + CHUNK_CHARACTERS]


def _plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
    return {"id": call["id"], "type": "function", "function": function}


def application() -> web.Application:
    """The provider as an aiohttp application."""
    recorded = RecordedRuns(load_runs())

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        answer = recorded.answer(body["messages"])
        if answer is None:
            error = {"message": "These messages were never recorded.", "type": "invalid_request_error"}
            return web.json_response({"error": error | {"param": "messages", "code": None}}, status=400)
        whole = completion(body["messages"], answer)
        headers = {"x-request-id": f"req_{uuid4().hex}", "openai-processing-ms": "1"}
        if not body.get("stream"):
            return web.json_response(whole, headers=headers)
        stream = web.StreamResponse(headers=headers | {"content-type": "text/event-stream; charset=utf-8"})
        await stream.prepare(request)
        for event in events(whole, with_usage=bool((body.get("stream_options") or {}).get("include_usage"))):
            await stream.write(event)
        return stream

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", chat)
    return app


async def _serve(port: int) -> None:
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    assert runner.addresses
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


@contextmanager
def serve_in_background() -> Iterator[str]:
    """Run the provider as a process of its own while the block runs; yields its origin."""
    process = subprocess.Popen([sys.executable, "-m", "demo.recorded"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        origin = process.stdout.readline().strip()
        if not origin:
            raise RuntimeError("the recorded provider did not start")
        yield origin
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args().port))
