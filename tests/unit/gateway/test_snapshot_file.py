"""A snapshot comes back from disk as it was, under its own keyring only, and from nothing else."""

import base64
import fcntl
import os
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.limits import Limit, Measure
from gateway.routing import AliasTarget, Price, ProjectRoutes, Timeouts, Upstream
from gateway.snapshot import EMPTY, Caller, Snapshot, Webhook
from gateway.snapshot_file import SnapshotFile
from release.routing import Route, Target
from telemetry.metrics import Better, Kind, Level, Metric, Rules

KEY = base64.urlsafe_b64encode(os.urandom(32))
PROJECT, UPSTREAM = uuid4(), uuid4()
CHAMPION = Target(str(uuid4()), "desk-v1", "desk:1", "http://127.0.0.1:8402")
FULL = Snapshot(
    callers={
        os.urandom(32): Caller(uuid4(), PROJECT, is_opted_out=True),
        bytes(32): Caller(uuid4(), uuid4()),
    },
    projects={
        PROJECT: ProjectRoutes(
            deployments={
                "desk": Route(
                    project_id=str(PROJECT),
                    alias="desk",
                    deployment_id=str(uuid4()),
                    champion=CHAMPION,
                    canary=replace(CHAMPION, version="desk-v2"),
                    canary_share=0.1,
                    salt="salt",
                ),
            },
            aliases={
                "smart": (
                    AliasTarget(weight=3, priority=1, upstream_id=UPSTREAM, model="gpt"),
                    AliasTarget(weight=1, deployment="desk"),
                )
            },
            upstreams=(
                Upstream(
                    id=UPSTREAM,
                    name="offen für “alle”",
                    base_url="https://api.example.com/v1",
                    credential="sk-secret",
                    auth="x-api-key",
                    priority=2,
                    serves=("chat", "messages"),
                    timeouts=Timeouts(connect_s=1.5, first_byte_s=20.0, idle_s=30.0),
                    max_retries=4,
                    asks_usage=False,
                    prices={"gpt": Price(input=2.5, output=10.0, cached_input=1.25)},
                ),
            ),
        )
    },
    limits={
        PROJECT: (
            Limit(id=uuid4(), subject="project", measure=Measure.MICROUSD, amount=2**40, window_s=60),
            Limit(id=uuid4(), subject="API key", measure=Measure.REQUESTS, amount=7, window_s=10),
        )
    },
    rules={
        PROJECT: Rules(
            {
                "stars": Metric(
                    name="stars",
                    kind=Kind.NUMBER,
                    level=Level.STEP,
                    better=Better.HIGHER,
                    minimum=0.5,
                    maximum=5.0,
                    window_s=60,
                    description="what users gave",
                ),
                "mood": Metric(name="mood", kind=Kind.LABEL, labels=("good", "bad")),
            },
            is_strict=True,
        )
    },
    webhooks={"helpdesk-1": Webhook("helpdesk", Caller(uuid4(), PROJECT), "whsec_secret")},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway" / "snapshot.sealed"


@pytest.fixture
def file(path: Path) -> SnapshotFile:
    return SnapshotFile(path, key=KEY)


def read(file: SnapshotFile) -> Snapshot | None:
    kept = file.read()
    return kept.snapshot if kept else None


def fields_at_their_default(value: object) -> set[str]:
    """Names of fields, anywhere below, that no value of their type has set."""
    seen: dict[str, bool] = {}

    def visit(value: object) -> None:
        if is_dataclass(value):
            for field in fields(value):
                inner = getattr(value, field.name)
                default = field.default_factory() if field.default_factory is not MISSING else field.default
                name = f"{type(value).__name__}.{field.name}"
                seen[name] = seen.get(name, False) or inner != default
                visit(inner)
        elif isinstance(value, dict):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, tuple):
            for inner in value:
                visit(inner)

    visit(value)
    return {name for name, departs in seen.items() if not departs}


