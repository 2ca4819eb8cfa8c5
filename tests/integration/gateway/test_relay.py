"""Bytes through, in both directions: what the client and the upstream see differs from a direct call in nothing but
Ratchet's own headers, also when things go wrong."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from openai import APIStatusError, APITimeoutError, OpenAI, RateLimitError

from tests.fakes.served_gateway import ServedGateway, Tenant, free_port, wait_until
from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.integration.gateway.conftest import CREDENTIAL, OPENING

EVENT_STREAM = ("content-type", "text/event-stream")
ODD_STREAM = (
    b": a comment\r\n\r\n"
    b'event: message\r\nid: 7\r\ndata: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant",'
    b'"content":"Gr\xc3\xbc\xc3\x9fe \xf0\x9f\xa6\x8a"}}],"unknown":[1,2]}\r\n\r\n'
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
ANSWERS = {
    "json": Behaviour(body=b'{"id": "chatcmpl-1",\n "logprobs": null, "unknown": {"a": 1.10}}'),
    "json, chunked": Behaviour(body=b'{"id":"chatcmpl-1","choices":[]}', is_chunked=True, split_bytes=7),
    "json, gzip": Behaviour(body=b'{"id":"chatcmpl-1"}' * 100, is_gzipped=True),
    "stream": Behaviour(body=ODD_STREAM, headers=[EVENT_STREAM]),
    "stream, split": Behaviour(body=ODD_STREAM, headers=[EVENT_STREAM], split_bytes=7),
    "stream, byte by byte": Behaviour(body=ODD_STREAM, headers=[EVENT_STREAM], split_bytes=1),
    "stream, gzip": Behaviour(body=ODD_STREAM, headers=[EVENT_STREAM], is_gzipped=True),
    "stream, no end mark": Behaviour(body=ODD_STREAM[:-14], headers=[EVENT_STREAM]),
    "not json": Behaviour(body=b"<html>\xff\x00", headers=[("content-type", "text/html")]),
    "empty": Behaviour(body=b""),
    "error": Behaviour(status=400, body=b'{"error":{"message":"No","type":"invalid_request_error"}}'),
    "server error": Behaviour(status=529, body=b"overloaded", headers=[("content-type", "text/plain")]),
    "headers": Behaviour(
        body=b"{}",
        headers=[("x-request-id", "req_1"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-new", "\xe9")],
    ),
}


def exchange(origin: str, key: str, content: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """A chat call as raw bytes: status, headers, body as it came over the wire."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    with httpx.stream("POST", f"{origin}/v1/chat/completions", headers=headers, content=content) as answer:
        raw = b"".join(answer.iter_raw())
        passing = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower() not in {b"date", b"transfer-encoding", b"content-length"}
            and not name.lower().startswith(b"x-ratchet-")
        ]
        return answer.status_code, sorted(passing), raw


