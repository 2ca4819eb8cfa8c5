"""What the operator chooses: what becomes of an answer whose caller has left, and how sure the capture is."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gateway.app import Limits
from gateway.relay import Patience
from telemetry.records import BeginRecord, EndRecord
from telemetry.spool import Spool
from tests.fakes.served_gateway import ServedGateway, Tenant, served_gateway, wait_until
from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.integration.gateway.conftest import CREDENTIAL, OPENING


@contextmanager
def gateway_with(
    folder: Path, upstream: FakeUpstream, limits: Limits
) -> Iterator[tuple[ServedGateway, Tenant]]:
    with served_gateway(folder, limits=limits) as served:
        yield served, served.add_tenant(upstream=f"{upstream.origin}/v1", credential=CREDENTIAL)


def leave_in_the_middle(gateway: ServedGateway, tenant: Tenant, *, stream: bool) -> None:
    """Ask, read the answer's first byte when there is one, and go."""
    body = json.dumps({"model": "gpt-4o", "messages": OPENING, "stream": stream}).encode()
    host, port = gateway.origin.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {tenant.key}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        if stream:
            seen = b""
            while b"data:" not in seen:
                seen += raw.recv(65536)
        else:
            wait_until(lambda: any(isinstance(record, BeginRecord) for record in gateway.records()))


def end_of(gateway: ServedGateway) -> EndRecord:
    def ends() -> list[EndRecord]:
        return [record for record in gateway.records() if isinstance(record, EndRecord)]

    wait_until(lambda: len(ends()) == 1)
    return ends()[0]


@pytest.mark.parametrize("stream", [True, False])
def test_drained_answers_are_known_to_their_end(tmp_path: Path, upstream: FakeUpstream, stream: bool) -> None:
    upstream.behaviour = Behaviour(pause_s=0.02) if stream else Behaviour(delay_s=0.3)
    with gateway_with(tmp_path, upstream, Limits(patience=Patience(drains=True))) as (gateway, tenant):
        leave_in_the_middle(gateway, tenant, stream=stream)
        end = end_of(gateway)
    assert (end.outcome, end.finish_reason) == ("client_gone", "stop")
    assert end.completion_tokens
    assert upstream.gone == 0


@pytest.mark.parametrize(
    "patience",
    [Patience(), Patience(drains=True, drain_max_bytes=10), Patience(drains=True, drain_max_s=0.1)],
)
def test_an_answer_is_cancelled_at_once_or_at_the_cap(
    tmp_path: Path, upstream: FakeUpstream, patience: Patience
) -> None:
    upstream.behaviour = Behaviour(pause_s=0.2)
    with gateway_with(tmp_path, upstream, Limits(patience=patience)) as (gateway, tenant):
        leave_in_the_middle(gateway, tenant, stream=True)
        end = end_of(gateway)
        wait_until(lambda: upstream.gone == 1)
    assert end.outcome == "client_gone"
    assert end.response
    assert b"[DONE]" not in end.response


def test_strict_capture_has_the_end_record_on_the_disk_before_the_last_byte_leaves(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    class Watched(Spool):
        """Says what a power cut would leave: what was appended before the latest fsync."""

        asked = 0

        def synced(self):  # type: ignore[no-untyped-def]  # the face of Spool
            self.asked += 1
            return super().synced()

    spools: list[Watched] = []

    def open_spool() -> Spool:
        spools.append(Watched(tmp_path))
        return spools[0]

    for is_strict in (True, False):
        spools.clear()
        limits = Limits(is_strict=is_strict)
        with served_gateway(tmp_path, limits=limits, open_spool=open_spool) as gateway:
            tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1", credential=CREDENTIAL)
            headers = {"authorization": f"Bearer {tenant.key}"}
            for stream in (True, False):
                body = {"model": "gpt-4o", "messages": OPENING, "stream": stream}
                answer = httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, json=body)
                assert answer.status_code == 200
        assert spools[0].asked == (2 if is_strict else 0)
