"""What the spool holds of a call, and the run that the caller is told."""

import contextlib
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from openai import OpenAI, RateLimitError

from gateway.run_names import named_run
from kernel.ids import uuid7
from telemetry.records import BeginRecord, EndRecord, LossRecord, SignalRecord
from telemetry.shedding import Shed
from telemetry.spool import Spool
from telemetry.stitching import extend, roll, said
from tests.fakes.served_gateway import ServedGateway, Tenant, served_gateway, wait_until
from tests.fakes.upstream import RUNS, Behaviour, FakeUpstream
from tests.integration.gateway.conftest import OPENING, route, version


def test_both_records_say_what_was_exchanged(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, client: OpenAI
) -> None:
    answer = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=OPENING)
    begin, end = gateway.call(answer.headers["x-ratchet-call-id"])
    completion = answer.parse()
    message = completion.choices[0].message.model_dump()
    assert begin == BeginRecord(
        call_id=UUID(answer.headers["x-ratchet-call-id"]),
        project_id=tenant.project_id,
        api_key_id=tenant.key_id,
        started_at=begin.started_at,
        dialect="chat",
        method="POST",
        path="/v1/chat/completions",
        model_requested="gpt-4o",
        model_served="gpt-4o",
        run_hint=UUID(answer.headers["x-ratchet-run-id"]),
        prefix_hash=roll(OPENING).prefix,
        request=upstream.received[0].body,
    )
    assert completion.usage
    assert end == EndRecord(
        call_id=begin.call_id,
        outcome="complete",
        status_code=200,
        response_id=completion.id,
        finish_reason="stop",
        prompt_tokens=completion.usage.prompt_tokens,
        completion_tokens=completion.usage.completion_tokens,
        echo_hash=extend(roll(OPENING).prefix, message),
        said_hash=said(message),
        first_byte_at=end.first_byte_at,
        ended_at=end.ended_at,
        response=answer.content,
        response_type="application/json",
        upstream_id=end.upstream_id,
    )
    assert end.upstream_id
    assert end.first_byte_at
    assert begin.started_at <= end.first_byte_at <= end.ended_at


