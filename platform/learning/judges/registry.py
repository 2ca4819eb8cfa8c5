"""Registering judges: an immutable version each, with its audit event; the latest version of a name judges.

Whether a judge is good enough to be used is `learning.judges.standing`'s."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

from accounts.models import Project
from audit import ledger
from audit.actions import Action, Actor, ObjectRef
from learning.judges import credentials
from learning.judges.definition import JudgeDefinition
from learning.models import Judge


@transaction.atomic
def register(
    *, project: Project, document: Mapping[str, Any], credential: str, actor: Actor, now: datetime
) -> Judge:
    """Register a document as the next version of its judge.

    The same document with the same credential again is the version that it was.
    Raises InvalidJudge."""
    definition = JudgeDefinition.parse(dict(document))
    Project.objects.select_for_update().get(id=project.id)  # one registrar at a time numbers versions
    latest = Judge.objects.filter(project=project, name=definition.name).order_by("-version").first()
    if latest is not None and latest.digest == definition.digest and credential_of(latest) == credential:
        return latest
    judge = Judge.objects.create(
        project=project,
        name=definition.name,
        version=latest.version + 1 if latest else 1,
        document=definition.to_dict(),
        digest=definition.digest,
        credential=credentials.seal(
            credential,
            key=settings.KEYRING.credential_key,
            project_id=project.id,
            base_url=definition.base_url,
        )
        if credential
        else b"",
        created_at=now,
    )
    ledger.record(
        Action.JUDGE_REGISTERED,
        actor=actor,
        organization_id=project.organization_id,
        project_id=project.id,
        obj=ObjectRef("judge", judge.id, judge.digest),
        at=now,
        data={
            "name": judge.name,
            "version": judge.version,
            "kind": definition.kind.value,
            "model": definition.model,
            "base_url": definition.base_url,
        },
    )
    return judge


def in_force(project_id: UUID) -> list[Judge]:
    """The latest version of each of the project's judges."""
    return list(Judge.objects.filter(project_id=project_id).order_by("name", "-version").distinct("name"))


def projects_with_judges() -> list[UUID]:
    """Projects that have any."""
    return list(Judge.objects.order_by().values_list("project_id", flat=True).distinct())


def credential_of(judge: Judge) -> str:
    """The key of its model server; "" when it needs none. Raises credentials.Unreadable."""
    if not judge.credential:
        return ""
    return credentials.unseal(
        bytes(judge.credential),
        key=settings.KEYRING.credential_key,
        project_id=judge.project_id,
        base_url=judge.document["base_url"],
    )
