"""Feedback at the gateway's door: one or many, held against metrics, told twice, in floods, with bad clocks."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from openai import OpenAI

from gateway.limits import Limit, Measure
from gateway.routing import ProjectRoutes
from telemetry.metrics import Kind, Metric, Rules
from telemetry.records import BeginRecord, SignalRecord
from tests.fakes.served_gateway import ServedGateway, Tenant, served_gateway
from tests.integration.gateway.conftest import OPENING

GOOD: dict[str, Any] = {"run_id": "job-1", "name": "resolved", "value": True}
RULES = Rules(
    {
        "resolved": Metric(name="resolved", kind=Kind.BOOLEAN),
        "stars": Metric(name="stars", kind=Kind.NUMBER, minimum=1, maximum=5),
    }
)
YEAR_S = 366 * 86_400


def send(gateway: ServedGateway, tenant: Tenant, body: Any) -> httpx.Response:
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    return httpx.post(
        f"{gateway.origin}/v1/feedback", headers={"authorization": f"Bearer {tenant.key}"}, **content
    )


def kept(gateway: ServedGateway, tenant: Tenant) -> list[SignalRecord]:
    return [
        record
        for record in gateway.records()
        if isinstance(record, SignalRecord) and record.project_id == tenant.project_id
    ]


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["param"]


def test_many_are_answered_one_by_one(gateway: ServedGateway, tenant: Tenant) -> None:
    gateway.set_rules(tenant, RULES)
    answer = send(
        gateway,
        tenant,
        {
            "signals": [
                GOOD,
                {**GOOD, "name": "stars", "value": 9},
                {**GOOD, "run_id": "a\0b"},
                "resolved",
                {"external_key": "ticket-4711", "name": "reopened", "value": False},
            ]
        },
    )
    assert answer.status_code == 202
    told = answer.json()
    assert (told["accepted"], [bool(one) for one in told["ids"]]) == (2, [True, False, False, False, True])
    assert [(one["index"], one["param"]) for one in told["refused"]] == [
        (1, "value"),
        (2, "run_id"),
        (3, "signals"),
    ]
    assert told["refused"][0]["message"] == "`value` of `stars` must be a number from 1 to 5."
    assert [str(record.signal_id) for record in kept(gateway, tenant)] == [told["ids"][0], told["ids"][4]]
    assert kept(gateway, tenant)[1].target_type == "external_key"


def test_where_none_fits_it_is_an_error_that_says_so(gateway: ServedGateway, tenant: Tenant) -> None:
    answer = send(gateway, tenant, {"signals": [{**GOOD, "value": None}, {**GOOD, "name": ""}]})
    assert error(answer) == (422, "signals[0].value")
    assert (answer.json()["accepted"], len(answer.json()["refused"])) == (0, 2)
    assert kept(gateway, tenant) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"signals": []}, 422),
        ({"signals": {}}, 422),
        ({"signals": [GOOD] * 1001}, 422),
        ({"signals": [GOOD], "run_id": "job-1"}, 422),
        (b'{"run_id": "\xff\xfe", "name": "resolved", "value": true}', 400),
        (b'{"run_id": "\\ud800", "name": "resolved", "value": true}', 400),
        (b"[" * 100_000, 400),
        (b"x" * (5 << 20), 413),
    ],
)
def test_what_cannot_be_taken_apart(gateway: ServedGateway, tenant: Tenant, body: Any, status: int) -> None:
    assert send(gateway, tenant, body).status_code == status
    assert kept(gateway, tenant) == []


def test_a_thousand_at_once(gateway: ServedGateway, tenant: Tenant) -> None:
    answer = send(gateway, tenant, {"signals": [GOOD] * 1000})
    assert (answer.status_code, answer.json()["accepted"]) == (202, 1000)
    assert len({record.signal_id for record in kept(gateway, tenant)}) == 1000


def test_values_are_held_against_the_projects_metrics(gateway: ServedGateway, tenant: Tenant) -> None:
    assert send(gateway, tenant, {**GOOD, "value": "yes"}).status_code == 202  # nothing is declared yet
    gateway.set_rules(tenant, RULES)
    refused = send(gateway, tenant, {**GOOD, "value": "yes"})
    assert error(refused) == (422, "value")
    assert refused.json()["error"]["message"] == "`value` of `resolved` must be true or false."
    assert send(gateway, tenant, GOOD).status_code == 202
    assert send(gateway, tenant, {**GOOD, "name": "resolvd"}).status_code == 202
    gateway.set_rules(tenant, replace(RULES, is_strict=True))
    assert error(send(gateway, tenant, {**GOOD, "name": "resolvd"})) == (422, "name")
    other = gateway.add_tenant()
    assert (
        send(gateway, other, {**GOOD, "value": "yes"}).status_code == 202
    )  # another project's rules are its own


def test_the_same_sent_again_is_the_first_and_other_content_is_a_conflict(
    gateway: ServedGateway, tenant: Tenant
) -> None:
    keyed = {**GOOD, "idempotency_key": "k-1"}
    first, again = send(gateway, tenant, keyed), send(gateway, tenant, keyed)
    assert (again.status_code, again.json()) == (202, first.json())
    conflict = send(gateway, tenant, {**keyed, "value": False})
    assert error(conflict) == (409, "idempotency_key")
    batch = send(gateway, tenant, {"signals": [{**keyed, "value": False}, keyed]}).json()
    assert (batch["ids"], batch["refused"][0]["param"]) == ([None, first.json()["id"]], "idempotency_key")
    assert {record.value for record in kept(gateway, tenant)} == {True}
    other = gateway.add_tenant()
    assert send(gateway, other, {**keyed, "value": False}).status_code == 202
    assert send(gateway, other, keyed).status_code == 409


def test_another_gateway_gives_the_same_signal_the_same_id(
    gateway: ServedGateway, tenant: Tenant, tmp_path: Path
) -> None:
    keyed = {**GOOD, "idempotency_key": "k-2"}
    with served_gateway(tmp_path / "other") as other:
        other.source.snapshot = gateway.source.snapshot
        other._settle()
        assert send(other, tenant, keyed).json() == send(gateway, tenant, keyed).json()


def test_a_signal_may_say_which_one_it_supersedes(gateway: ServedGateway, tenant: Tenant) -> None:
    first = send(gateway, tenant, GOOD).json()["id"]
    assert send(gateway, tenant, {**GOOD, "value": False, "supersedes": first}).status_code == 202
    assert kept(gateway, tenant)[1].supersedes == UUID(first)
    for wrong in ("the first", 7, [first]):
        assert error(send(gateway, tenant, {**GOOD, "supersedes": wrong})) == (422, "supersedes")


def test_clocks_may_differ_by_hours_and_nobody_speaks_from_the_far_future(
    gateway: ServedGateway, tenant: Tenant
) -> None:
    def at(hours: float) -> httpx.Response:
        moment = datetime.now(UTC) + timedelta(hours=hours)
        return send(gateway, tenant, {**GOOD, "observed_at": moment.isoformat()})

    assert [at(hours).status_code for hours in (-24 * 900, -5, 5)] == [202] * 3
    refused = at(24 * 30)
    assert error(refused) == (422, "observed_at")
    assert "lies in the future" in refused.json()["error"]["message"]


def limited(gateway: ServedGateway, tenant: Tenant, measure: Measure, amount: int) -> None:
    limit = Limit(id=uuid4(), subject="project", measure=measure, amount=amount, window_s=YEAR_S)
    gateway.set_routes(tenant, ProjectRoutes(), limits=[limit])


def test_a_flood_is_told_when_to_come_back(gateway: ServedGateway, tenant: Tenant) -> None:
    limited(gateway, tenant, Measure.SIGNALS, 10)
    assert send(gateway, tenant, {"signals": [GOOD] * 9}).status_code == 202
    assert send(gateway, tenant, GOOD).status_code == 202
    flood = send(gateway, tenant, GOOD)
    assert (flood.status_code, flood.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(flood.headers["retry-after"]) > 0
    assert flood.headers["x-ratchet-limit"] == f"project: 10 signals in {YEAR_S} s"
    assert send(gateway, tenant, b"no JSON").status_code == 429
    assert len(kept(gateway, tenant)) == 10
    assert send(gateway, gateway.add_tenant(), GOOD).status_code == 202


def test_limits_of_calls_and_of_signals_are_counted_apart(gateway: ServedGateway, tenant: Tenant) -> None:
    limited(gateway, tenant, Measure.REQUESTS, 1)
    assert [send(gateway, tenant, GOOD).status_code for _ in range(3)] == [202] * 3
    limited(gateway, tenant, Measure.SIGNALS, 1)
    headers = {"authorization": f"Bearer {tenant.key}"}
    for _ in range(2):  # no such model: let through by the limits
        body = {"model": "m", "messages": []}
        assert (
            httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, json=body).status_code == 404
        )


@pytest.fixture
def keyed_client(gateway: ServedGateway, tenant: Tenant) -> Iterator[OpenAI]:
    headers = {"x-ratchet-external-key": "ticket-4711"}
    with OpenAI(
        base_url=f"{gateway.origin}/v1", api_key=tenant.key, max_retries=0, default_headers=headers
    ) as openai:
        yield openai


def begun(gateway: ServedGateway, tenant: Tenant) -> list[str]:
    return [
        record.external_key
        for record in gateway.records()
        if isinstance(record, BeginRecord) and record.project_id == tenant.project_id
    ]


def test_calls_carry_the_projects_own_key(
    gateway: ServedGateway, tenant: Tenant, client: OpenAI, keyed_client: OpenAI
) -> None:
    ask: dict[str, Any] = {"model": "gpt-4o", "messages": OPENING}
    client.chat.completions.create(**ask)
    client.chat.completions.create(**ask, metadata={"external_key": "ticket-1"})
    keyed_client.chat.completions.create(**ask, metadata={"external_key": "ticket-1"})
    assert begun(gateway, tenant) == ["", "ticket-1", "ticket-4711"]


def test_a_key_that_cannot_be_kept_whole_is_refused(gateway: ServedGateway, tenant: Tenant) -> None:
    answer = httpx.post(
        f"{gateway.origin}/v1/chat/completions",
        headers={"authorization": f"Bearer {tenant.key}", "x-ratchet-external-key": "x" * 201},
        json={"model": "gpt-4o", "messages": OPENING},
    )
    assert error(answer) == (400, "external_key")


def test_an_agent_says_that_its_run_is_over(gateway: ServedGateway, tenant: Tenant) -> None:
    headers = {"authorization": f"Bearer {tenant.key}"}
    answer = httpx.post(f"{gateway.origin}/v1/runs/job%2F7/close", headers=headers)
    assert answer.status_code == 202
    (record,) = kept(gateway, tenant)
    assert (record.target_type, record.target, record.name, record.value) == (
        "run_id",
        "job/7",
        "closed",
        True,
    )
    refused = httpx.post(f"{gateway.origin}/v1/runs/{'x' * 300}/close", headers=headers)
    assert error(refused) == (422, "run_id")
    assert httpx.post(f"{gateway.origin}/v1/runs/job/close").status_code == 401
    assert len(kept(gateway, tenant)) == 1


def test_nobody_sends_the_verdict_of_a_judge(gateway: ServedGateway, tenant: Tenant) -> None:
    assert error(send(gateway, tenant, {**GOOD, "name": "judge:helpful"})) == (422, "name")
    assert kept(gateway, tenant) == []
