"""Before a spec is adopted: who gains, who loses, which order of runs flips; and why an episode has its reward."""

import copy
import json
from decimal import Decimal
from io import StringIO

import pytest
import yaml
from django.core.management import CommandError, call_command

from accounts.models import Project
from audit.selectors import events_of
from learning import reward_specs
from learning.episodes import due as episodes
from learning.models import Episode, RewardSpecVersion
from learning.preview import NothingInForce, preview
from learning.rewards.spec import RewardSpec
from learning.waterfalls import as_text, episode_of, waterfall
from telemetry import runs


def changed(reward_spec, **sections):
    return RewardSpec.parse({**copy.deepcopy(reward_spec.document), **sections})


@pytest.fixture
def history(live_run, project, reward_spec, now):
    """Two attempts at one task, one at another, one without an outcome; rewards 0.96, 0.46, -0.04 and none."""
    lived = {
        "good": live_run("lamp", signals={"resolved": True, "csat": 0.1, "verified": True}),
        "harmful": live_run("lamp", at=100, signals={"resolved": True, "risk": 1.0, "csat": 1.0}),
        "failed": live_run("chair", at=200, signals={"resolved": False, "verified": False}),
        "open": live_run(at=300, signals={"csat": 0.5}),
    }
    episodes.build_due(project_id=project.id, now=now)
    runs.close(iter([lived["open"].run.id]), now=now)
    episodes.build_due(project_id=project.id, now=now)
    assert Episode.objects.count() == 4
    return {name: str(run.run.id) for name, run in lived.items()}


CSAT = {"csat": {"signal": "csat", "weight": 1.0, "missing": "none"}}
VETO = {
    "not verified": {
        "when": {"signal": "verified", "equals": False},
        "reward": -1.0,
        "because": "the shop's own system says so",
    }
}


def test_the_same_spec_changes_nothing(history, project, reward_spec):
    seen = preview(project=project, spec=changed(reward_spec))
    assert (seen.runs, seen.raised, seen.lowered, seen.unchanged) == (4, 0, 0, 4)
    assert (seen.order.pairs, seen.order.flipped, seen.order.tau) == (1, 0, 1.0)
    assert seen.before == seen.after
    assert seen.before.count == 3
    assert seen.digest == preview(project=project, spec=changed(reward_spec)).digest


def test_a_spec_that_believes_customers_turns_the_order_round(history, project, reward_spec):
    told = []
    believing = changed(reward_spec, outcome=CSAT, risk={}, veto=VETO)
    seen = preview(
        project=project, spec=believing, on_progress=lambda done, total: told.append((done, total))
    )
    assert [(run.run_id, round(run.change, 6)) for run in seen.winners] == [(history["harmful"], 0.5)]
    assert [run.run_id for run in seen.losers] == [history["failed"], history["good"]]
    assert (seen.reward_found, seen.reward_lost) == (1, 0)
    assert (seen.order.flipped, seen.order.tau) == (1, -1.0)
    flip = seen.flips[0]
    assert (flip.better_before.run_id, flip.better_after.run_id) == (history["good"], history["harmful"])
    assert seen.vetoes == {"not verified": 1}
    assert seen.missing == {"csat": 1}
    assert {(group.by, group.name) for group in seen.groups} >= {("task", "lamp"), ("task", "chair")}
    assert told == [(4, 4)]
    # Nothing has been adopted, and nothing was written.
    assert reward_specs.in_force(project.id) == reward_spec
    assert Episode.objects.count() == 4


def test_history_of_another_project_is_not_read(history, project, reward_spec, now, maya):
    other = Project.objects.create(organization=project.organization, name="other", created_at=now)
    with pytest.raises(NothingInForce):
        preview(project=other, spec=changed(reward_spec))
    reward_specs.publish(project=other, name="desk", document=reward_spec.document, actor=maya, now=now)
    assert preview(project=other, spec=changed(reward_spec)).runs == 0
    with pytest.raises(Episode.DoesNotExist):
        episode_of(other, Episode.objects.all()[0].id)


def test_the_commands_show_a_preview_and_record_what_was_seen(history, project, reward_spec, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(changed(reward_spec, outcome=CSAT).to_dict()))
    out = StringIO()
    call_command("preview_reward_spec", file=file, project="desk", stdout=out)
    shown = out.getvalue()
    assert "1 of 1 pairs of one task change places" in shown
    assert f"run {history['good']} 0.9600 -> 0.0600" in shown
    digest = shown.rpartition("Preview digest ")[2].strip()
    call_command("publish_reward", project="desk", file=file, preview=digest, stdout=StringIO())
    published = RewardSpecVersion.objects.get(version=2)
    event = events_of(type="reward_spec", id=published.id)[-1]
    assert event.data["preview"] == digest
    with pytest.raises(CommandError, match="--preview: must be"):
        call_command("publish_reward", project="desk", file=file, preview="no", stdout=StringIO())
    file.write_text("schema: 2\nname: x\n")
    with pytest.raises(CommandError, match="--file: outcome: must have"):
        call_command("preview_reward_spec", file=file, project="desk", stdout=StringIO())


def test_an_episode_explains_its_reward_to_the_last_billionth(history, project):
    episode = Episode.objects.get(run_id=history["harmful"])
    shown = waterfall(episode)
    assert shown.adds_up
    assert shown.total == Decimal("0.46")
    assert [(entry.term, entry.step, str(entry.amount.normalize())) for entry in shown.entries] == [
        ("resolved", None, "1"),
        ("model calls", 0, "-0.02"),
        ("model calls", 1, "-0.02"),
        ("harm", None, "-0.5"),
    ]
    out = StringIO()
    call_command("explain_episode", str(episode.id), project="desk", stdout=out)
    assert as_text(shown) in out.getvalue()
    assert "Reward +0.46: the lines add up to it." in out.getvalue()
    silent = as_text(waterfall(Episode.objects.get(run_id=history["open"])))
    assert "No reward." in silent
    assert "Not known: resolved, risk." in silent


def test_a_waterfall_that_was_tampered_with_does_not_add_up(history):
    episode = Episode.objects.get(run_id=history["good"])
    payload = json.loads(bytes(episode.payload))
    payload["reward"]["waterfall"][0]["amount"] += 1e-9
    episode.payload = json.dumps(payload).encode()
    assert not waterfall(episode).adds_up
    assert "DO NOT add up" in as_text(waterfall(episode))
