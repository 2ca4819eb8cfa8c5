"""Who gets in, what is there, and what the gateway says when it answers itself."""

import json

import httpx
import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

from accounts import keys
from tests.fakes.served_gateway import ServedGateway, Tenant
from tests.fakes.upstream import FakeUpstream
from tests.integration.gateway.conftest import OPENING, route, version


def post(
    gateway: ServedGateway, tenant: Tenant, content: bytes, path: str = "/v1/chat/completions"
) -> httpx.Response:
    return httpx.post(
        gateway.origin + path, headers={"authorization": f"Bearer {tenant.key}"}, content=content
    )


def test_only_a_live_key_gets_in(gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant) -> None:
    def ask(headers: dict[str, str]) -> httpx.Response:
        content = json.dumps({"model": "gpt-4o", "messages": OPENING}).encode()
        return httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, content=content)

    assert ask({"authorization": f"Bearer {tenant.key}"}).status_code == 200
    assert ask({"authorization": f"bearer {tenant.key}"}).status_code == 200
    assert ask({"x-api-key": tenant.key}).status_code == 200  # as Anthropic's SDKs send it
    assert ask({"api-key": tenant.key}).status_code == 200  # as Azure's do
    assert all(tenant.key not in str(received.headers) for received in upstream.received)
    for headers in [
        {},
        {"authorization": tenant.key},
        {"authorization": f"Basic {tenant.key}"},
        {"authorization": "Bearer sk-proj-somebody-elses"},
        {"authorization": f"Bearer {keys.mint()}"},
        {"api-key": keys.mint()},
    ]:
        refused = ask(headers)
        error = refused.json()["error"]
        assert refused.status_code == 401
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "invalid_api_key"
        assert tenant.key not in refused.text
    gateway.remove_tenant(tenant)
    assert ask({"authorization": f"Bearer {tenant.key}"}).status_code == 401
    assert len(upstream.received) == 4


def test_the_sdk_raises_its_own_errors(gateway: ServedGateway, tenant: Tenant) -> None:
    with (
        OpenAI(base_url=f"{gateway.origin}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(AuthenticationError, match="not a Ratchet key"),
    ):
        stranger.chat.completions.create(model="gpt-4o", messages=OPENING)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"model": "gpt-4o", "messages": [', None),
        (b"", None),
        (b'["model"]', None),
        (b"\xff\xfe", None),
        (b'{"messages": []}', "model"),
        (b'{"model": 4, "messages": []}', "model"),
        (b'{"model": "", "messages": []}', "model"),
    ],
)
def test_a_body_without_a_model_is_a_400(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant, content: bytes, param: str | None
) -> None:
    refused = post(gateway, tenant, content)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert not upstream.received
    assert post(gateway, tenant, b'{"model": "gpt-4o", "messages": []}').headers["x-ratchet-call-id"]


def test_a_model_that_nobody_has_is_a_404_that_names_those_there_are(
    gateway: ServedGateway, upstream: FakeUpstream
) -> None:
    aliases = {name: route(name, version("v1", upstream.origin)) for name in ("support-desk", "airline")}
    tenant = gateway.add_tenant(routes=aliases)
    with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key) as client:
        with pytest.raises(NotFoundError) as raised:
            client.chat.completions.create(model="gpt-4o", messages=OPENING)
        assert raised.value.code == "model_not_found"
        assert "airline, support-desk" in raised.value.message
        assert [model.id for model in client.models.list()] == ["airline", "support-desk"]
        with pytest.raises(NotFoundError, match="airline, support-desk"):
            client.embeddings.create(model="text-embedding-3-small", input="x")
        with pytest.raises(NotFoundError, match="no upstream"):
            client.files.list()


def test_models_are_the_aliases_and_then_the_upstreams(
    gateway: ServedGateway, upstream: FakeUpstream
) -> None:
    aliases = {"support-desk": route("support-desk", version("v1", upstream.origin))}
    tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1", routes=aliases)
    away = gateway.add_tenant(upstream="http://127.0.0.1:1/v1", routes=aliases)
    with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key) as client:
        assert [model.id for model in client.models.list()] == ["support-desk", "gpt-4o"]
        assert client.models.retrieve("support-desk").owned_by == "ratchet"
    with OpenAI(base_url=f"{gateway.origin}/v1", api_key=away.key) as client:
        assert [model.id for model in client.models.list()] == ["support-desk"]


def test_a_path_may_not_climb_out_of_the_upstreams_base(
    gateway: ServedGateway, upstream: FakeUpstream, tenant: Tenant
) -> None:
    for path in ["/v1/%2e%2e/admin", "/v1/files/..%2fadmin"]:
        assert post(gateway, tenant, b"", path).status_code == 400
    assert not upstream.received


def test_elsewhere_there_is_nothing(gateway: ServedGateway) -> None:
    answer = httpx.get(f"{gateway.origin}/chat/completions")
    assert answer.status_code == 404
    assert "/v1" in answer.json()["error"]["message"]


def test_a_path_named_run_is_the_same_api(
    gateway: ServedGateway, tenant: Tenant, upstream: FakeUpstream
) -> None:
    with OpenAI(base_url=f"{gateway.origin}/r/nightly%207/v1", api_key=tenant.key) as client:
        answer = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=OPENING)
    begin, _ = gateway.call(answer.headers["x-ratchet-call-id"])
    assert (begin.run_name, begin.path) == ("nightly 7", "/v1/chat/completions")
    assert upstream.received[0].path == "/v1/chat/completions"


def test_too_long_a_run_name_is_refused(gateway: ServedGateway, tenant: Tenant) -> None:
    headers = {"authorization": f"Bearer {tenant.key}", "x-ratchet-run-id": "x" * 201}
    refused = httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, json={"model": "m"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "run_id")


def test_health_readiness_and_metrics(gateway: ServedGateway, client: OpenAI) -> None:
    client.chat.completions.create(model="gpt-4o", messages=OPENING)
    with pytest.raises(BadRequestError):
        client.chat.completions.create(model="gpt-4o", messages=[])
    assert httpx.get(f"{gateway.origin}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{gateway.origin}/readyz").json() == {"status": "ready", "problems": []}
    lines = httpx.get(f"{gateway.origin}/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['ratchet_gateway_calls_total{outcome="complete"}']) >= 1
    assert float(values['ratchet_gateway_calls_total{outcome="upstream_error"}']) >= 1
    assert float(values["ratchet_gateway_spool_bytes"]) > 1000
    assert values["ratchet_gateway_capture_losses_total"] == "0"
    assert values["ratchet_gateway_in_flight"] == "0"
