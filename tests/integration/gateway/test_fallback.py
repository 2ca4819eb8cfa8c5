"""Which upstream answers: fallback, retries, circuit breaker, aliases and limits, as a caller sees them."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest

from gateway.limits import Limit, Measure
from gateway.routing import AliasTarget, Price, ProjectRoutes, Upstream
from kernel.ids import uuid7
from release.routing import Route
from tests.fakes.served_gateway import ServedGateway, Tenant
from tests.fakes.upstream import Behaviour, FakeUpstream, fake_upstream
from tests.integration.gateway.conftest import OPENING, route, version

FAILURE = b'{"error": {"message": "overloaded", "type": "server_error"}}'


@pytest.fixture
def two() -> Iterator[tuple[FakeUpstream, FakeUpstream]]:
    with ExitStack() as stack:
        yield stack.enter_context(fake_upstream()), stack.enter_context(fake_upstream())


def tenant_of(
    gateway: ServedGateway,
    *origins: str,
    aliases: dict[str, list[AliasTarget]] | None = None,
    deployments: dict[str, Route] | None = None,
    limits: list[Limit] | None = None,
    **settings: object,
) -> tuple[Tenant, list[Upstream]]:
    """A project with an upstream for each origin, in this order of priority."""
    upstreams = [
        Upstream(
            id=uuid7(),
            name=f"upstream-{number}",
            base_url=f"{origin}/v1",
            credential=f"sk-{number}",
            priority=number,
            timeouts=gateway.timeouts,
            **settings,  # type: ignore[arg-type]  # fields of Upstream, by name
        )
        for number, origin in enumerate(origins)
    ]
    tenant = gateway.add_tenant()
    routes = ProjectRoutes(
        deployments=deployments or {},
        aliases={
            name: tuple(
                replace(target, upstream_id=upstreams[target.priority].id)
                if not target.deployment
                else target
                for target in targets
            )
            for name, targets in (aliases or {}).items()
        },
        upstreams=tuple(upstreams),
    )
    gateway.set_routes(tenant, routes, limits=limits or [])
    return tenant, upstreams


def ask(
    gateway: ServedGateway, tenant: Tenant, model: str = "gpt-4o", run: str = "", stream: bool = False
) -> httpx.Response:
    headers = {"authorization": f"Bearer {tenant.key}"} | ({"x-ratchet-run-id": run} if run else {})
    body = {"model": model, "messages": OPENING, "stream": stream}
    return httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, json=body, timeout=20)


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_the_next_upstream_answers_when_the_first_cannot(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream], status: int
) -> None:
    first, second = two
    first.behaviour = Behaviour(status=status, body=FAILURE)
    tenant, upstreams = tenant_of(gateway, first.origin, second.origin)
    answer = ask(gateway, tenant)
    assert answer.status_code == 200
    assert first.received[0].body == second.received[0].body
    assert [u.received[0].header("authorization") for u in two] == ["Bearer sk-0", "Bearer sk-1"]
    _, end = gateway.call(answer.headers["x-ratchet-call-id"])
    assert (end.upstream_id, end.attempts, end.outcome) == (upstreams[1].id, 2, "complete")


def test_an_error_that_is_the_callers_own_is_nobody_elses(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream]
) -> None:
    first, second = two
    first.behaviour = Behaviour(status=400, body=FAILURE)
    tenant, _ = tenant_of(gateway, first.origin, second.origin)
    answer = ask(gateway, tenant)
    assert (answer.status_code, answer.content) == (400, FAILURE)
    assert not second.received


def test_when_nobody_can_the_caller_gets_the_last_answer_there_was(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream]
) -> None:
    first, _ = two
    headers = [("retry-after", "7"), ("retry-after-ms", "6500")]
    first.behaviour = Behaviour(status=429, body=FAILURE, headers=headers)
    tenant, upstreams = tenant_of(gateway, first.origin, "http://127.0.0.1:1", max_retries=0)
    answer = ask(gateway, tenant)
    assert (answer.status_code, answer.content) == (429, FAILURE)
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("7", "6500")
    _, end = gateway.call(answer.headers["x-ratchet-call-id"])
    assert (end.upstream_id, end.attempts, end.outcome) == (upstreams[0].id, 2, "upstream_error")
    assert end.response == FAILURE


def test_after_the_first_byte_nobody_else_is_asked(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream]
) -> None:
    first, second = two
    first.behaviour = Behaviour(cut_after_bytes=300)
    tenant, _ = tenant_of(gateway, first.origin, second.origin)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(gateway, tenant, stream=True)
    assert not second.received


def test_a_connection_that_fails_is_tried_again_and_counted(gateway: ServedGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        origin = f"http://127.0.0.1:{rude.getsockname()[1]}"
    tenant, _ = tenant_of(gateway, origin, max_retries=2)
    answer = ask(gateway, tenant)
    assert answer.status_code == 502
    assert "refused" in answer.json()["error"]["message"]
    _, end = gateway.call(answer.headers["x-ratchet-call-id"])
    assert (end.attempts, end.outcome, end.status_code) == (3, "unreachable", 502)


def test_an_upstream_that_keeps_failing_is_left_alone_while_another_one_answers(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream]
) -> None:
    first, second = two
    first.behaviour = Behaviour(status=500, body=FAILURE)
    tenant, upstreams = tenant_of(gateway, first.origin, second.origin)
    for _ in range(12):
        assert ask(gateway, tenant).status_code == 200
    assert 5 <= len(first.received) < 12
    metrics = httpx.get(f"{gateway.origin}/metrics").text
    assert f'ratchet_gateway_breaker_open{{upstream="{upstreams[0].name}"' in metrics
    # Alone, it is asked all the same: a breaker never refuses a call.
    lonely, _ = tenant_of(gateway, first.origin)
    for _ in range(7):
        assert ask(gateway, lonely).status_code == 500


def test_an_alias_shares_its_runs_among_its_targets_and_keeps_them(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream]
) -> None:
    first, second = two
    desk = route("desk", version("desk-v1", second.origin))
    targets = [
        AliasTarget(weight=1, upstream_id=uuid7(), model="gpt-4o-mini"),
        AliasTarget(weight=1, deployment="desk"),
    ]
    tenant, upstreams = tenant_of(
        gateway, first.origin, aliases={"desk": targets}, deployments={"desk": desk}
    )
    seen: dict[str, set[str]] = {}
    for number in range(24):
        run = f"run-{number % 12}"
        answer = ask(gateway, tenant, "desk", run)
        begin, end = gateway.call(answer.headers["x-ratchet-call-id"])
        seen.setdefault(run, set()).add(begin.model_served)
        is_ours = begin.model_version_id is not None
        assert end.upstream_id == (None if is_ours else upstreams[0].id)
        assert begin.model_requested == "desk"
    assert all(len(models) == 1 for models in seen.values())
    assert set.union(*seen.values()) == {"gpt-4o-mini", "desk-v1:abc"}
    assert {json.loads(received.body)["model"] for received in first.received} == {"gpt-4o-mini"}


def test_a_fallback_to_another_target_is_on_record(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream]
) -> None:
    first, second = two
    first.behaviour = Behaviour(status=503, body=FAILURE)
    targets = [
        AliasTarget(weight=1, upstream_id=uuid7(), model="big", priority=0),
        AliasTarget(weight=1, upstream_id=uuid7(), model="small", priority=1),
    ]
    tenant, upstreams = tenant_of(gateway, first.origin, second.origin, aliases={"desk": targets})
    begin, end = gateway.call(ask(gateway, tenant, "desk").headers["x-ratchet-call-id"])
    assert begin.model_served == "big"
    assert end.served
    assert (end.served.model_served, end.upstream_id) == ("small", upstreams[1].id)


def test_a_limit_answers_429_and_says_when_to_come_back(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream]
) -> None:
    first, _ = two
    limit = Limit(id=uuid7(), subject="project", measure=Measure.REQUESTS, amount=2, window_s=3600)
    tenant, _ = tenant_of(gateway, first.origin, limits=[limit])
    assert [ask(gateway, tenant).status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(gateway, tenant)
    assert 1 <= int(refused.headers["retry-after"]) <= 3600
    assert refused.headers["x-ratchet-limit"] == str(limit)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert len(first.received) == 2


def test_tokens_and_money_are_counted_as_upstreams_report_them(
    gateway: ServedGateway, two: tuple[FakeUpstream, FakeUpstream]
) -> None:
    first, _ = two
    for measure, amount in [(Measure.TOKENS, 1), (Measure.MICROUSD, 1)]:
        limit = Limit(id=uuid7(), subject="project", measure=measure, amount=amount, window_s=3600)
        tenant, _ = tenant_of(
            gateway, first.origin, limits=[limit], prices={"gpt-4o": Price(input=2.5, output=10.0)}
        )
        answer = ask(
            gateway, tenant, stream=True
        )  # the client did not ask for usage; it is known all the same
        assert answer.status_code == 200
        _, end = gateway.call(answer.headers["x-ratchet-call-id"])
        assert end.prompt_tokens
        assert end.completion_tokens
        assert end.cost_microusd == round(end.prompt_tokens * 2.5 + end.completion_tokens * 10)
        assert ask(gateway, tenant).status_code == 429
