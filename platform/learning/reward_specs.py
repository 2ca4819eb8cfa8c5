"""Publishing reward specs: an immutable version of a project's idea of a good run, and which one is in force.

What a document means is `learning.rewards.spec`'s."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from accounts.models import Project
from audit import ledger
from audit.actions import Action, Actor, ObjectRef
from learning.models import RewardSpecVersion
from learning.rewards.spec import RewardSpec


@transaction.atomic
def publish(
    *,
    project: Project,
    name: str,
    document: Mapping[str, Any],
    actor: Actor,
    now: datetime,
    preview_digest: str = "",
) -> RewardSpecVersion:
    """Publish a document as the next version of `name`; it is in force from then on.

    A document that equals the name's latest version is that version, and nothing happens. `preview_digest` says in the
    ledger which preview (`learning.preview`) the publisher had seen.
    Raises InvalidRewardSpec."""
    spec = RewardSpec.parse(dict(document))
    spec.check_own_terms()
    Project.objects.select_for_update().get(id=project.id)  # one publisher at a time numbers versions
    latest = RewardSpecVersion.objects.filter(project=project, name=name).order_by("-version").first()
    if latest is not None and latest.digest == spec.digest:
        return latest
    version = RewardSpecVersion.objects.create(
        project=project,
        name=name,
        version=latest.version + 1 if latest else 1,
        document=spec.to_dict(),
        digest=spec.digest,
        created_at=now,
    )
    ledger.record(
        Action.REWARD_SPEC_PUBLISHED,
        actor=actor,
        organization_id=project.organization_id,
        project_id=project.id,
        obj=ObjectRef("reward_spec", version.id, version.digest),
        at=now,
        data={"name": name, "version": version.version, "preview": preview_digest},
    )
    return version


def in_force(project_id: UUID) -> RewardSpecVersion | None:
    """The project's reward spec: the version published last."""
    return RewardSpecVersion.objects.filter(project_id=project_id).order_by("-created_at", "-id").first()
