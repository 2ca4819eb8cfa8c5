"""Dataset snapshots: a frozen, ordered set of episodes in one file, under one Merkle root.

The file holds the episodes' payloads, one a line, in the order of their ids. Its root commits to every one
of them, so a training job, and an auditor years later, can name exactly what was learnt from."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from accounts.models import Project
from audit import ledger
from audit.actions import Action, Actor, ObjectRef, Related
from kernel import merkle
from kernel.ids import uuid7
from kernel.objects import ObjectStore
from learning import reward_specs
from learning.models import DatasetSnapshot, Episode, RewardSpecVersion


class SnapshotRefused(ValueError):
    """There is nothing to freeze, or not under this name; the sentence says why."""


class SnapshotDamaged(Exception):
    """The file is not the one that was frozen; the sentence says where."""


def freeze(
    *,
    project: Project,
    name: str,
    actor: Actor,
    now: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    task_keys: Sequence[str] = (),
) -> DatasetSnapshot:
    """Freeze the project's episodes under the reward spec in force: of each run the latest revision, if its
    reward is known.

    `since` and `until` bound when episodes were built; `task_keys` keeps those tasks only. Raises
    SnapshotRefused."""
    version = reward_specs.in_force(project.id)
    if version is None:
        raise SnapshotRefused("The project has no reward spec: publish one first.")
    if DatasetSnapshot.objects.filter(project=project, name=name).exists():
        raise SnapshotRefused(
            f"A snapshot named {name} exists, and snapshots never change: choose another name."
        )
    episodes = list(_chosen(project, version, since=since, until=until, task_keys=task_keys))
    if not episodes:
        raise SnapshotRefused(
            "No episode fits: a snapshot needs runs that are over and whose outcome signal has arrived."
        )
    snapshot_id = uuid7()
    location = f"snapshots/{project.id}/{snapshot_id}.jsonl"
    content = b"".join(bytes(episode.payload) + b"\n" for episode in episodes)
    store: ObjectStore = settings.OBJECT_STORE
    # Written before the row: a crash leaves a file that nobody names, never a row without its file.
    store.write(location, content)
    snapshot = DatasetSnapshot(
        id=snapshot_id,
        project=project,
        name=name,
        reward_spec=version,
        episode_count=len(episodes),
        root=_root(content),
        file_sha256=hashlib.sha256(content).hexdigest(),
        location=location,
        manifest=_manifest(episodes, version, since=since, until=until, task_keys=task_keys),
        frozen_at=now,
    )
    _keep(snapshot, actor=actor, now=now)
    return snapshot


def verify(snapshot: DatasetSnapshot) -> None:
    """Compute the file's digest, root and count again. Raises SnapshotDamaged."""
    store: ObjectStore = settings.OBJECT_STORE
    try:
        content = store.path(snapshot.location).read_bytes()
    except OSError as error:
        raise SnapshotDamaged(f"{snapshot.location} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != snapshot.file_sha256:
        raise SnapshotDamaged(f"{snapshot.location} does not have the digest it was frozen with")
    if _root(content) != snapshot.root or content.count(b"\n") != snapshot.episode_count:
        raise SnapshotDamaged(f"{snapshot.location} does not lead to the root it was frozen with")


@transaction.atomic
def _keep(snapshot: DatasetSnapshot, *, actor: Actor, now: datetime) -> None:
    snapshot.save(force_insert=True)
    ledger.record(
        Action.SNAPSHOT_FROZEN,
        actor=actor,
        organization_id=snapshot.project.organization_id,
        project_id=snapshot.project_id,
        obj=ObjectRef("snapshot", snapshot.id, snapshot.root),
        at=now,
        related=[Related("reward_spec", "reward_spec", snapshot.reward_spec_id, snapshot.reward_spec.digest)],
        data={
            "name": snapshot.name,
            "episodes": snapshot.episode_count,
            "root": snapshot.root,
            "file_sha256": snapshot.file_sha256,
        },
    )


def _chosen(
    project: Project,
    version: RewardSpecVersion,
    *,
    since: datetime | None,
    until: datetime | None,
    task_keys: Sequence[str],
) -> "QuerySet[Episode]":
    latest = Episode.objects.filter(project=project, reward_spec=version)
    latest = latest.order_by("run_id", "-run_revision").distinct("run_id")
    episodes = Episode.objects.filter(id__in=latest.values("id"), reward__isnull=False)
    if since:
        episodes = episodes.filter(created_at__gte=since)
    if until:
        episodes = episodes.filter(created_at__lt=until)
    if task_keys:
        episodes = episodes.filter(task_key__in=task_keys)
    return episodes.order_by("id")


def _root(content: bytes) -> str:
    """RFC 6962's tree over the sha256 of each line."""
    lines = content.split(b"\n")[:-1]
    return merkle.root([merkle.leaf_hash(hashlib.sha256(line).digest()) for line in lines]).hex()


def _manifest(
    episodes: Sequence[Episode],
    version: RewardSpecVersion,
    *,
    since: datetime | None,
    until: datetime | None,
    task_keys: Sequence[str],
) -> dict[str, Any]:
    """What is in the file, in figures. Without floats, so that it may be quoted in the ledger."""
    rewards = [episode.reward or 0.0 for episode in episodes]
    return {
        "schema": 1,
        "episodes": len(episodes),
        "steps": sum(episode.step_count for episode in episodes),
        "first_built_at": min(episode.created_at for episode in episodes).isoformat(),
        "last_built_at": max(episode.created_at for episode in episodes).isoformat(),
        "reward_spec": {"id": str(version.id), "name": str(version), "digest": version.digest},
        "mean_reward": f"{sum(rewards) / len(rewards):.6f}",
        "task_keys": sorted({episode.task_key for episode in episodes if episode.task_key}),
        "model_version_ids": sorted({item for episode in episodes for item in episode.model_version_ids}),
        "filters": {
            "since": since.isoformat() if since else None,
            "until": until.isoformat() if until else None,
            "task_keys": list(task_keys),
        },
    }
