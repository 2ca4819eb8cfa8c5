"""Dataset snapshots: episodes frozen into one file under one Merkle root, and read back as a stream.

Episodes pass through one by one, so a snapshot may be larger than memory. Nothing that anybody opted out of is ever
frozen. What a training makes of a snapshot is not decided here."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery

from accounts.models import ApiKey, Project
from audit import ledger
from audit.actions import Action, Actor, ObjectRef, Related
from kernel import merkle
from kernel.ids import uuid7
from kernel.objects import LargeObjects, ObjectMissing, lines
from learning import reward_specs
from learning.episodes.document import EpisodeDocument, InvalidEpisode, Reason
from learning.manifest import Chosen, Manifest
from learning.models import DatasetSnapshot, Episode, RewardSpecVersion
from telemetry.metrics import TRAINING_OPT_OUT
from telemetry.models import Signal

CHUNK = 200
"""Episodes that are in memory together."""


class SnapshotRefused(ValueError):
    """There is nothing to freeze, or not under this name; the sentence says why."""


class SnapshotDamaged(Exception):
    """The file is not the one that was frozen; the sentence says where."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which episodes a snapshot is to hold; what is left at its default lets everything pass."""

    since: datetime | None = None
    """Built at this time or later."""
    until: datetime | None = None
    """Built before this time."""
    task_keys: Sequence[str] = ()
    model_version_ids: Sequence[str] = ()
    """Of which at least one answered in the run."""
    model_alias: str = ""
    min_confidence: float = 0.0
    """Of the run's links, 0 to 1."""
    final_only: bool = False
    """Leave out episodes whose reward rests on values that may still change."""

    def narrowed(self, episodes: "QuerySet[Episode]") -> "QuerySet[Episode]":
        wanted = Q(confidence__gte=self.min_confidence)
        if self.since:
            wanted &= Q(created_at__gte=self.since)
        if self.until:
            wanted &= Q(created_at__lt=self.until)
        if self.task_keys:
            wanted &= Q(task_key__in=self.task_keys)
        if self.model_alias:
            wanted &= Q(model_alias=self.model_alias)
        if self.final_only:
            wanted &= Q(is_final=True)
        if self.model_version_ids:
            answered = Q()
            for version_id in self.model_version_ids:
                answered |= Q(model_version_ids__contains=version_id)
            wanted &= answered
        return episodes.filter(wanted)

    def to_dict(self) -> dict[str, object]:
        """As the manifest quotes it: no floats."""
        return {
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
            "task_keys": list(self.task_keys),
            "model_version_ids": list(self.model_version_ids),
            "model_alias": self.model_alias,
            "min_confidence": f"{self.min_confidence:.6f}",
            "final_only": self.final_only,
        }


def freeze(
    *,
    project: Project,
    name: str,
    actor: Actor,
    now: datetime,
    filters: Filters = Filters(),
) -> DatasetSnapshot:
    """Freeze the project's episodes under the reward spec in force: of each run the latest revision, if its reward is
    known and nobody opted out.

    Raises SnapshotRefused."""
    version = reward_specs.in_force(project.id)
    if version is None:
        raise SnapshotRefused("The project has no reward spec: publish one first.")
    if DatasetSnapshot.objects.filter(project=project, name=name).exists():
        raise SnapshotRefused(
            f"A snapshot named {name} exists, and snapshots never change: choose another name."
        )
    snapshot_id = uuid7()
    location = f"snapshots/{project.id}/{snapshot_id}.jsonl"
    manifest, tree, digest = Manifest(), merkle.Tree(), hashlib.sha256()
    store: LargeObjects = settings.LARGE_OBJECTS
    # Written before the row: a crash leaves a file that nobody names, never a row without its file.
    with store.writing(location) as file:
        for chosen in _chosen(project, version, filters):
            manifest.see(chosen)
            if not chosen.is_kept:
                continue
            file.write(chosen.payload + b"\n")
            digest.update(chosen.payload + b"\n")
            tree.add(merkle.leaf_hash(hashlib.sha256(chosen.payload).digest()))
        if not tree.size:
            raise SnapshotRefused(
                "No episode fits: a snapshot needs runs that are over, whose outcome signal has arrived, and that"
                f" may be learnt from ({manifest.excluded_in_words()})."
            )
    snapshot = DatasetSnapshot(
        id=snapshot_id,
        project=project,
        name=name,
        reward_spec=version,
        episode_count=tree.size,
        root=tree.root().hex(),
        file_sha256=digest.hexdigest(),
        location=location,
        manifest=manifest.to_dict(version, filters.to_dict()),
        frozen_at=now,
    )
    _keep(snapshot, actor=actor, now=now)
    return snapshot


