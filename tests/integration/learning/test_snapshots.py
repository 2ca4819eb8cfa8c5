"""Episodes frozen into a file under one root."""

import hashlib
import json

import pytest

from audit.models import Event
from kernel import merkle
from learning import snapshots
from learning.episodes import due as episodes
from learning.models import DatasetSnapshot, Episode


@pytest.fixture
def history(live_run, project, reward_spec, now):
    for number in range(5):
        live_run(f"train-{number:04d}", at=10 * number, signals={"resolved": number % 2 == 0})
    live_run("train-0009", at=90, signals={"risk": 0.0})
    episodes.build_due(project_id=project.id, now=now)


def freeze(project, maya, now, **filters):
    return snapshots.freeze(project=project, name=filters.pop("name", "week"), actor=maya, now=now, **filters)


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