def with_upstream(**changes: object) -> Snapshot:
    routes = FULL.projects[PROJECT]
    upstream = replace(routes.upstreams[0], **changes)  # type: ignore[arg-type]
    return replace(FULL, projects={PROJECT: replace(routes, upstreams=(upstream,))})


def test_every_field_comes_back(file: SnapshotFile) -> None:
    assert fields_at_their_default(FULL) == set()
    deployment = replace(FULL.projects[PROJECT].deployments["desk"], canary=None)
    without_canary = replace(FULL, projects={PROJECT: ProjectRoutes(deployments={"desk": deployment})})
    for snapshot in (FULL, EMPTY, with_upstream(credential=None), without_canary):
        file.keep(snapshot)
        assert read(file) == snapshot


def test_nothing_of_it_can_be_read_without_the_keyring(
    file: SnapshotFile, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.keep(FULL)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert b"sk-secret" not in path.read_bytes()
    assert b"example.com" not in path.read_bytes()
    stranger = SnapshotFile(path, key=base64.urlsafe_b64encode(os.urandom(32)))
    assert read(stranger) is None
    assert "another keyring" in caplog.text
    assert "sk-secret" not in caplog.text


def test_an_altered_file_or_another_shape_is_ignored_and_replaced(
    file: SnapshotFile, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.keep(FULL)
    whole = path.read_bytes()
    body = whole.index(b"\n") + 1
    altered = {
        b"": "another version",
        whole[: body + 5]: "altered",
        whole[:-1]: "altered",
        whole.replace(b" 3\n", b" 4\n", 1): "another version",
        **{
            whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]: "altered"
            for at in (body, body + 12, len(whole) - 1)
        },
    }
    for content, reason in altered.items():
        caplog.clear()
        path.write_bytes(content)
        assert read(file) is None
        assert reason in caplog.text
        file.keep(FULL)
        assert read(file) == FULL
    for plain in (b"[]", b"{", b'{"callers":{"zz":{}},"projects":{},"limits":{}}'):
        file._write(path, plain)
        caplog.clear()
        assert read(file) is None
        assert "another shape" in caplog.text


def test_it_is_written_when_it_has_changed_and_confirmed_otherwise(file: SnapshotFile, path: Path) -> None:
    file.keep(FULL)
    first = path.stat()
    os.utime(path, (0, 0))
    file.keep(replace(FULL, callers=dict(reversed(FULL.callers.items()))))
    assert path.stat().st_ino == first.st_ino
    kept = file.read()
    assert kept is not None
    assert kept.confirmed_at_s >= first.st_mtime
    file.keep(EMPTY)
    assert path.stat().st_ino != first.st_ino
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_what_another_process_put_there_is_put_right(file: SnapshotFile, path: Path) -> None:
    """One that stood still between loading and writing, and then brings back a key that was revoked."""
    late = SnapshotFile(path, key=KEY)
    file.keep(EMPTY)
    late.keep(FULL)
    file.keep(EMPTY)
    assert read(file) == EMPTY


def test_two_writers_never_meet_and_a_killed_one_leaves_nothing_in_the_way(
    file: SnapshotFile, path: Path
) -> None:
    file.keep(FULL)
    path.with_suffix(".draft").write_bytes(b"half")
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    file.keep(EMPTY)
    assert read(file) == FULL
    os.close(folder)
    file.keep(EMPTY)
    assert read(file) == EMPTY
    assert path.stat().st_mode & 0o777 == 0o600
    assert not path.with_suffix(".draft").exists()


def test_a_disk_that_refuses_is_said_once(
    file: SnapshotFile, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(file) is None
    assert caplog.text == ""
    path.parent.write_text("in the way")
    file.keep(FULL)
    file.keep(FULL)
    assert [record.getMessage() for record in caplog.records] == [
        f"keys and routes are not kept for the next start: [Errno 17] File exists: '{path.parent}'"
    ]
    path.parent.unlink()
    file.keep(FULL)
    assert read(file) == FULL