@pytest.mark.parametrize("behaviour", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_the_same_as_without_the_gateway(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, behaviour: Behaviour
) -> None:
    upstream.behaviour = behaviour
    body = b'{ "model" : "gpt-4o",\n"messages": [], "unknown": {"k": [1.50, null]} }'
    assert exchange(gateway.origin, tenant.key, body) == exchange(upstream.origin, "direct", body)
    through, direct = upstream.received
    assert through.body == direct.body == body


def test_the_sdk_reads_json_and_streams(client: OpenAI, upstream: FakeUpstream) -> None:
    whole = client.chat.completions.create(model="gpt-4o", messages=OPENING)
    stream = client.chat.completions.create(
        model="gpt-4o", messages=OPENING, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_a_stream_arrives_as_it_is_made(client: OpenAI, upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour(pause_s=0.05)
    began = time.monotonic()
    stream = client.chat.completions.create(model="gpt-4o", messages=OPENING, stream=True)
    arrivals = [time.monotonic() - began for _ in stream]
    assert arrivals[0] < 0.2 < arrivals[-1]


def test_rate_limits_reach_the_sdk_whole(client: OpenAI, upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour(
        status=429,
        body=b'{"error":{"message":"Slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}',
        headers=[("retry-after", "7"), ("retry-after-ms", "6500"), ("x-should-retry", "false")],
    )
    with pytest.raises(RateLimitError) as raised:
        client.chat.completions.create(model="gpt-4o", messages=OPENING)
    assert raised.value.code == "rate_limit_exceeded"
    assert [raised.value.response.headers[name] for name in ("retry-after", "retry-after-ms")] == [
        "7",
        "6500",
    ]


def test_the_upstream_sees_the_clients_headers_and_its_own_credential(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    headers = {
        "authorization": f"Bearer {tenant.key}",
        "x-ratchet-run-id": "mine",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "openai-organization": "org-1",
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "te": "trailers",
        "cookie": "a=1",
    }
    httpx.post(
        f"{gateway.origin}/v1/chat/completions?a=%2F&b", headers=headers, json={"model": "m", "messages": []}
    )
    received = upstream.received[0]
    assert received.path == "/v1/chat/completions?a=%2F&b"
    assert received.header("authorization") == f"Bearer {CREDENTIAL}"
    assert received.header("host") == upstream.origin.removeprefix("http://")
    for name in ("traceparent", "openai-organization", "cookie"):
        assert received.header(name) == headers[name]
    for name in ("x-ratchet-run-id", "x-hop", "te"):
        assert received.header(name) is None
    assert tenant.key not in repr(received)


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(cut_after_bytes=200, headers=[EVENT_STREAM], body=ODD_STREAM),
        Behaviour(cut_after_bytes=20, body=b'{"id":"chatcmpl-1","choices":[]}'),
        Behaviour(
            cut_after_bytes=20, body=b'{"id":"chatcmpl-1","choices":[]}', is_chunked=True, split_bytes=4
        ),
        Behaviour(body=ODD_STREAM, headers=[EVENT_STREAM], split_bytes=200, pause_s=1.2),
    ],
    ids=["stream", "json with a length", "chunked json", "stream that goes silent"],
)
def test_an_answer_that_breaks_off_breaks_off_for_the_client(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, behaviour: Behaviour
) -> None:
    upstream.behaviour = behaviour
    pieces: list[bytes] = []
    with httpx.stream(
        "POST",
        f"{gateway.origin}/v1/chat/completions",
        headers={"authorization": f"Bearer {tenant.key}"},
        json={"model": "m", "messages": [], "stream": True},
    ) as answer:
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(answer.iter_raw())
        call_id = answer.headers["x-ratchet-call-id"]
    received = b"".join(pieces)
    assert behaviour.body is not None
    assert behaviour.body.startswith(received)
    assert len(received) in {behaviour.cut_after_bytes, behaviour.split_bytes}
    _, end = gateway.call(call_id)
    assert end.outcome == "upstream_cut"
    assert end.response == received


def test_a_client_that_goes_away_takes_the_upstream_call_with_it(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    upstream.behaviour = Behaviour(pause_s=0.3)
    with httpx.stream(
        "POST",
        f"{gateway.origin}/v1/chat/completions",
        headers={"authorization": f"Bearer {tenant.key}"},
        json={"model": "gpt-4o", "messages": OPENING, "stream": True},
    ) as answer:
        next(answer.iter_raw())
    _, end = gateway.call(answer.headers["x-ratchet-call-id"])
    assert end.outcome == "client_gone"
    wait_until(lambda: upstream.gone == 1)


def test_a_client_that_gives_up_before_the_answer_begins_is_noticed_too(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    upstream.behaviour = Behaviour(delay_s=0.5)
    with (
        OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key, max_retries=0, timeout=0.2) as hasty,
        pytest.raises(APITimeoutError),
    ):
        hasty.chat.completions.create(model="gpt-4o", messages=OPENING)
    wait_until(lambda: upstream.gone == 1)
    wait_until(lambda: any(getattr(record, "outcome", "") == "client_gone" for record in gateway.records()))


def test_a_body_of_20_megabytes_passes(
    client: OpenAI, upstream: FakeUpstream, gateway: ServedGateway
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 20_000_000}}
    upstream.behaviour = Behaviour(body=b'{"id":"chatcmpl-1","choices":[]}')
    answer = client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=[{"role": "user", "content": [image]}]
    )
    begin, _ = gateway.call(answer.headers["x-ratchet-call-id"])
    assert begin.request == upstream.received[0].body
    assert len(begin.request) > 20_000_000


def test_a_compressed_request_passes_as_it_is(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    plain = json.dumps({"model": "gpt-4o", "messages": OPENING}).encode()
    packed = gzip.compress(plain)
    headers = {"authorization": f"Bearer {tenant.key}", "content-encoding": "gzip"}
    upstream.behaviour = Behaviour(body=b"{}")
    answer = httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, content=packed)
    assert upstream.received[0].body == packed
    assert upstream.received[0].header("content-encoding") == "gzip"
    begin, _ = gateway.call(answer.headers["x-ratchet-call-id"])
    assert begin.request == plain


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("DELETE", "/v1/files/file%2Fodd?x=%20"),
        ("HEAD", "/v1/files/1"),
        ("OPTIONS", "/v1/files"),
        ("PATCH", "/v1/anything/new"),
        ("GET", "/v1/models/gpt-4o"),
    ],
)
def test_what_is_not_interpreted_passes_through(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, method: str, path: str
) -> None:
    upstream.behaviour = Behaviour(body=b"" if method == "HEAD" else b'{"odd": true}')
    headers = {"authorization": f"Bearer {tenant.key}"}
    through = httpx.request(method, gateway.origin + path, headers=headers)
    direct = httpx.request(method, upstream.origin + path)
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    assert [received.path for received in upstream.received] == [path, path]
    assert through.headers["x-ratchet-call-id"]


