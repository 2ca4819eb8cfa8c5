"""What the gateway knows of the installation: keys, routes, limits, metrics, always whole, and how PostgreSQL is
asked for it.

When it is asked, and what serves while it does not answer, is `gateway.keeper`'s business. Decides nothing about
calls."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

import psycopg
from django.conf import settings
from django.db import connection

from accounts.selectors import live_keys
from gateway import credentials, models
from gateway.limits import Limit, Measure
from gateway.routing import AliasTarget, Price, ProjectRoutes, Timeouts, Upstream
from kernel.notify import ROUTES_CHANGED
from release.routing import Route
from release.selectors import routes
from telemetry.declarations import rules_of
from telemetry.metrics import Rules
from telemetry.models import SpoolPosition

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the API key and its project."""

    key_id: UUID
    project_id: UUID
    is_opted_out: bool = False
    """Nothing may be learnt from what it calls."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who may send signals under an address, and how it proves that it is the one."""

    name: str
    caller: Caller
    """The API key whose signals they are."""
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Snapshot:
    """One consistent view. Never changed, only replaced."""

    callers: Mapping[bytes, Caller]
    """By the digest of the API key."""
    projects: Mapping[UUID, ProjectRoutes]
    """A project that may call nothing yet is not there."""
    limits: Mapping[UUID, tuple[Limit, ...]]
    """By the id of the project or API key that they bind."""
    rules: Mapping[UUID, Rules]
    """What feedback is held against, by project; one that has declared nothing is not there."""
    webhooks: Mapping[str, Webhook]
    """By address."""


EMPTY = Snapshot(callers={}, projects={}, limits={}, rules={}, webhooks={})


class Source(Protocol):
    """Where snapshots come from."""

    def load(self) -> Snapshot: ...

    def shipped(self, process: str) -> Mapping[str, tuple[int, int]]:
        """Boot -> segment and byte offset up to which a process's spool is in the database."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when something may have changed, at the latest after `timeout_s`."""
        ...

    def close(self) -> None: ...


class DatabaseSource:
    """PostgreSQL, over this thread's Django connection. Listening begins before the first load, so no change
    is missed."""

    def __init__(self) -> None:
        self._unreadable: set[UUID] = set()
        """Upstreams and webhooks whose secret has been complained about."""

    def load(self) -> Snapshot:
        """Everything in nine queries, however many projects there are."""
        self._listen()
        deployments: dict[UUID, dict[str, Route]] = {}
        for route in routes():
            deployments.setdefault(UUID(route.project_id), {})[route.alias] = route
        upstreams: dict[UUID, list[Upstream]] = {}
        for row in models.Upstream.objects.filter(is_enabled=True).order_by("priority", "name"):
            upstreams.setdefault(row.project_id, []).append(self._upstream(row))
        aliases: dict[UUID, dict[str, tuple[AliasTarget, ...]]] = {}
        for target in models.AliasTarget.objects.select_related("alias", "deployment").order_by("pk"):
            names = aliases.setdefault(target.project_id, {})
            names[target.alias.name] = (*names.get(target.alias.name, ()), _target(target))
        limits: dict[UUID, tuple[Limit, ...]] = {}
        for limit in models.Limit.objects.order_by("pk"):
            subject = limit.api_key_id or limit.project_id
            limits[subject] = (*limits.get(subject, ()), _limit(limit))
        return Snapshot(
            callers={
                key.digest: Caller(UUID(key.key_id), UUID(key.project_id), key.is_opted_out)
                for key in live_keys()
            },
            projects={
                project_id: ProjectRoutes(
                    deployments=deployments.get(project_id, {}),
                    aliases=aliases.get(project_id, {}),
                    upstreams=tuple(upstreams.get(project_id, ())),
                )
                for project_id in {*deployments, *aliases, *upstreams}
            },
            limits=limits,
            rules=rules_of(),
            webhooks=self._webhooks(),
        )

    def shipped(self, process: str) -> Mapping[str, tuple[int, int]]:
        rows = SpoolPosition.objects.filter(process=process).order_by("segment")
        return {row.boot: (row.segment, row.offset_bytes) for row in rows}

    def wait(self, timeout_s: float) -> None:
        for _ in self._listen().notifies(timeout=timeout_s, stop_after=1):
            pass

    def close(self) -> None:
        connection.close()

    def _listen(self) -> "psycopg.Connection[Any]":
        is_new = connection.connection is None
        connection.ensure_connection()
        listening: psycopg.Connection[Any] = connection.connection
        if is_new:
            listening.execute(f"LISTEN {ROUTES_CHANGED}")
        return listening

    def _upstream(self, row: models.Upstream) -> Upstream:
        environment = settings.ENVIRONMENT
        return Upstream(
            id=row.pk,
            name=row.name,
            base_url=row.base_url,
            credential=self._credential(row),
            auth=row.auth,
            priority=row.priority,
            serves=tuple(row.serves),
            timeouts=Timeouts(
                connect_s=row.connect_timeout_s or environment.connect_timeout_s,
                first_byte_s=row.first_byte_timeout_s or environment.first_byte_timeout_s,
                idle_s=row.idle_timeout_s or environment.idle_timeout_s,
            ),
            max_retries=row.max_retries,
            asks_usage=row.asks_usage,
            prices={model: Price(**price) for model, price in row.prices.items()},
        )

    def _webhooks(self) -> dict[str, Webhook]:
        """Those whose API key lives and whose secret can be read."""
        found = {}
        for row in models.Webhook.objects.filter(api_key__revoked_at=None).order_by("pk"):
            try:
                secret = credentials.unseal_secret(
                    bytes(row.secret),
                    key=settings.KEYRING.credential_key,
                    project_id=row.project_id,
                    webhook_id=row.pk,
                )
            except credentials.Unreadable:
                if row.pk not in self._unreadable:
                    log.error(
                        "webhook %s of project %s takes nothing: its secret cannot be read. Was keyring.json replaced,"
                        " or the row edited? Set the webhook again, with its secret.",
                        row.name, row.project_id,
                    )  # fmt: skip
                self._unreadable.add(row.pk)
            else:
                self._unreadable.discard(row.pk)
                found[row.address] = Webhook(row.name, Caller(row.api_key_id, row.project_id), secret)
        return found

    def _credential(self, row: models.Upstream) -> str | None:
        """The credential, or None when it cannot be read; said once, until it can be read again."""
        if not row.credential:
            return ""
        try:
            credential = credentials.unseal(
                bytes(row.credential),
                key=settings.KEYRING.credential_key,
                project_id=row.project_id,
                base_url=row.base_url,
            )
        except credentials.Unreadable:
            if row.pk not in self._unreadable:
                log.error(
                    "upstream %s of project %s is not called: its credential cannot be read for %s. Was keyring.json"
                    " replaced, or the row edited? Set the upstream again, with its credential.",
                    row.name, row.project_id, row.base_url,
                )  # fmt: skip
            self._unreadable.add(row.pk)
            return None
        self._unreadable.discard(row.pk)
        return credential


def _target(row: models.AliasTarget) -> AliasTarget:
    return AliasTarget(
        weight=row.weight,
        priority=row.priority,
        upstream_id=row.upstream_id,
        model=row.model,
        deployment=row.deployment.alias if row.deployment else "",
    )


def _limit(row: models.Limit) -> Limit:
    return Limit(
        id=row.pk,
        subject="API key" if row.api_key_id else "project",
        measure=Measure(row.measure),
        amount=row.amount,
        window_s=row.window_s,
    )
