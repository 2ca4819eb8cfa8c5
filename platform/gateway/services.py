"""Changes to where a project's calls go, how much it may use and who signs signals for it: each one transaction
with its audit event.

Gateways hear of a change when it commits. Reading is `gateway.snapshot`'s business."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings as installation
from django.db import transaction

from accounts.models import ApiKey, Project
from audit import ledger
from audit.actions import JSON, Action, Actor, ObjectRef
from gateway import credentials
from gateway.limits import Measure
from gateway.models import Alias, AliasTarget, Limit, Upstream, Webhook
from gateway.upstream_settings import InvalidUpstream, UpstreamSettings, parsed
from kernel.notify import ROUTES_CHANGED, notify
from release.models import Deployment

UPSTREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Nothing that has a meaning in an alias' target or in a metric's label."""
WEBHOOK_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
"""What can stand in a URL and in a signal's source."""
MIN_SECRET_CHARACTERS, MAX_SECRET_CHARACTERS = 24, 200
MAX_WINDOW_S = 31 * 24 * 3600
MAX_AMOUNT = 2**53
"""More than the ledger can write."""


class InvalidAlias(ValueError):
    """An alias cannot be set like this; the sentence begins with the field."""


class InvalidLimit(ValueError):
    """A limit cannot be set like this; the sentence begins with the field."""