def read(snapshot: DatasetSnapshot) -> Iterator[EpisodeDocument]:
    """The snapshot's episodes, in order and one at a time. What was read is known to be what was frozen once the end
    is reached. Raises SnapshotDamaged."""
    for line in read_lines(snapshot):
        try:
            yield EpisodeDocument.read(line)
        except InvalidEpisode as error:
            raise SnapshotDamaged(f"{snapshot.location} holds what is no episode: {error}") from error


def read_lines(snapshot: DatasetSnapshot) -> Iterator[bytes]:
    """The canonical bytes of the snapshot's episodes. Raises SnapshotDamaged, at the latest at the end."""
    store: LargeObjects = settings.LARGE_OBJECTS
    tree, digest = merkle.Tree(), hashlib.sha256()

    def counted() -> Iterator[bytes]:
        for chunk in store.chunks(snapshot.location):
            digest.update(chunk)
            yield chunk

    try:
        for line in lines(counted()):
            tree.add(merkle.leaf_hash(hashlib.sha256(line).digest()))
            yield line
    except ObjectMissing as error:
        raise SnapshotDamaged(str(error)) from error
    if digest.hexdigest() != snapshot.file_sha256:
        raise SnapshotDamaged(f"{snapshot.location} does not have the digest it was frozen with")
    if tree.root().hex() != snapshot.root or tree.size != snapshot.episode_count:
        raise SnapshotDamaged(f"{snapshot.location} does not lead to the root it was frozen with")


def verify(snapshot: DatasetSnapshot) -> None:
    """Compute the file's digest, root and count again. Raises SnapshotDamaged."""
    for _ in read_lines(snapshot):
        pass


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
            "excluded": snapshot.manifest["excluded"],
        },
    )


def _chosen(project: Project, version: RewardSpecVersion, filters: Filters) -> Iterator[Chosen]:
    """The latest revision of each run that the filters let pass, from a cursor of the server's, with every reason to
    leave it out."""
    latest = Episode.objects.filter(project=project, reward_spec=version)
    latest = latest.order_by("run_id", "-run_revision").distinct("run_id")
    opted_out = Signal.objects.filter(run_id=OuterRef("run_id"), name=TRAINING_OPT_OUT, step=None)
    opted_out = opted_out.order_by("-observed_at", "-received_at", "-id")
    keys = set(ApiKey.objects.filter(project=project, is_opted_out=True).values_list("id", flat=True))
    rows = filters.narrowed(Episode.objects.filter(id__in=latest.values("id"))).annotate(
        said=Subquery(opted_out.values("value")[:1])  # it may have come after the episode was built
    )
    with transaction.atomic():  # in which the cursor is the server's: rows come as they are read
        for episode in rows.order_by("id").iterator(chunk_size=CHUNK):
            reasons = set(filter(None, episode.untrainable.split(",")))
            if episode.api_key_id in keys:
                reasons.add(Reason.KEY)
            if episode.said is True:
                reasons.add(Reason.SIGNAL)
            if episode.reward is None:
                reasons.add("no_reward")
            yield Chosen(
                payload=bytes(episode.payload),
                reward=episode.reward,
                step_count=episode.step_count,
                task_key=episode.task_key,
                model_version_ids=tuple(episode.model_version_ids),
                principal=_principal(episode.api_key_id),
                built_at=episode.created_at,
                started_at=episode.started_at,
                excluded=tuple(sorted(reasons)),
            )


def _principal(key_id: UUID | None) -> str:
    """Who contributed, as the manifest names them: a digest of the API key's id."""
    return hashlib.sha256(b"ratchet.principal.v1" + key_id.bytes).hexdigest()[:16] if key_id else ""
