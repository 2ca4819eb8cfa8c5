"""The gateway's HTTP/1.1, spoken by hand: what SDKs never show and real clients do all the same."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.fakes.served_gateway import ServedGateway, Tenant
from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.integration.gateway.conftest import OPENING

BODY = json.dumps({"model": "gpt-4o", "messages": OPENING}).encode()


@contextmanager
def connected(gateway: ServedGateway) -> Iterator[socket.socket]:
    host, port = gateway.origin.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        yield raw


def head(tenant: Tenant, method: str = "POST", version: str = "1.1", extra: str = "") -> bytes:
    return (
        f"{method} /v1/chat/completions HTTP/{version}\r\nhost: gateway\r\n"
        f"authorization: Bearer {tenant.key}\r\n{extra}\r\n"
    ).encode()


def until(raw: socket.socket, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        piece = raw.recv(65536)
        assert piece, seen
        seen += piece
    return seen


def answer_of(raw: socket.socket) -> bytes:
    """One whole answer that says how long it is."""
    seen = until(raw, b"\r\n\r\n")
    answer_head, _, body = seen.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", answer_head, re.IGNORECASE)
    assert length
    while len(body) < int(length[1]):
        piece = raw.recv(65536)
        assert piece
        body += piece
    return answer_head + b"\r\n\r\n" + body


def to_the_end(raw: socket.socket) -> bytes:
    seen = b""
    while piece := raw.recv(65536):
        seen += piece
    return seen


def test_requests_sent_ahead_are_answered_in_order(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    upstream.behaviour = Behaviour(delay_s=0.05)
    request = head(tenant, extra=f"content-length: {len(BODY)}\r\n") + BODY
    last = head(tenant, extra=f"content-length: {len(BODY)}\r\nconnection: close\r\n") + BODY
    with connected(gateway) as raw:
        raw.sendall(request * 3 + last)
        seen = to_the_end(raw)
    assert seen.count(b"HTTP/1.1 200 OK\r\n") == 4
    assert len(upstream.received) == 4
    assert seen.count(b"connection: close") == 1


def test_a_connection_is_kept_and_a_byte_at_a_time_is_enough(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    with connected(gateway) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in head(tenant, extra="transfer-encoding: chunked\r\n"):
                raw.sendall(bytes([byte]))
            raw.sendall(b"%x\r\n%b\r\n" % (10, BODY[:10]))
            raw.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY) - 10, BODY[10:]))
            assert answer_of(raw).startswith(b"HTTP/1.1 200 OK\r\n")
    assert [received.body for received in upstream.received] == [BODY, BODY]


def test_a_client_that_waits_for_100_continue_hears_it(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    with connected(gateway) as raw:
        raw.sendall(head(tenant, extra=f"content-length: {len(BODY)}\r\nexpect: 100-continue\r\n"))
        assert until(raw, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(BODY)
        assert answer_of(raw).startswith(b"HTTP/1.1 200 OK\r\n")
    assert upstream.received[0].header("expect") is None
    with connected(gateway) as raw:  # a key that is not known is refused before the body is sent
        raw.sendall(
            b"POST /v1/files HTTP/1.1\r\nhost: g\r\ncontent-length: 9000000\r\nexpect: 100-continue\r\n\r\n"
        )
        assert to_the_end(raw).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("is_stream", [False, True])
def test_http_1_0_gets_an_answer_that_ends_with_the_connection(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, is_stream: bool
) -> None:
    body = BODY[:-1] + b', "stream": true}' if is_stream else BODY
    with connected(gateway) as raw:
        raw.sendall(head(tenant, version="1.0", extra=f"content-length: {len(body)}\r\n") + body)
        seen = to_the_end(raw)
    answer_head, _, answer = seen.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in answer_head.lower()
    assert answer.endswith(b"data: [DONE]\n\n" if is_stream else b"}")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),  # a TLS client at the wrong port
        (
            b"POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc",
            400,
        ),
        (b"POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", 400),
        (b"GET /v1/models HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_is_refused_and_ends_the_connection(
    gateway: ServedGateway, upstream: FakeUpstream, request_bytes: bytes, status: int
) -> None:
    with connected(gateway) as raw:
        raw.sendall(request_bytes)
        assert to_the_end(raw).startswith(b"HTTP/1.1 %d " % status)
    assert not upstream.received


def test_an_upgrade_that_nobody_asked_for_is_passed_over(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    """Some HTTP clients offer h2c with their first request."""
    offer = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n"
    extra = f"content-length: {len(BODY)}\r\n{offer}"
    with connected(gateway) as raw:
        raw.sendall(head(tenant, extra=extra) + BODY)
        assert answer_of(raw).startswith(b"HTTP/1.1 200 OK\r\n")
        raw.sendall(head(tenant, extra=f"content-length: {len(BODY)}\r\n") + BODY)
        assert answer_of(raw).startswith(b"HTTP/1.1 200 OK\r\n")
    assert upstream.received[0].header("upgrade") is None


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE", "PATCH", "PUT"])
def test_every_method_passes(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, method: str
) -> None:
    headers = {"authorization": f"Bearer {tenant.key}"}
    with httpx.Client(base_url=gateway.origin, headers=headers) as http:
        for _ in range(2):
            through = http.request(method, "/v1/files/file-1?purpose=x")
            direct = httpx.request(method, f"{upstream.origin}/v1/files/file-1?purpose=x")
            assert (through.status_code, through.content) == (direct.status_code, direct.content)
            assert through.headers.get("content-length") == direct.headers.get("content-length")
    assert {received.method for received in upstream.received} == {method}


def test_a_slow_reader_holds_up_the_upstream_and_nobody_else(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    big = b"x" * (24 << 20)
    upstream.behaviour = Behaviour(
        body=big, headers=[("content-type", "application/octet-stream")], split_bytes=1 << 16, is_chunked=True
    )
    headers = {"authorization": f"Bearer {tenant.key}"}
    with httpx.stream("GET", f"{gateway.origin}/v1/files/1/content", headers=headers) as slow:
        pieces = slow.iter_raw(1 << 16)
        size = len(next(pieces))
        upstream.behaviour = Behaviour()
        for _ in range(3):  # others are served meanwhile
            assert httpx.post(f"{gateway.origin}/v1/x", headers=headers, content=b"1").status_code == 200
        size += sum(map(len, pieces))
    assert size == len(big)


def test_a_kept_connection_that_the_upstream_has_closed_costs_the_caller_nothing(
    gateway: ServedGateway, tenant: Tenant
) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = gateway.add_tenant(upstream=f"http://127.0.0.1:{server.getsockname()[1]}/v1")
        headers = {"authorization": f"Bearer {other.key}"}

        def ask() -> httpx.Response:
            return httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, content=BODY)

        accepted: list[bytes] = []

        def serve() -> None:
            for turn in range(2):
                connection, _ = server.accept()
                seen = b""
                while not seen.endswith(BODY):
                    seen += connection.recv(65536)
                connection.sendall(answer)
                accepted.append(seen)
                if turn == 0:
                    # It takes the next request and hangs up on it, as a server does whose patience just ran out.
                    connection.recv(65536)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert ask().status_code == 200
        assert ask().status_code == 200
        thread.join(5)
        assert len(accepted) == 2


def test_the_answer_to_head_does_not_spoil_the_next_one(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    with connected(gateway) as raw:
        raw.sendall(head(tenant, "HEAD").replace(b"/chat/completions", b"/files/1"))
        first = until(raw, b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200")
        raw.sendall(head(tenant, extra=f"content-length: {len(BODY)}\r\n") + BODY)
        second = answer_of(raw)
        assert second.startswith(b"HTTP/1.1 200 OK\r\n")
