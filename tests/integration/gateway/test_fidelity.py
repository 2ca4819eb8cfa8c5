"""The traps at which gateways change what passes, one case each: the answer through the gateway against the direct one.

What a table can hold is here; transfers that break off, clients that leave and large bodies are in `test_relay`,
other upstreams than the first in `test_fallback`."""

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import zstandard

from tests.fakes.served_gateway import ServedGateway, Tenant
from tests.fakes.upstream import Behaviour, FakeUpstream

SSE = ("content-type", "text/event-stream")
HEAD = '"id":"chatcmpl-upstream","created":1,"model":"gpt-4o"'


def chunk(rest: str) -> bytes:
    return f'data: {{{HEAD},"object":"chat.completion.chunk",{rest}}}\n\n'.encode()


def delta(content: str, usage: str = "") -> bytes:
    return chunk(
        f'"choices":[{{"index":0,"delta":{{{content}}},"logprobs":null,"finish_reason":null}}]{usage}'
    )


DONE = b"data: [DONE]\n\n"
USAGE = chunk(
    '"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"new_tokens":null}'
)
TOOLS = b"".join(
    [
        delta(
            '"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"f","arguments":""}}]'
        ),
        delta(
            '"tool_calls":[{"index":1,"id":"call_b","type":"function","function":{"name":"g","arguments":""}}]'
        ),
        delta('"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":"}}]'),
        delta('"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]'),
        delta('"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]'),
    ]
)
LIMITS = [
    ("x-request-id", "req_1"),
    ("x-ratelimit-remaining-requests", "59"),
    ("openai-processing-ms", "12"),
    ("x-new-header", "1"),
]


@dataclass(frozen=True, kw_only=True)
class Trap:
    request: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    answer: Behaviour = field(default_factory=lambda: Behaviour(body=b"{}"))
    encode: Callable[[bytes], bytes] = bytes


def stream(*pieces: bytes, **how: Any) -> Behaviour:
    return Behaviour(body=b"".join(pieces), headers=[SSE], **how)


ASKS = {"stream": True, "stream_options": {"include_usage": True}}
TRAPS = {
    "unknown request field": Trap(request={"brand_new": {"deep": [1, None]}, "n_best": 1.50}),
    "unknown answer and usage fields": Trap(
        answer=Behaviour(body=f'{{{HEAD},"new":1,"choices":[],"usage":{{"prompt_tokens":1,"x":2}}}}'.encode())
    ),
    "logprobs: null": Trap(answer=Behaviour(body=b'{"choices":[{"index":0,"logprobs":null,"message":{}}]}')),
    "id and created": Trap(answer=Behaviour(body=f"{{{HEAD}}}".encode())),
    "upstream's headers": Trap(answer=Behaviour(body=b"{}", headers=LIMITS)),
    "client's headers and traceparent": Trap(
        headers={
            "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
            "x-custom": "1",
            "openai-beta": "x",
        }
    ),
    "metadata and store": Trap(request={"metadata": {"k": "v"}, "store": True}),
    "429 with retry-after": Trap(
        answer=Behaviour(
            status=429, body=b'{"error":{}}', headers=[("retry-after", "7"), ("retry-after-ms", "6500")]
        )
    ),
    "error body": Trap(answer=Behaviour(status=400, body=b'{"error" : {"message": "no", "code": null}}\n')),
    "gzip answer": Trap(answer=Behaviour(body=b'{"choices":[]}' * 50, is_gzipped=True)),
    "n=3 with logprobs": Trap(
        request={"n": 3, "logprobs": True},
        answer=Behaviour(
            body=json.dumps(
                {"choices": [{"index": i, "logprobs": {"content": []}} for i in range(3)]}
            ).encode()
        ),
    ),
    "UTF-8 split every 7 bytes": Trap(
        request=ASKS, answer=stream(delta('"content":"Grüße 🦊 東京"'), USAGE, DONE, split_bytes=7)
    ),
    "comments and CRLF": Trap(
        request=ASKS,
        answer=stream(
            b": OPENROUTER PROCESSING\r\n\r\n", delta('"content":"a"').replace(b"\n", b"\r\n"), DONE
        ),
    ),
    "two parallel tool calls": Trap(request=ASKS, answer=stream(TOOLS, USAGE, DONE)),
    "usage chunk with empty choices": Trap(request=ASKS, answer=stream(delta('"content":"a"'), USAGE, DONE)),
    "error in the middle of a stream": Trap(
        request=ASKS, answer=stream(delta('"content":"a"'), b'data: {"error":{"message":"overloaded"}}\n\n')
    ),
    "gzip request": Trap(headers={"content-encoding": "gzip"}, encode=gzip.compress),
    "deflate request": Trap(headers={"content-encoding": "deflate"}, encode=zlib.compress),
    "zstd request": Trap(headers={"content-encoding": "zstd"}, encode=zstandard.compress),
}
NOT_COMPARED = {b"date", b"transfer-encoding", b"connection", b"host", b"authorization"}


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS.keys())
def test_nothing_changes_on_the_way(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, trap: Trap
) -> None:
    upstream.behaviour = trap.answer
    body = trap.encode(json.dumps({"model": "gpt-4o", "messages": [], **trap.request}).encode())

    def call(origin: str, key: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        headers = {"authorization": f"Bearer {key}", "accept-encoding": "gzip", **trap.headers}
        url = f"{origin}/v1/chat/completions"
        with httpx.stream("POST", url, headers=headers, content=body) as answer:
            raw = b"".join(answer.iter_raw())
            return answer.status_code, passing([(n.lower(), v) for n, v in answer.headers.raw]), raw

    assert call(gateway.origin, tenant.key) == call(upstream.origin, "direct")
    through, direct = upstream.received
    assert through.body == direct.body == body
    sent = [[(n.lower().encode(), v.encode()) for n, v in received.headers] for received in (through, direct)]
    assert passing(sent[0]) == passing(sent[1])


def passing(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return sorted(h for h in headers if h[0] not in NOT_COMPARED and not h[0].startswith(b"x-ratchet-"))


def test_usage_that_only_the_gateway_asked_for_is_known_and_not_seen(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    """The provider adds a chunk, and a null to all others, when it is asked for usage; the client must see neither."""
    unasked = [b": hello\n\n", delta('"content":"Grüße"'), delta('"content":"."'), DONE]
    asked = [
        b": hello\n\n",
        delta('"content":"Grüße"', ',"usage":null'),
        delta('"content":"."', ',"usage":null'),
        USAGE,
        DONE,
    ]
    for split_bytes in (0, 1, 7, 1000):
        upstream.behaviour = stream(*asked, split_bytes=split_bytes)
        headers = {"authorization": f"Bearer {tenant.key}"}
        body = b'{"model": "gpt-4o", "messages": [], "stream": true}'
        answer = httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, content=body)
        assert answer.content == b"".join(unasked)
        assert upstream.received[-1].body == body[:-1] + b',"stream_options":{"include_usage":true}}'
        _, end = gateway.call(answer.headers["x-ratchet-call-id"])
        assert (end.prompt_tokens, end.completion_tokens, end.hidden) == (3, 2, ("usage",))
        assert end.response == b"".join(asked)
