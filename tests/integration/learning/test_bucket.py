"""A bucket of an S3-compatible server keeps snapshots as the local folder does."""

import socket

import boto3
import pytest
from moto.server import ThreadedMotoServer

from kernel.bucket import Bucket
from kernel.objects import ObjectMissing
from learning import snapshots
from learning.episodes import due


@pytest.fixture(scope="module")
def server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    served.start()
    yield f"http://127.0.0.1:{port}"
    served.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(Bucket="company")
    return Bucket("s3://company/ratchet", endpoint=server)


def test_snapshots_lie_in_a_bucket(live_run, project, reward_spec, maya, now, bucket, settings):
    settings.LARGE_OBJECTS = bucket
    live_run(signals={"resolved": True})
    due.build_due(project_id=project.id, now=now)
    snapshot = snapshots.freeze(project=project, name="week", actor=maya, now=now)
    [document] = snapshots.read(snapshot)
    assert document.reward.parts["outcome"] == 1.0


def test_an_object_of_several_parts_comes_back_and_a_broken_one_never_was(bucket):
    part = bytes(range(256)) * 4096
    with bucket.writing("large") as file:
        for _ in range(20):
            file.write(part)
    assert b"".join(bucket.chunks("large")) == part * 20

    def fail():
        with bucket.writing("broken") as file:
            file.write(part)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(ObjectMissing):
        list(bucket.chunks("broken"))


def test_what_is_no_bucket_is_refused():
    with pytest.raises(ValueError, match="s3://"):
        Bucket("/var/lib/ratchet")
