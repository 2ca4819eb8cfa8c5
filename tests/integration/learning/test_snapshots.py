"""Episodes frozen into a file under one root."""

import hashlib
import json
from datetime import timedelta

import pytest

from accounts.models import ApiKey
from accounts.services import set_training_opt_out
from audit.models import Event
from kernel import merkle
from kernel.ids import uuid7
from learning import snapshots
from learning.episodes import due as episodes
from learning.models import DatasetSnapshot, Episode
from telemetry import signals
from telemetry.models import Signal


@pytest.fixture
def history(live_run, project, reward_spec, now):
    for number in range(5):
        live_run(f"train-{number:04d}", at=10 * number, signals={"resolved": number % 2 == 0})
    live_run("train-0009", at=90, signals={"risk": 0.0})
    episodes.build_due(project_id=project.id, now=now)


def freeze(project, maya, now, **filters):
    return snapshots.freeze(
        project=project,
        name=filters.pop("name", "week"),
        actor=maya,
        now=now,
        filters=snapshots.Filters(**filters),
    )


def test_a_snapshot_holds_the_rewarded_episodes_in_order_under_its_root(history, project, maya, now, store):
    snapshot = freeze(project, maya, now)

    content = store.path(snapshot.location).read_bytes()
    digests = [hashlib.sha256(line).hexdigest() for line in content.splitlines()]
    kept = list(Episode.objects.exclude(reward=None).order_by("id"))
    assert digests == [episode.sha256 for episode in kept]
    assert snapshot.episode_count == 5
    assert snapshot.root == merkle.root([merkle.leaf_hash(bytes.fromhex(digest)) for digest in digests]).hex()
    assert snapshot.manifest["task_keys"] == [f"train-{number:04d}" for number in range(5)]
    assert float(snapshot.manifest["mean_reward"]) == pytest.approx(3 / 5 - 0.04)
    assert (
        json.loads(bytes(Event.objects.get(action="snapshot.frozen").body))["object"]["digest"]
        == snapshot.root
    )
    snapshots.verify(snapshot)


def test_a_changed_file_is_found(history, project, maya, now, store):
    snapshot = freeze(project, maya, now)
    path = store.path(snapshot.location)
    path.write_bytes(path.read_bytes().replace(b"lamp", b"lump", 1))
    with pytest.raises(snapshots.SnapshotDamaged, match="digest"):
        snapshots.verify(snapshot)
    path.unlink()
    with pytest.raises(snapshots.SnapshotDamaged, match="cannot be read"):
        snapshots.verify(snapshot)


def test_only_the_latest_revision_of_a_run_is_taken(history, project, maya, now):
    episode = Episode.objects.get(task_key="train-0000")
    later = Episode.objects.get(id=episode.id)
    later.pk, later.run_revision, later.reward = Episode().pk, episode.run_revision + 1, 0.25
    later.save(force_insert=True)
    snapshot = freeze(project, maya, now)
    assert snapshot.episode_count == 5
    assert float(snapshot.manifest["mean_reward"]) == pytest.approx((3 - 1 + 0.04 + 0.25 - 5 * 0.04) / 5)


def test_nothing_to_freeze_is_said_in_a_sentence(history, project, maya, now):
    freeze(project, maya, now)
    for filters, sentence in [
        ({"name": "week"}, "exists"),
        ({"name": "b", "task_keys": ["no"]}, "No episode fits"),
    ]:
        with pytest.raises(snapshots.SnapshotRefused, match=sentence):
            freeze(project, maya, now, **filters)
    assert DatasetSnapshot.objects.count() == 1


def test_a_late_signal_changes_the_next_revision_and_not_the_frozen_snapshot(
    live_run, project, reward_spec, maya, now
):
    lived = live_run(signals={"resolved": True})
    episodes.build_due(project_id=project.id, now=now)
    before = freeze(project, maya, now, name="before")
    later = now + timedelta(weeks=3)
    Signal.objects.create(
        id=uuid7(), project=project, target_type="run_id", target=str(lived.run.id), name="resolved",
        value=False, observed_at=later, received_at=later, stored_at=later,
    )  # fmt: skip
    signals.join_pending(project_id=project.id, now=later)
    episodes.build_due(project_id=project.id, now=later)
    after = freeze(project, maya, later, name="after")

    [frozen], [new] = list(snapshots.read(before)), list(snapshots.read(after))
    assert (frozen.reward.parts["outcome"], new.reward.parts["outcome"]) == (1.0, 0.0)
    assert new.run.revision > frozen.run.revision
    assert new.run.id == frozen.run.id
    snapshots.verify(before)


def test_what_was_opted_out_of_is_never_frozen_and_counted(live_run, project, reward_spec, maya, now):
    live_run(signals={"resolved": True})
    live_run(at=5, signals={"resolved": True}, is_opted_out=True)
    told = live_run(at=10, signals={"resolved": True})
    episodes.build_due(project_id=project.id, now=now)
    Signal.objects.create(  # no episode knows of it yet
        id=uuid7(), project=project, target_type="run_id", target=str(told.run.id), run=told.run,
        name="training_opt_out", value=True, observed_at=now, received_at=now, stored_at=now,
    )  # fmt: skip
    snapshot = freeze(project, maya, now)
    assert snapshot.episode_count == 1
    assert snapshot.manifest["excluded"] == {"episodes": 2, "reasons": {"caller": 1, "signal": 1}}

    key = ApiKey.objects.get(project=project)
    set_training_opt_out(key=key, is_opted_out=True, actor=maya, now=now)
    with pytest.raises(snapshots.SnapshotRefused, match="key 3"):
        freeze(project, maya, now, name="none")


def test_a_manifest_says_who_contributed(history, project, maya, now):
    manifest = freeze(project, maya, now).manifest
    [principal] = manifest["principals"]
    assert (principal["episodes"], principal["share"]) == (5, "1.000000")
    assert str(ApiKey.objects.get(project=project).id) not in json.dumps(manifest)
    assert manifest["rewards"] == {"min": "-0.040000", "max": "0.960000", "standard_deviation": "0.489898"}


def test_filters_narrow(history, project, maya, now):
    snapshot = freeze(project, maya, now, task_keys=["train-0001", "train-0002"], min_confidence=1.0)
    assert snapshot.manifest["task_keys"] == ["train-0001", "train-0002"]
    with pytest.raises(snapshots.SnapshotRefused, match="No episode fits"):
        freeze(project, maya, now, name="other", model_alias="nobody")