class InvalidWebhook(ValueError):
    """A webhook cannot be set like this; the sentence begins with the field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSetting:
    """One target of an alias, by names: exactly one of `upstream` and `deployment` is given."""

    upstream: str = ""
    model: str = ""
    """The name that the upstream knows; empty: the alias itself."""
    deployment: str = ""
    weight: int = 1
    priority: int = 0


@transaction.atomic
def set_upstream(
    *,
    project: Project,
    name: str,
    credential: str | None,
    actor: Actor,
    now: datetime,
    reason: str = "",
    **fields: object,
) -> Upstream:
    """Make the upstream of this name, or change it: `fields` are those of UpstreamSettings, and what is not given
    stays as it is.

    `credential` is the provider's key, "" for none, None to keep the one there is. The ledger gets everything but the
    credential. Raises InvalidUpstream, also when a credential is to be kept that was given for another origin.
    """
    _lock(project)
    if not UPSTREAM_NAME.fullmatch(name):
        raise InvalidUpstream(f"name: letters, digits, '.', '_' and '-' only, 1 to 100 of them, not {name!r}")
    row = Upstream.objects.filter(project=project, name=name).first()
    present = UpstreamSettings.model_validate(row).model_dump() if row else {}
    wanted = parsed({**present, **fields})
    row = row or Upstream(project=project, name=name, credential=b"", created_at=now)
    row.credential = _sealed(row, wanted.base_url, credential)
    for field, value in wanted.model_dump(mode="json").items():
        setattr(row, field, value)
    row.updated_at = now
    row.save()
    told: dict[str, JSON] = {"name": name, "has_credential": bool(row.credential)}
    told |= {field: _exact(value) for field, value in wanted.model_dump(mode="json").items()}
    _record(Action.UPSTREAM_SET, row, told, actor=actor, reason=reason, now=now)
    return row


@transaction.atomic
def remove_upstream(*, upstream: Upstream, actor: Actor, now: datetime, reason: str = "") -> None:
    """Forget a provider and its credential. Raises InvalidUpstream while an alias points to it."""
    _lock(upstream.project)
    upstream = Upstream.objects.select_related("project").get(pk=upstream.pk)
    aliases = Alias.objects.filter(targets__upstream=upstream).distinct().order_by("name")
    if aliases:
        named = ", ".join(alias.name for alias in aliases)
        raise InvalidUpstream(f"name: {upstream.name} is a target of {named}: change or remove that first")
    _record(Action.UPSTREAM_REMOVED, upstream, {"name": upstream.name}, actor=actor, reason=reason, now=now)
    upstream.delete()


@transaction.atomic
def set_alias(
    *,
    project: Project,
    name: str,
    targets: Sequence[TargetSetting],
    actor: Actor,
    now: datetime,
    reason: str = "",
) -> Alias:
    """Let a model name stand for these targets, and no others. It may hide a deployment of the same name. Raises
    InvalidAlias."""
    _lock(project)
    if not name.strip() or len(name) > 200:
        raise InvalidAlias(f"name: it must have 1 to 200 characters, not {len(name.strip())}")
    if not targets:
        raise InvalidAlias("targets: an alias needs at least one")
    alias, _ = Alias.objects.update_or_create(
        project=project,
        name=name,
        defaults={"updated_at": now},
        create_defaults={"created_at": now, "updated_at": now},
    )
    rows = [_target(alias, target) for target in targets]
    if len({(row.upstream_id, row.model, row.deployment_id) for row in rows}) < len(rows):
        raise InvalidAlias("targets: the same one is there twice: give it once, with one weight")
    alias.targets.all().delete()
    AliasTarget.objects.bulk_create(rows)
    told: list[JSON] = [{"target": row.place, "weight": row.weight, "priority": row.priority} for row in rows]
    _record(Action.ALIAS_SET, alias, {"name": name, "targets": told}, actor=actor, reason=reason, now=now)
    return alias


@transaction.atomic
def remove_alias(*, alias: Alias, actor: Actor, now: datetime, reason: str = "") -> None:
    """Let the name stand for itself again."""
    _lock(alias.project)
    alias = Alias.objects.select_related("project").get(pk=alias.pk)
    _record(Action.ALIAS_REMOVED, alias, {"name": alias.name}, actor=actor, reason=reason, now=now)
    alias.delete()


@transaction.atomic
def set_limit(
    *,
    project: Project,
    api_key: ApiKey | None,
    measure: str,
    amount: int,
    window_s: int,
    actor: Actor,
    now: datetime,
    reason: str = "",
) -> Limit:
    """Limit what a project, or one of its keys, uses in each window of this length; there is one limit for each
    measure and length. Raises InvalidLimit."""
    _lock(project)
    if measure not in list(Measure):
        raise InvalidLimit(f"measure: it must be one of {', '.join(Measure)}, not {measure!r}")
    if not 0 < amount <= MAX_AMOUNT:
        raise InvalidLimit(f"amount: it must be from 1 to {MAX_AMOUNT}, not {amount}")
    if not 0 < window_s <= MAX_WINDOW_S:
        raise InvalidLimit(f"window_s: it must be from 1 to {MAX_WINDOW_S} seconds, not {window_s}")
    if api_key is not None and api_key.project_id != project.pk:
        raise InvalidLimit(f"api_key: {api_key.prefix}… is not a key of {project}")
    limit, _ = Limit.objects.update_or_create(
        project=project,
        api_key=api_key,
        measure=measure,
        window_s=window_s,
        defaults={"amount": amount, "updated_at": now},
        create_defaults={"amount": amount, "created_at": now, "updated_at": now},
    )
    _record(Action.LIMIT_SET, limit, _told(limit), actor=actor, reason=reason, now=now)
    return limit


@transaction.atomic
def remove_limit(*, limit: Limit, actor: Actor, now: datetime, reason: str = "") -> None:
    """Let the limit go; its counts are forgotten with it."""
    _lock(limit.project)
    limit = Limit.objects.select_related("project").get(pk=limit.pk)
    _record(Action.LIMIT_REMOVED, limit, _told(limit), actor=actor, reason=reason, now=now)
    limit.delete()


@transaction.atomic
def set_webhook(
    *,
    project: Project,
    name: str,
    api_key: ApiKey,
    secret: str | None,
    actor: Actor,
    now: datetime,
    reason: str = "",
) -> Webhook:
    """Let a business system send signals of the project, signed with `secret`, as if they came with the API key.

    The webhook of this name is made, with an address of its own, or changed, and keeps its address. `secret` None: the
    one there is stays. Raises InvalidWebhook."""
    _lock(project)
    if not WEBHOOK_NAME.fullmatch(name):
        raise InvalidWebhook(f"name: small letters, digits and '-' only, 1 to 32 of them, not {name!r}")
    if api_key.project_id != project.pk or api_key.revoked_at is not None:
        raise InvalidWebhook(f"api_key: {api_key.prefix}… is not a live key of {project}")
    row = Webhook.objects.filter(project=project, name=name).first() or Webhook(
        project=project, name=name, address=f"{name}-{secrets.token_hex(6)}", secret=b"", created_at=now
    )
    if secret is not None:
        row.secret = _sealed_secret(row, secret)
    elif not row.secret:
        raise InvalidWebhook("secret: a new webhook needs one")
    row.api_key = api_key
    row.updated_at = now
    row.save()
    told: dict[str, JSON] = {**_told_of(row), "is_secret_new": secret is not None}
    _record(Action.WEBHOOK_SET, row, told, actor=actor, reason=reason, now=now)
    return row


@transaction.atomic
def remove_webhook(*, webhook: Webhook, actor: Actor, now: datetime, reason: str = "") -> None:
    """Take nothing any more under its address. Signals that came by it stay."""
    _lock(webhook.project)
    webhook = Webhook.objects.select_related("project").get(pk=webhook.pk)
    _record(Action.WEBHOOK_REMOVED, webhook, _told_of(webhook), actor=actor, reason=reason, now=now)
    webhook.delete()


def _lock(project: Project) -> None:
    """One change of a project's routing at a time: its rows point at each other."""
    Project.objects.select_for_update().get(pk=project.pk)