def test_a_stream_and_a_compressed_answer_are_kept_readable(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    for behaviour, is_stream in [(Behaviour(is_gzipped=True), False), (Behaviour(), True)]:
        upstream.behaviour = behaviour
        answer = httpx.post(
            f"{gateway.origin}/v1/chat/completions",
            headers={"authorization": f"Bearer {tenant.key}"},
            json={"model": "gpt-4o", "messages": OPENING, "stream": is_stream},
        )
        begin, end = gateway.call(answer.headers["x-ratchet-call-id"])
        assert end.hidden == (("usage",) if is_stream else ())
        assert (end.response == answer.content) is not is_stream  # the upstream's bytes, usage and all
        assert end.completion_tokens
        assert (begin.stream, end.outcome, end.finish_reason) == (is_stream, "complete", "stop")
        assert end.echo_hash == extend(roll(OPENING).prefix, RUNS[0]["traj"][2])


def test_the_begin_record_is_there_before_the_upstream_hears_of_the_call(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    upstream.behaviour = Behaviour(delay_s=0.3)

    def mine() -> list[object]:
        return [
            record for record in gateway.records() if getattr(record, "api_key_id", None) == tenant.key_id
        ]

    with httpx.Client() as http, contextlib.suppress(httpx.ReadTimeout):
        http.post(
            f"{gateway.origin}/v1/chat/completions",
            headers={"authorization": f"Bearer {tenant.key}"},
            json={"model": "gpt-4o", "messages": OPENING},
            timeout=0.15,
        )
    assert [type(record) for record in mine()] == [BeginRecord]


def test_the_end_record_is_there_when_the_last_byte_is(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    """Without waiting: a client that has read the end mark finds the end record in the file."""
    for is_stream in (True, False):
        with httpx.stream(
            "POST",
            f"{gateway.origin}/v1/chat/completions",
            headers={"authorization": f"Bearer {tenant.key}"},
            json={"model": "gpt-4o", "messages": OPENING, "stream": is_stream},
        ) as answer:
            call_id = UUID(answer.headers["x-ratchet-call-id"])
            seen = b""
            for piece in answer.iter_raw():
                seen += piece
                if b"[DONE]\n\n" in seen or (not is_stream and seen.endswith(b"}}")):
                    break
            ends = [r for r in gateway.records() if isinstance(r, EndRecord) and r.call_id == call_id]
        assert len(ends) == 1
        assert ends[0].outcome == "complete"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_recorded_run_is_told_one_run_id(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, is_stream: bool
) -> None:
    run = next(run for run in RUNS[20:] if any(message.get("tool_calls") for message in run["traj"]))
    told = []
    for index, message in enumerate(run["traj"]):
        if message["role"] == "assistant":
            answer = httpx.post(
                f"{gateway.origin}/v1/chat/completions",
                headers={"authorization": f"Bearer {tenant.key}"},
                json={"model": "gpt-4o", "messages": run["traj"][:index], "stream": is_stream},
            )
            assert answer.status_code == 200
            told.append(answer.headers["x-ratchet-run-id"])
    assert len(told) > 3
    assert len(set(told)) == 1


def test_strangers_with_the_same_opening_get_runs_of_their_own(
    gateway: ServedGateway, upstream: FakeUpstream, client: OpenAI
) -> None:
    def told() -> str:
        raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=OPENING)
        return raw.headers["x-ratchet-run-id"]

    assert told() != told()


def test_a_named_run_keeps_its_id_whatever_the_convention(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    def told(
        *, path: str = "/v1", headers: dict[str, str] | None = None, body: dict[str, object] | None = None
    ) -> str:
        answer = httpx.post(
            f"{gateway.origin}{path}/chat/completions",
            headers={"authorization": f"Bearer {tenant.key}", **(headers or {})},
            json={"model": "gpt-4o", "messages": OPENING, **(body or {})},
        )
        begin, _ = gateway.call(answer.headers["x-ratchet-call-id"])
        assert begin.run_hint == UUID(answer.headers["x-ratchet-run-id"])
        return f"{begin.run_name} {begin.run_hint}"

    expected = f"job-1 {named_run(tenant.key_id, 'job-1')}"
    assert told(headers={"x-ratchet-run-id": "job-1"}) == expected
    assert told(path="/r/job-1/v1") == expected
    assert told(body={"metadata": {"run_id": "job-1"}}) == expected
    assert told(headers={"x-ratchet-run-id": "job-1"}, path="/r/other/v1") == expected
    assert told(body={"metadata": {"run_id": 7}}) != expected
    assert json.loads(upstream.received[2].body)["metadata"] == {"run_id": "job-1"}


def test_an_sdks_retry_stays_in_the_run(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    upstream.behaviour = Behaviour(status=429, body=b"{}", headers=[("retry-after-ms", "1")])
    with (
        OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key, max_retries=1) as client,
        pytest.raises(RateLimitError),
    ):
        client.chat.completions.create(model="gpt-4o", messages=OPENING)
    begins = [r for r in gateway.records() if isinstance(r, BeginRecord) and r.api_key_id == tenant.key_id]
    assert [begin.retry_count for begin in begins] == [0, 1]
    assert len({begin.run_hint for begin in begins}) == 1


def test_an_alias_is_answered_by_our_version_and_only_the_model_differs(
    gateway: ServedGateway, upstream: FakeUpstream
) -> None:
    champion, canary = version("desk-v1", upstream.origin), version("desk-v2", upstream.origin)
    tenant = gateway.add_tenant(
        upstream="http://127.0.0.1:1/v1", routes={"desk": route("desk", champion, canary, share=0.5)}
    )
    seen = {}
    for number in range(16):
        for _ in range(2):
            body = b'{"messages": [], "model" : "desk", "metadata":{"model":"desk"}, "n": 1.0}'
            upstream.behaviour = Behaviour(body=b'{"id":"chatcmpl-1"}')
            answer = httpx.post(
                f"{gateway.origin}/v1/chat/completions",
                headers={"authorization": f"Bearer {tenant.key}", "x-ratchet-run-id": f"run-{number}"},
                content=body,
            )
            name = answer.headers["x-ratchet-model-version"]
            assert seen.setdefault(number, name) == name
            received = upstream.received[-1]
            sent = body.replace(b'"model" : "desk"', f'"model" : "{name}:abc"'.encode())
            assert received.body == sent[:-1] + b',"return_token_ids":true,"logprobs":true}'
            assert received.header("authorization") is None
            begin, _ = gateway.call(answer.headers["x-ratchet-call-id"])
            assert (begin.model_requested, begin.model_served) == ("desk", f"{name}:abc")
            assert begin.is_canary == (name == "desk-v2")
            assert begin.model_version_id == UUID(champion.model_version_id)
    assert 2 < list(seen.values()).count("desk-v2") < 14


def test_a_full_spool_costs_bodies_first_then_records_and_never_calls(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    with served_gateway(tmp_path, max_spool_bytes=60_000) as gateway:
        tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1")
        spool = gateway.app._spool
        with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key) as client:
            wait_until(lambda: bool(ask_until_shed(client, spool.shed)), timeout_s=20)
            assert (
                httpx.get(f"{gateway.origin}/readyz").status_code == 200
            )  # headers and usage are still kept
            wait_until(lambda: bool(ask_until_lost(client, spool)), timeout_s=20)
        lost = spool.losses
        ready = httpx.get(f"{gateway.origin}/readyz")
        assert (ready.status_code, "spool" in ready.text) == (503, True)
        metrics = httpx.get(f"{gateway.origin}/metrics").text
        assert f"ratchet_gateway_capture_losses_total {lost}" in metrics
        assert f'ratchet_gateway_shed_total{{reason="body_shed"}} {spool.shed[Shed.BODY]}' in metrics
        wait_until(lambda: any(isinstance(record, LossRecord) for record in gateway.records()))
        losses = [record for record in gateway.records() if isinstance(record, LossRecord)]
        assert sum(loss.count for loss in losses if loss.reason == Shed.FULL) == lost
        shed = [r for r in gateway.records() if isinstance(r, BeginRecord | EndRecord) and r.is_shed]
        assert len(shed) == spool.shed[Shed.BODY] == sum(r.count for r in losses if r.reason == Shed.BODY)


def ask_until_shed(client: OpenAI, shed: Mapping[Shed, int]) -> int:
    client.chat.completions.create(model="gpt-4o", messages=OPENING)
    return shed[Shed.BODY]


def ask_until_lost(client: OpenAI, spool: Spool) -> int:
    client.chat.completions.create(model="gpt-4o", messages=OPENING)
    return spool.losses


def test_a_disk_that_refuses_to_sync_is_said_and_feedback_is_not_accepted(
    upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    with served_gateway(tmp_path) as gateway:
        tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1")
        headers = {"authorization": f"Bearer {tenant.key}"}

        def give_feedback() -> int:
            body = {"run_id": "r", **GOOD}
            return httpx.post(f"{gateway.origin}/v1/feedback", headers=headers, json=body).status_code

        assert give_feedback() == 202
        with monkeypatch.context() as patch:
            patch.setattr("telemetry.spool.os.fsync", refuse)
            assert give_feedback() == 503
            ready = httpx.get(f"{gateway.origin}/readyz")
            assert (ready.status_code, "cannot be synced" in ready.text) == (503, True)
            assert "spool_sync_failures_total 0" not in httpx.get(f"{gateway.origin}/metrics").text
        wait_until(lambda: httpx.get(f"{gateway.origin}/readyz").status_code == 200)
        assert give_feedback() == 202


GOOD = {"name": "resolved", "value": True}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"run_id": "job-1"}, {"target_type": "run_id", "target": "job-1", "value": True}),
        ({"response_id": "chatcmpl-9", "value": 0.25}, {"target_type": "response_id", "value": 0.25}),
        ({"run_id": "r", "value": "rude", "step": 3}, {"value": "rude", "step": 3}),
        (
            {"run_id": "r", "value": {"role": "assistant", "content": "Hi"}},
            {"value": {"role": "assistant", "content": "Hi"}},
        ),
        (
            {"run_id": "r", "observed_at": "2026-11-21T10:00:00.5+01:00"},
            {"observed_at": 1_795_251_600_500_000},
        ),
        ({"run_id": "r", "idempotency_key": "k"}, {"idempotency_key": "k"}),
    ],
)
def test_feedback_is_accepted_and_kept(
    gateway: ServedGateway, tenant: Tenant, changes: dict[str, object], kept: dict[str, object]
) -> None:
    answer = send_feedback(gateway, tenant, {**GOOD, **changes})
    assert answer.status_code == 202
    assert answer.json()["status"] == "accepted"
    signals = [record for record in gateway.records() if isinstance(record, SignalRecord)]
    signal = next(signal for signal in signals if str(signal.signal_id) == answer.json()["id"])
    assert (signal.project_id, signal.api_key_id) == (tenant.project_id, tenant.key_id)
    assert {name: getattr(signal, name) for name in kept} == kept


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"run_id": None}, "run_id"),
        ({"call_id": "0192f5a0-0000-7000-8000-000000000000"}, "call_id"),
        ({"run_id": None, "call_id": "not-a-uuid"}, "call_id"),
        ({"run_id": 7}, "run_id"),
        ({"run_id": "x" * 201}, "run_id"),
        ({"run_id": "a\0b"}, "run_id"),
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"value": None}, "value"),
        ({"value": [1]}, "value"),
        ({"value": {}}, "value"),
        ({"value": 1e300}, "value"),
        ({"value": "x" * 100_001}, "value"),
        ({"step": -1}, "step"),
        ({"step": True}, "step"),
        ({"step": 1.0}, "step"),
        ({"observed_at": "2026-11-21T10:00:00"}, "observed_at"),
        ({"observed_at": "yesterday"}, "observed_at"),
        ({"observed_at": 1_795_255_200}, "observed_at"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_feedback_that_is_wrong_says_which_field(
    gateway: ServedGateway, tenant: Tenant, changes: dict[str, object], param: str
) -> None:
    good = {**GOOD, "run_id": str(uuid7())}
    assert send_feedback(gateway, tenant, good).status_code == 202
    refused = send_feedback(gateway, tenant, {**good, **changes})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)


