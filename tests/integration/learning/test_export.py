"""Exports load in `datasets` as they are, and nothing in them changes on the way."""

import json
from io import StringIO

import datasets
import pytest
from django.core.management import CommandError, call_command

from learning import snapshots
from learning.episodes import due


@pytest.fixture
def snapshot(live_run, project, reward_spec, maya, now):
    for number in range(3):
        live_run(f"train-{number}", at=10 * number, signals={"resolved": number > 0})
    due.build_due(project_id=project.id, now=now)
    return snapshots.freeze(project=project, name="week", actor=maya, now=now)


@pytest.mark.parametrize(("form", "loader"), [("jsonl", "json"), ("parquet", "parquet")])
@pytest.mark.parametrize(("view", "rows"), [("episodes", 3), ("conversations", 3), ("steps", 6)])
def test_it_loads_in_datasets_unchanged(snapshot, tmp_path, form, loader, view, rows):
    file = tmp_path / f"week.{form}"
    out = StringIO()
    call_command("export_snapshot", "week", "--format", form, "--view", view, "--to", str(file), stdout=out)
    assert json.loads(out.getvalue())["rows"] == rows
    loaded = datasets.load_dataset(
        loader, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == rows
    if view == "conversations":
        called = loaded[0]["messages"][2]["tool_calls"][0]["function"]
        assert called == {"name": "lookup_order", "arguments": '{"order_id": "4817"}'}
    if view == "steps":
        assert sorted(row["label"] for row in loaded) == [False] * 2 + [True] * 4
        assert {row["weight"] for row in loaded} == {0.5}
        assert [len(row["completion"]) for row in loaded] == [1] * 6


def test_a_damaged_snapshot_is_not_exported(snapshot, tmp_path, store):
    path = store.path(snapshot.location)
    path.write_bytes(path.read_bytes().replace(b"lamp", b"lump", 1))
    with pytest.raises(CommandError, match="digest"):
        call_command("export_snapshot", "week", "--to", str(tmp_path / "week.jsonl"))
    assert list(tmp_path.glob("*week*")) == []