def test_an_upload_is_streamed(gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant) -> None:
    def slowly() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    headers = {"authorization": f"Bearer {tenant.key}", "content-type": "multipart/form-data; boundary=b"}
    chunked = httpx.post(f"{gateway.origin}/v1/files", headers=headers, content=slowly())
    assert chunked.json()["size"] == 2_000_000
    sized = httpx.post(f"{gateway.origin}/v1/files", headers=headers, content=b"y" * 3_000_000)
    assert sized.json()["size"] == 3_000_000
    assert upstream.received[1].header("content-length") == "3000000"
    begin, end = gateway.call(sized.headers["x-ratchet-call-id"])
    assert (begin.dialect, begin.request, end.response, end.status_code) == ("", b"", b"", 200)


def test_a_redirect_and_an_empty_answer_pass(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    headers = {"authorization": f"Bearer {tenant.key}"}
    upstream.behaviour = Behaviour(status=307, body=b"", headers=[("location", "/v1/elsewhere")])
    redirect = httpx.get(f"{gateway.origin}/v1/files", headers=headers)
    assert (redirect.status_code, redirect.headers["location"]) == (307, "/v1/elsewhere")
    upstream.behaviour = Behaviour(status=204, body=b"")
    assert httpx.delete(f"{gateway.origin}/v1/files/1", headers=headers).status_code == 204


def test_an_upstream_that_is_away_is_a_502_that_says_which(gateway: ServedGateway) -> None:
    port = free_port()
    tenant = gateway.add_tenant(upstream=f"http://127.0.0.1:{port}/v1", credential=CREDENTIAL)
    with (
        OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key, max_retries=0) as client,
        pytest.raises(APIStatusError) as raised,
    ):
        client.chat.completions.create(model="gpt-4o", messages=OPENING)
    assert raised.value.status_code == 502
    assert raised.value.code == "upstream_unreachable"
    assert f"http://127.0.0.1:{port}" in raised.value.message
    assert CREDENTIAL not in raised.value.message
    _, end = gateway.call(raised.value.response.headers["x-ratchet-call-id"])
    assert (end.outcome, end.status_code, end.response) == ("unreachable", 502, raised.value.response.content)


def test_an_upstream_that_says_nothing_is_a_504(
    gateway: ServedGateway, upstream: FakeUpstream, client: OpenAI
) -> None:
    upstream.behaviour = Behaviour(delay_s=2)
    with pytest.raises(APIStatusError) as raised:
        client.chat.completions.create(model="gpt-4o", messages=OPENING)
    assert (raised.value.status_code, raised.value.code) == (504, "upstream_timeout")
    wait_until(lambda: upstream.gone == 1)


def test_an_upstream_that_hangs_up_without_an_answer_is_a_502(gateway: ServedGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        tenant = gateway.add_tenant(upstream=f"http://127.0.0.1:{rude.getsockname()[1]}/v1")

        def hang_up() -> None:
            for _ in range(2):  # the call and its one retry
                connection, _ = rude.accept()
                connection.recv(65536)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        answer = httpx.post(
            f"{gateway.origin}/v1/chat/completions",
            headers={"authorization": f"Bearer {tenant.key}"},
            json={"model": "m", "messages": []},
        )
        thread.join()
    assert answer.status_code == 502
    assert "closed the connection" in answer.json()["error"]["message"]
