"""Runs and signals become immutable episodes; missing is never zero."""

import hashlib
import json
from datetime import timedelta

import pytest

from kernel.ids import uuid7
from learning import reward_specs
from learning.episodes import due as episodes
from learning.episodes.document import EpisodeDocument
from learning.models import Episode, RewardSpecVersion
from telemetry import runs, signals
from telemetry.bodies import bodies_of
from telemetry.models import CallBody, Run, RunState, Signal
from tests.fakes.bodies import keep_body


def observe(lived, name, value, at, **columns):
    Signal.objects.create(
        id=uuid7(),
        project=lived.run.project,
        target_type="run_id",
        target=str(lived.run.id),
        name=name,
        value=value,
        observed_at=at,
        received_at=at,
        stored_at=at,
        **columns,
    )
    signals.join_pending(project_id=lived.run.project_id, now=at)


def build(project, now):
    return episodes.build_due(project_id=project.id, now=now)


def test_an_outcome_closes_the_run_and_makes_an_episode(live_run, project, reward_spec, now):
    lived = live_run("train-0001", signals={"resolved": True, "risk": 0.0}, model_version_id=uuid7())
    unknown = live_run(at=5)

    assert build(project, now) == 1

    episode = Episode.objects.get()
    payload = json.loads(bytes(episode.payload))
    assert hashlib.sha256(bytes(episode.payload)).hexdigest() == episode.sha256
    assert episode.run_id == lived.run.id
    assert (episode.task_key, episode.step_count) == ("train-0001", 2)
    assert episode.reward == pytest.approx(1.0 - 2 * 0.02)
    assert sum(episode.reward_parts.values()) == episode.reward
    assert [node["message"]["role"] for node in payload["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    [called] = payload["steps"][0]["tool_calls"]
    assert (called["name"], called["arguments"]) == ("lookup_order", '{"order_id": "4817"}')
    assert payload["steps"][1]["parent"] == 0
    told = {signal["name"] for signal in payload["signals"] if signal["source"] != "derived"}
    assert told == {"resolved", "risk", "task"}
    assert episode.model_version_ids == [str(lived.calls[0].model_version_id)]
    assert Run.objects.get(id=lived.run.id).state == RunState.CLOSED
    assert Run.objects.get(id=unknown.run.id).state == RunState.OPEN


def test_a_run_without_an_outcome_has_no_reward(live_run, project, reward_spec, now):
    live_run("train-0001", signals={"risk": 1.0})
    runs.close_idle(now=now + timedelta(hours=1))
    build(project, now)
    episode = Episode.objects.get()
    assert episode.reward is None
    assert "outcome" not in episode.reward_parts
    assert json.loads(bytes(episode.payload))["reward"]["missing"] == ["resolved"]


def test_a_signal_that_is_no_number_is_no_outcome(live_run, project, reward_spec, now):
    live_run(signals={"resolved": "yes, I think"})
    build(project, now)
    assert Episode.objects.get().reward is None


def test_building_again_changes_nothing_and_gives_the_same_bytes(live_run, project, reward_spec, now):
    live_run("train-0001", signals={"resolved": True})
    build(project, now)
    first = Episode.objects.get()
    assert build(project, now) == 0

    digest, payload = first.sha256, bytes(first.payload)
    first.delete()
    Run.objects.update(built_revision=-1)
    build(project, now + timedelta(days=1))
    again = Episode.objects.get()
    assert (again.sha256, bytes(again.payload)) == (digest, payload)


def test_a_later_signal_supersedes_by_a_new_episode(live_run, project, reward_spec, now):
    lived = live_run(signals={"resolved": True})
    build(project, now)
    observe(lived, "resolved", False, now + timedelta(hours=1))
    observe(lived, "resolved", True, now + timedelta(minutes=1))  # arrives later, was observed earlier
    build(project, now)
    old, new = Episode.objects.order_by("run_revision")
    assert (old.reward_parts["outcome"], new.reward_parts["outcome"]) == (1.0, 0.0)
    assert new.run_revision > old.run_revision


def test_a_new_spec_scores_history_again(live_run, project, reward_spec, now, maya):
    live_run(signals={"resolved": True})
    build(project, now)
    dearer = {**reward_spec.document, "cost": {"model calls": {"fact": "model_calls", "weight": 0.1}}}
    later = now + timedelta(seconds=1)
    second = reward_specs.publish(project=project, name="desk", document=dearer, actor=maya, now=later)
    build(project, now)
    rewards = dict(Episode.objects.values_list("reward_spec__version", "reward"))
    assert second.version == 2
    assert rewards == {1: pytest.approx(0.96), 2: pytest.approx(0.8)}


def test_publishing_the_same_document_again_is_the_same_version(project, reward_spec, now, maya):
    again = reward_specs.publish(
        project=project, name="desk", document=dict(reward_spec.document), actor=maya, now=now
    )
    assert again == reward_spec
    assert RewardSpecVersion.objects.count() == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"messages": 7}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}, 7], "tools": [{"function": {"name": "x"}}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": [7, {"function": 7}]}]}',
        b'{"messages": [{"role": "user", "content": ' + b"[" * 700 + b"]" * 700 + b"}]}",
        b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "x", "arguments": "'
        + b"[" * 5000
        + b'"}}]}}], "messages": []}',
    ],
)
def test_hostile_bytes_are_kept_out_and_do_not_stop_the_rest(live_run, project, reward_spec, now, body):
    hostile = live_run(signals={"resolved": True, "odd": [10**30, "x"]})
    live_run(at=5, signals={"resolved": True})
    CallBody.objects.filter(call_id=hostile.calls[1].id).delete()
    keep_body(hostile.calls[1], body, body)
    assert build(project, now) == 2