def _sealed(row: Upstream, base_url: str, credential: str | None) -> bytes:
    """What to store as credential of a row whose URL becomes `base_url`."""
    key, project_id = installation.KEYRING.credential_key, row.project_id
    if credential is None:
        if not row.credential:
            return b""
        try:
            credentials.unseal(bytes(row.credential), key=key, project_id=project_id, base_url=base_url)
        except credentials.Unreadable:
            raise InvalidUpstream(
                f"credential: the stored one is not for {credentials.origin(base_url)}: give it again, or say that"
                " there is none"
            ) from None
        return bytes(row.credential)
    credential = credential.strip()
    if not credential.isascii() or not credential.isprintable():
        raise InvalidUpstream("credential: it holds characters that no HTTP header can carry")
    if not credential:
        return b""
    return credentials.seal(credential, key=key, project_id=project_id, base_url=base_url)


def _sealed_secret(row: Webhook, secret: str) -> bytes:
    if not MIN_SECRET_CHARACTERS <= len(secret) <= MAX_SECRET_CHARACTERS:
        raise InvalidWebhook(
            f"secret: it must have {MIN_SECRET_CHARACTERS} to {MAX_SECRET_CHARACTERS} characters, not {len(secret)}"
        )
    return credentials.seal_secret(
        secret, key=installation.KEYRING.credential_key, project_id=row.project_id, webhook_id=row.pk
    )


def _told_of(row: Webhook) -> dict[str, JSON]:
    return {"name": row.name, "address": row.address, "api_key": str(row.api_key_id)}


def _target(alias: Alias, target: TargetSetting) -> AliasTarget:
    if bool(target.upstream) == bool(target.deployment):
        raise InvalidAlias("targets: each names an upstream or a deployment, and not both")
    if target.deployment and target.model:
        raise InvalidAlias(f"targets: the deployment {target.deployment} takes no model name")
    if not 0 < target.weight <= 1_000_000:
        raise InvalidAlias(f"targets: a weight must be from 1 to 1000000, not {target.weight}")
    if not 0 <= target.priority <= 1000:
        raise InvalidAlias(f"targets: a priority must be from 0 to 1000, not {target.priority}")
    if len(target.model) > 200:
        raise InvalidAlias(f"targets: a model name may have 200 characters, not {len(target.model)}")
    row = AliasTarget(
        project_id=alias.project_id,
        alias=alias,
        model=target.model,
        weight=target.weight,
        priority=target.priority,
    )
    if target.upstream:
        row.upstream = Upstream.objects.filter(project=alias.project_id, name=target.upstream).first()
    else:
        row.deployment = Deployment.objects.filter(project=alias.project_id, alias=target.deployment).first()
    if row.upstream is None and row.deployment is None:
        kind = "upstream" if target.upstream else "deployment"
        raise InvalidAlias(f"targets: the project has no {kind} {target.upstream or target.deployment!r}")
    return row


def _told(limit: Limit) -> dict[str, JSON]:
    return {
        "api_key": str(limit.api_key_id) if limit.api_key_id else None,
        "measure": limit.measure,
        "amount": limit.amount,
        "window_s": limit.window_s,
    }


def _exact(value: object) -> JSON:
    """A setting as the ledger holds it: numbers with a fraction as their text."""
    match value:
        case float():
            return repr(value)
        case dict():
            return {str(key): _exact(inner) for key, inner in value.items()}
        case list():
            return [_exact(inner) for inner in value]
        case None | bool() | int() | str():
            return value
    raise TypeError(f"a setting of type {type(value).__name__}")


def _record(
    action: Action,
    row: Upstream | Alias | Limit | Webhook,
    data: dict[str, JSON],
    *,
    actor: Actor,
    reason: str,
    now: datetime,
) -> None:
    ledger.record(
        action,
        actor=actor,
        organization_id=row.project.organization_id,
        project_id=row.project_id,
        obj=ObjectRef(row._meta.model_name or "", row.pk),
        at=now,
        reason=reason,
        data=data,
    )
    notify(ROUTES_CHANGED)
