"""A provider that costs next to nothing: what a benchmark puts behind the gateways that it compares.

`python tests/benchmarks/mock_upstream.py PORT` answers every POST with one fixed chat completion, or, when the body
asks for a stream, with eleven chunks. `pause:<ms>` anywhere in the body makes it wait after each chunk,
`pause:<ms>:<times>` makes it say the nine words so many times. The text of a message is the place for it: not every
gateway forwards the fields that it does not know. Reads no more of HTTP than a length and a body."""

import asyncio
import json
import re
import sys
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_PAUSE = re.compile(rb"pause:(\d+)(?::(\d+))?")
_HEAD = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1764000000, "model": "gpt-4o"}
USAGE = {"prompt_tokens": 21, "completion_tokens": 9, "total_tokens": 30}
_WORDS = ["Your ", "order ", "4817 ", "left ", "our ", "depot ", "this ", "morning", "."]

ANSWER = json.dumps(
    {
        **_HEAD,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(_WORDS), "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "system_fingerprint": "fp_bench",
    }
).encode()


def _event(delta: dict[str, str], finish_reason: str | None = None, *, with_usage: bool = False) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk: dict[str, object] = {**_HEAD, "object": "chat.completion.chunk", "choices": [choice]}
    if with_usage:  # as OpenAI does: asked for usage, it adds a null to every chunk but the last
        chunk["usage"] = None
    return b"data: " + _compact(chunk) + b"\n\n"


def _compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _chunks(*, with_usage: bool) -> list[bytes]:
    return [
        _event({"role": "assistant", "content": ""}, with_usage=with_usage),
        *(_event({"content": word}, with_usage=with_usage) for word in _WORDS),
        _event({}, "stop", with_usage=with_usage),
    ]


CHUNKS = _chunks(with_usage=False)
CHUNKS_WITH_USAGE = _chunks(with_usage=True)
USAGE_CHUNK = (
    b"data: "
    + _compact({**_HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    + b"\n\n"
)
DONE = b"data: [DONE]\n\n"


def _framed(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


_OK = b"HTTP/1.1 200 OK\r\nserver: mock\r\nx-request-id: req_bench\r\n"
_WHOLE = _OK + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
_STREAM_HEAD = _OK + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_LAST = b"0\r\n\r\n"


def answer_to(body: bytes) -> list[bytes]:
    """What the answer to this request consists of: one document, or the events of a stream."""
    if b'"stream":true' not in body and b'"stream": true' not in body:
        return [ANSWER]
    pause = _PAUSE.search(body)
    is_asked = b"include_usage" in body
    first, *words, last = CHUNKS_WITH_USAGE if is_asked else CHUNKS
    words *= int((pause and pause[2]) or 1)
    return [first, *words, last, *([USAGE_CHUNK] if is_asked else []), DONE]


class Mock(asyncio.Protocol):
    """One connection; requests are answered in order, one at a time."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._received[:end]
            length = _LENGTH.search(head)
            if length:
                finish = end + 4 + int(length[1])
                if len(self._received) < finish:
                    return
            elif _CHUNKED.search(head):
                finish = self._received.find(b"0\r\n\r\n", end) + 5
                if finish < 5:
                    return
            else:
                finish = end + 4
            body, self._received = self._received[end + 4 : finish], self._received[finish:]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        pieces = answer_to(body)
        if pieces[0] is ANSWER:
            self._transport.write(_WHOLE)
        elif pause := _PAUSE.search(body):
            asyncio.get_running_loop().create_task(self._slowly(pieces, int(pause[1]) / 1000))
        else:
            self._transport.write(_STREAM_HEAD + b"".join(map(_framed, pieces)) + _LAST)

    async def _slowly(self, pieces: list[bytes], pause_s: float) -> None:
        self._transport.write(_STREAM_HEAD + _framed(pieces[0]))
        for piece in pieces[1:]:
            await asyncio.sleep(pause_s)
            self._transport.write(_framed(piece))
        self._transport.write(_LAST)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