def test_feedback_that_is_no_json_object_is_a_400(gateway: ServedGateway, tenant: Tenant) -> None:
    for content in [b"", b"[]", b'{"value": NaN}', b'{"name": "x"']:
        refused = httpx.post(
            f"{gateway.origin}/v1/feedback",
            headers={"authorization": f"Bearer {tenant.key}"},
            content=content,
        )
        assert refused.status_code == 400
        assert refused.json()["error"]["message"]


def send_feedback(gateway: ServedGateway, tenant: Tenant, body: dict[str, object]) -> httpx.Response:
    return httpx.post(
        f"{gateway.origin}/v1/feedback", headers={"authorization": f"Bearer {tenant.key}"}, json=body
    )


def test_what_a_call_continues_and_the_trace_it_runs_under_are_kept(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for traceparent, kept in [
        (f"00-{trace}-00f067aa0ba902b7-01", trace),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        ("nonsense", ""),
    ]:
        httpx.post(
            f"{gateway.origin}/v1/responses",
            headers={"authorization": f"Bearer {tenant.key}", "traceparent": traceparent},
            json={"model": "gpt-4o", "input": "And then?", "previous_response_id": "resp_1"},
        )
        begin = [record for record in gateway.records() if isinstance(record, BeginRecord)][-1]
        assert (begin.trace_id, begin.continues) == (kept, "resp_1")


@pytest.mark.parametrize(
    ("headers", "metadata", "is_opted_out"),
    [
        ({}, {}, False),
        ({"x-ratchet-training": "off"}, {}, True),
        ({"x-ratchet-training": "on"}, {}, False),
        ({}, {"ratchet_training": "off"}, True),
    ],
)
def test_a_caller_may_say_that_nothing_is_to_be_learnt_from_a_call(
    gateway: ServedGateway,
    client: OpenAI,
    headers: dict[str, str],
    metadata: dict[str, str],
    is_opted_out: bool,
) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=OPENING, extra_headers=headers, metadata=metadata
    )
    begin, _ = gateway.call(answer.headers["x-ratchet-call-id"])
    assert begin.is_opted_out is is_opted_out
