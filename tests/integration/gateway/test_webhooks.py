"""Signals of a business system at its webhook: who signed, when, and that nothing counts twice."""

import json
import time
from io import StringIO
from typing import Any

import httpx
import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

from accounts import services as accounts
from accounts.models import ApiKey, Project
from audit import selectors as ledger
from audit.actions import Actor
from gateway.limits import Limit, Measure
from gateway.models import Webhook as WebhookRow
from gateway.routing import ProjectRoutes
from gateway.snapshot import Caller, DatabaseSource, Webhook
from gateway.webhooks import TOLERANCE_S, signature
from kernel import clock
from kernel.ids import uuid7
from telemetry.metrics import Kind, Metric, Rules
from telemetry.records import SignalRecord
from tests.fakes.served_gateway import ServedGateway, Tenant

SECRET = "whsec_0123456789abcdef0123456789abcdef"
REOPENED: dict[str, Any] = {"external_key": "ticket-4711", "name": "reopened", "value": True}


@pytest.fixture
def address(gateway: ServedGateway, tenant: Tenant) -> str:
    address = f"helpdesk-{uuid7().hex[-8:]}"
    gateway.add_webhook(address, Webhook("helpdesk", Caller(tenant.key_id, tenant.project_id), SECRET))
    return address


def send(
    gateway: ServedGateway,
    address: str,
    body: Any,
    *,
    secret: str = SECRET,
    at_s: float | None = None,
    header: str | None = None,
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    signed = signature(content, secret=secret, at_s=int(at_s or time.time())) if header is None else header
    return httpx.post(
        f"{gateway.origin}/v1/webhooks/{address}",
        content=content,
        headers={"x-ratchet-signature": signed.encode("latin-1")} if signed else {},
    )


def kept(gateway: ServedGateway, tenant: Tenant) -> list[SignalRecord]:
    return [
        record
        for record in gateway.records()
        if isinstance(record, SignalRecord) and record.project_id == tenant.project_id
    ]


def test_signed_signals_are_taken_one_or_many(gateway: ServedGateway, tenant: Tenant, address: str) -> None:
    answer = send(gateway, address, {**REOPENED, "observed_at": "2026-11-21T09:30:00+01:00"})
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    answer = send(gateway, address, [REOPENED, {**REOPENED, "name": "stars", "value": 5}])
    assert (answer.status_code, answer.json()["accepted"]) == (202, 2)
    one, *many = kept(gateway, tenant)
    assert (one.target_type, one.target, one.name, one.value) == (
        "external_key",
        "ticket-4711",
        "reopened",
        True,
    )
    assert {record.source for record in (one, *many)} == {"webhook:helpdesk"}
    assert {record.api_key_id for record in (one, *many)} == {tenant.key_id}
    assert len({record.idempotency_key for record in (one, *many)}) == 3


def test_the_same_request_again_is_the_first_one(
    gateway: ServedGateway, tenant: Tenant, address: str
) -> None:
    at_s = time.time() - 100
    answers = [send(gateway, address, [REOPENED], at_s=at_s).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert (
        len(
            {
                (record.signal_id, record.idempotency_key, record.observed_at)
                for record in kept(gateway, tenant)
            }
        )
        == 1
    )
    own = {**REOPENED, "idempotency_key": "event-9"}
    ids = {send(gateway, address, own, at_s=moment).json().get("id") for moment in (at_s, at_s)}
    assert len(ids) == 1
    assert send(gateway, address, {**own, "value": False}).status_code == 409


def test_who_cannot_prove_is_refused(gateway: ServedGateway, tenant: Tenant, address: str) -> None:
    body = json.dumps(REOPENED).encode()
    now_s = int(time.time())
    good = signature(body, secret=SECRET, at_s=now_s)
    stamp, digits = good.split(",v1=")
    for header in [
        "",
        "nonsense",
        "t=,v1=00",
        f"{stamp},v1=",
        f"{stamp},v1={digits[:-1]}0{digits[-1]}",
        f"{stamp},v1=\u00e9",
        f"t={now_s + 1},v1={digits}",
        f"t={'9' * 15},v1={digits}",
        f"v1={digits}",
        signature(body, secret=SECRET[:-1], at_s=now_s),
        signature(body + b" ", secret=SECRET, at_s=now_s),
    ]:
        refused = send(gateway, address, body, header=header)
        assert refused.status_code == 401, header
        assert SECRET not in refused.text
    assert send(gateway, "helpdesk", body, header=good).status_code == 401
    for at_s in (now_s - TOLERANCE_S - 60, now_s + TOLERANCE_S + 60):
        refused = send(gateway, address, body, at_s=at_s)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "signature_expired")
    assert kept(gateway, tenant) == []
    # Both signatures of a system that is changing its secret, one of which is ours.
    assert (
        send(gateway, address, body, header=f"{stamp}, v1={'0' * 64}, v1={digits.upper()}").status_code == 202
    )


def test_a_signal_that_does_not_fit_is_refused_by_its_field(
    gateway: ServedGateway, tenant: Tenant, address: str
) -> None:
    gateway.set_rules(tenant, Rules({"reopened": Metric(name="reopened", kind=Kind.BOOLEAN)}))
    for body, status, param in [
        (b"{", 400, None),
        (b"[]", 422, "signals"),
        (b"7", 422, "signals"),
        ({**REOPENED, "value": "yes"}, 422, "value"),
        ({**REOPENED, "secret": 1}, 422, "secret"),
        ({"name": "reopened", "value": True}, 422, "run_id"),
        (b"[" + b"1," * 1000 + b"1]", 422, "signals"),
    ]:
        refused = send(gateway, address, body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)
    mixed = send(gateway, address, [REOPENED, 7]).json()
    assert (mixed["accepted"], mixed["refused"][0]["index"]) == (1, 1)
    assert send(gateway, address, b"x" * ((1 << 20) + 1)).status_code == 413


def test_only_proven_requests_count_towards_the_limit(
    gateway: ServedGateway, tenant: Tenant, address: str
) -> None:
    limit = Limit(id=uuid7(), subject="project", measure=Measure.SIGNALS, amount=1, window_s=3600)
    gateway.set_routes(tenant, ProjectRoutes(), limits=[limit])
    for _ in range(3):
        assert send(gateway, address, REOPENED, secret="wrong").status_code == 401
    assert send(gateway, address, REOPENED).status_code == 202
    refused = send(gateway, address, REOPENED)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0


# Set from the command line, and served from the snapshot.


@pytest.fixture
def project(db: None) -> Project:
    actor = Actor.service("test")
    organization = accounts.create_organization(name="Acme", actor=actor, now=clock.now())
    return accounts.create_project(organization=organization, name="desk", actor=actor, now=clock.now())


@pytest.fixture
def key(project: Project) -> ApiKey:
    return accounts.create_api_key(
        project=project, name="agent", actor=Actor.service("test"), now=clock.now()
    )[0]


def run(*arguments: str) -> Any:
    out = StringIO()
    call_command(*arguments, stdout=out)
    return json.loads(out.getvalue())


def test_a_webhook_is_made_changed_and_removed(
    project: Project, key: ApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run("set_webhook", "helpdesk", "--key", key.prefix)
    address = made["path"].removeprefix("/v1/webhooks/")
    assert address.startswith("helpdesk-")
    served = DatabaseSource().load().webhooks
    assert served == {address: Webhook("helpdesk", Caller(key.pk, project.pk), made["secret"])}
    assert made["secret"] not in repr(served)
    assert made["secret"].encode() not in bytes(WebhookRow.objects.get().secret)
    assert run("set_webhook", "helpdesk", "--key", key.prefix) == {
        key: made[key] for key in ("webhook", "path")
    }
    assert DatabaseSource().load().webhooks == served
    monkeypatch.setenv("HELPDESK_SECRET", SECRET)
    run("set_webhook", "helpdesk", "--key", key.prefix, "--secret-env", "HELPDESK_SECRET")
    assert DatabaseSource().load().webhooks[address].secret == SECRET
    run("remove_webhook", "helpdesk", "--reason", "gone")
    assert DatabaseSource().load().webhooks == {}
    events = ledger.events_of(type="webhook", id=made["webhook"])
    assert [event.action for event in events] == ["webhook.set"] * 3 + ["webhook.removed"]
    assert SECRET not in str(events)


def test_a_webhook_of_a_revoked_key_or_with_a_foreign_secret_takes_nothing(
    project: Project, key: ApiKey
) -> None:
    run("set_webhook", "helpdesk", "--key", key.prefix)
    run("set_webhook", "billing", "--key", key.prefix)
    first, second = WebhookRow.objects.order_by("name")
    WebhookRow.objects.filter(pk=first.pk).update(secret=bytes(second.secret))
    assert {webhook.name for webhook in DatabaseSource().load().webhooks.values()} == {"helpdesk"}
    accounts.revoke_api_key(key=key, actor=Actor.service("test"), now=clock.now())
    assert DatabaseSource().load().webhooks == {}


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("NAME: small letters", ["Help Desk", "--key", "KEY"]),
        ("--key: 0 keys", ["helpdesk", "--key", "rk_nothing"]),
        ("--secret-env: the environment variable", ["helpdesk", "--key", "KEY", "--secret-env", "NO_SUCH"]),
        ("--secret-env: it must have 24", ["helpdesk", "--key", "KEY", "--secret-env", "SHORT"]),
    ],
)
def test_a_wrong_argument_is_named(
    project: Project, key: ApiKey, monkeypatch: pytest.MonkeyPatch, words: str, arguments: list[str]
) -> None:
    monkeypatch.setenv("SHORT", "short")
    given = [key.prefix if argument == "KEY" else argument for argument in arguments]
    with pytest.raises(CommandError, match=words), transaction.atomic():
        run("set_webhook", *given)