def test_projects_with_runs_to_build_are_due(live_run, project, reward_spec, now):
    live_run()
    assert episodes.due_projects() == []
    runs.close_idle(now=now + timedelta(hours=1))
    assert episodes.due_projects() == [project.id]
    build(project, now)
    assert episodes.due_projects() == []


def test_without_a_reward_spec_nothing_is_built(live_run, project, now):
    live_run(signals={"resolved": True})
    assert build(project, now) == 0


def test_messages_stand_once_and_every_step_knows_its_prompt(live_run, project, reward_spec, now):
    live_run(signals={"resolved": True})
    build(project, now)
    document = EpisodeDocument.read(bytes(Episode.objects.get().payload))
    first, second = document.steps
    assert len(document.messages) == 5
    assert [m["role"] for m in document.prompt_of(first)] == ["system", "user"]
    assert [m["role"] for m in document.prompt_of(second)] == ["system", "user", "assistant", "tool"]
    assert document.main_path == [0, 1]
    assert document.conversation()[-1]["content"] == "I refunded it."
    assert document.canonical() == bytes(Episode.objects.get().payload)


def test_a_run_that_nothing_may_be_learnt_from_says_why(live_run, project, reward_spec, now):
    live_run(signals={"resolved": True}, is_opted_out=True)
    live_run(at=5, signals={"resolved": True, "training_opt_out": True})
    live_run(at=10, signals={"resolved": True, "training_opt_out": False})
    build(project, now)
    assert list(Episode.objects.order_by("started_at").values_list("untrainable", flat=True)) == [
        "caller",
        "signal",
        "",
    ]


def test_tokens_of_a_model_of_ours_are_kept_and_put_together_again(live_run, project, reward_spec, now):
    lived = live_run(signals={"resolved": True}, model_version_id=uuid7())
    read = ([1, 2, 3], [1, 2, 3, 4, 5, 9, 8])
    drawn = ([4, 5], [6])
    for call, prompt, tokens in zip(lived.calls, read, drawn, strict=True):
        body = bodies_of(project.id, [call.id])[call.id]
        answer = json.loads(body.response)
        answer["prompt_token_ids"] = prompt
        answer["choices"][0] |= {
            "token_ids": tokens,
            "logprobs": {"content": [{"logprob": -0.25} for _ in tokens]},
        }
        CallBody.objects.filter(call_id=call.id).delete()
        keep_body(call, body.request, json.dumps(answer).encode())
    build(project, now)
    episode = Episode.objects.get()
    document = EpisodeDocument.read(bytes(episode.payload))
    assert episode.own_step_count == 2
    assert [step.tokens.shared for step in document.steps] == [0, 5]
    assert [step.tokens.sampled for step in document.steps] == [[4, 5], [6]]
    assert [step.tokens.logprobs for step in document.steps] == [[-0.25, -0.25], [-0.25]]
    assert [document.prompt_tokens(step) for step in document.steps] == list(read)
