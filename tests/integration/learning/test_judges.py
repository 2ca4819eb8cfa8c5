"""Judges end to end, against a model server over HTTP: asked once, held against people, barred or used."""

import json
import random
import re
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from audit.selectors import events_of
from learning import reward_specs
from learning.episodes import due as episodes
from learning.judges import judging, model, registry
from learning.judges.credentials import Unreadable
from learning.models import Episode, Judge, JudgeCall, JudgedRun, JudgeStanding
from telemetry import runs
from telemetry.models import Call, Run, Signal
from tests.fakes.judge import FakeJudge, JudgeServer

SPEC = {
    "schema": 2,
    "name": "desk",
    "outcome": {"helpful": {"judge": "helpful", "weight": 1.0, "missing": "none"}},
    "cost": {"model calls": {"fact": "model_calls", "weight": 0.02}},
}
SECRET = "sk-judge-secret"


def ticket(record):
    return int(re.search(r"Ticket (\d+)", record)[1])


@pytest.fixture
def fake():
    """Thinks well of every other run."""
    return FakeJudge(honest=lambda record: 1.0 if ticket(record) % 2 == 0 else 0.0)


@pytest.fixture
def server(fake):
    serving = JudgeServer(fake)
    yield serving
    serving.close()


def rubric(server, **changes):
    return {
        "schema": 1,
        "name": "helpful",
        "kind": "rubric",
        "base_url": server.base_url,
        "model": "small",
        "labels": "good",
        "questions": {"solved": "Did the agent solve what was asked?", "polite": "Was it polite?"},
        "prices": {"input": 0.5, "output": 2.0},
        **changes,
    }


@pytest.fixture
def spec(project, now, maya):
    return reward_specs.publish(project=project, name="desk", document=SPEC, actor=maya, now=now)


@pytest.fixture
def register(project, now, maya):
    def register(document):
        return registry.register(project=project, document=document, credential=SECRET, actor=maya, now=now)

    return register


@pytest.fixture
def pass_over(project):
    """What the workers do: build episodes, let judges judge, build episodes of what that changed."""

    def pass_over(now):
        runs.close_idle(now=now + timedelta(days=1))
        episodes.build_due(project_id=project.id, now=now)
        decided = 0
        with model.client() as client:
            while judged := judging.judge_due(
                project_id=project.id, now=now, client=client, rng=random.Random(4)
            ):
                decided += judged
        episodes.build_due(project_id=project.id, now=now)
        return decided

    return pass_over


def live_many(live_run, count, **signals):
    return [
        live_run(at=number * 100, signals={name: value(number) for name, value in signals.items()})
        for number in range(count)
    ]


def latest(lived):
    return Episode.objects.filter(run_id=lived.run.id).latest("run_revision")


def reward_of(lived):
    return json.loads(bytes(latest(lived).payload))["reward"]


def test_a_verdict_waits_until_the_judge_is_above_its_bar(
    live_run, project, spec, fake, server, register, pass_over, now
):
    judge = register(rubric(server))
    # The runs' tickets are every third number, so that every other run is a good one.
    lived = live_many(live_run, 20, good=lambda number: number % 2 == 0)
    labelled_later = live_run(at=9000)
    assert pass_over(now) == 21
    assert JudgeStanding.objects.filter(is_used=True).exists()
    assert [latest(run).reward for run in lived[:3]] == [0.96, -0.04, 0.96]
    # People have said nothing about this one: the judge does.
    assert latest(labelled_later).reward == 0.96
    reward = reward_of(lived[0])
    assert reward["waterfall"][0]["evidence"] == ["polite: 1, Read it.", "solved: 1, Read it."]
    event = events_of(type="judge", id=judge.id)
    assert [e.action.value for e in event] == ["judge.registered", "judge.admitted"]
    assert "kappa with people is 1.00 on 20 runs" in event[1].reason


def test_too_few_labels_say_too_little_and_the_reward_says_why(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(rubric(server))
    lived = live_many(live_run, 2, good=lambda number: number % 2 == 0)
    assert pass_over(now) == 2
    assert Signal.objects.filter(name="judge:helpful").count() == 2
    reward = reward_of(lived[0])
    assert (reward["total"], reward["missing"]) == (None, ["judge:helpful"])
    assert (
        "people have labelled 2 of the runs it judged, 20 are needed" in reward["waterfall"][0]["evidence"][0]
    )


def test_a_judge_that_people_do_not_agree_with_is_barred_again(
    live_run, project, spec, fake, server, register, pass_over, now
):
    judge = register(rubric(server))
    live_many(live_run, 20, good=lambda number: number % 2 == 0)
    pass_over(now)
    contradicted = live_many(live_run, 12, good=lambda number: number % 2 == 1)
    pass_over(now)
    pass_over(now)
    assert latest(contradicted[0]).reward is None
    assert [e.action.value for e in events_of(type="judge", id=judge.id)][1:] == [
        "judge.admitted",
        "judge.barred",
    ]


def test_a_run_is_judged_once_and_again_when_it_goes_on(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(rubric(server))
    lived = live_run()
    assert pass_over(now) == 1
    assert len(fake.requests) == 2  # in one order and in the other
    for _ in range(3):
        assert pass_over(now) == 0
    assert len(fake.requests) == 2
    revision = Run.objects.get(id=lived.run.id).revision
    assert JudgedRun.objects.get().run_revision == revision
    # A person's label is a new revision of the same messages.
    Run.objects.filter(id=lived.run.id).update(revision=revision + 1)
    assert pass_over(now) == 0
    assert len(fake.requests) == 2
    JudgedRun.objects.update(subject_sha256="of fewer messages")
    Run.objects.filter(id=lived.run.id).update(revision=revision + 2)
    assert pass_over(now) == 1
    assert len(fake.requests) == 4


def test_calls_of_judges_are_recorded_and_paid_and_are_no_calls_of_runs(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(rubric(server))
    lived = live_run()
    before = (Call.objects.count(), Run.objects.count())
    pass_over(now)
    assert (Call.objects.count(), Run.objects.count()) == before
    calls = list(JudgeCall.objects.all())
    assert [(c.prompt_tokens, c.completion_tokens, c.cost_microusd, c.error) for c in calls] == [
        (1000, 200, 900, "")
    ] * 2
    assert calls[0].run_ids == [str(lived.run.id)]
    assert calls[0].prompt_sha256 != calls[1].prompt_sha256
    assert fake.keys == [f"Bearer {SECRET}"] * 2
    # What a judge was asked and said is in no episode's messages.
    assert "polite" not in json.dumps(json.loads(bytes(latest(lived).payload))["messages"])


def test_a_judge_that_is_down_leaves_the_signal_missing_and_is_asked_again(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(rubric(server))
    lived = live_run()
    fake.status = 503
    assert pass_over(now) == 0
    assert latest(lived).reward is None
    assert JudgeCall.objects.get().error == "the judge's server answered 503"
    assert pass_over(now) == 0
    assert len(fake.requests) == 1  # not before its time
    fake.status = 200
    assert pass_over(now + timedelta(minutes=2)) == 1
    assert JudgedRun.objects.get().value == 1.0


def test_a_judge_that_never_answers_is_given_up(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(rubric(server))
    live_run()
    fake.status = 500
    for hour in range(8):
        pass_over(now + timedelta(hours=hour))
    assert len(fake.requests) == judging.MAX_ATTEMPTS
    row = JudgedRun.objects.get()
    assert (row.value, row.due_at, row.error) == (None, None, "the judge's server answered 500")


def test_a_judge_that_obeys_records_gives_no_verdict(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(rubric(server))
    fake.is_hijacked = True
    fake.honest = lambda record: 0.0
    fake.obeyed = re.compile("I refunded it")
    live_run(signals={"good": False})
    assert pass_over(now) == 0
    assert "control question" in JudgeCall.objects.get().error
    assert not Signal.objects.filter(name="judge:helpful").exists()


def test_a_judge_that_prefers_what_comes_first_is_not_used(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(rubric(server))
    fake.first_wins = True
    live_many(live_run, 3)
    assert pass_over(now) == 3
    assert JudgeStanding.objects.get().inconsistency == 1.0
    assert "100% of 3 verdicts turn with the order" in JudgeStanding.objects.get().why
    assert not Signal.objects.filter(name="judge:helpful").exists()


RANKING = {"kind": "ranking", "criterion": "The customer got what was asked for.", "group_size": 2}


def ranking(server):
    return {key: value for key, value in rubric(server, **RANKING).items() if key != "questions"}


def test_runs_of_one_task_are_ranked_against_each_other(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(ranking(server))
    first, second = live_run("lamp"), live_run("lamp", at=100)
    alone, taskless = live_run("chair", at=200), live_run(at=300)
    assert pass_over(now) == 2
    assert len(fake.requests) == 2
    shown = [re.findall(r"Ticket (\d+)", request["messages"][1]["content"]) for request in fake.requests]
    assert shown[0] == shown[1][::-1]
    values = dict(JudgedRun.objects.values_list("run_id", "value"))
    assert (values[first.run.id], values[second.run.id]) == (1.0, 0.0)
    assert (values[alone.run.id], values[taskless.run.id]) == (None, None)
    # Another attempt at that task comes: now there is something to hold it against.
    live_run("chair", at=400)
    pass_over(now)
    assert pass_over(now + timedelta(minutes=11)) == 2


def test_a_ranking_that_turns_with_the_order_says_nothing(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(ranking(server))
    fake.first_wins = True
    live_run("lamp")
    live_run("lamp", at=100)
    assert pass_over(now) == 2
    assert set(JudgedRun.objects.values_list("value", "is_consistent")) == {(None, False)}


def test_a_verdict_that_a_stranger_sends_is_no_verdict(
    live_run, project, spec, fake, server, register, pass_over, now
):
    register(rubric(server))
    lived = live_run(signals={"judge:helpful": 1.0})
    runs.close_idle(now=now + timedelta(days=1))
    episodes.build_due(project_id=project.id, now=now)
    reward = reward_of(lived)
    assert (reward["total"], reward["missing"]) == (None, ["judge:helpful"])
    assert Signal.objects.get(name="judge:helpful").misfit.startswith("`judge:helpful` is a judge's verdict")


def test_judges_are_registered_by_command_and_keep_their_key_to_themselves(
    project, server, tmp_path, monkeypatch
):
    file = tmp_path / "judge.json"
    file.write_text(json.dumps(rubric(server)))
    for expected in (1, 1):
        out = StringIO()
        monkeypatch.setattr("sys.stdin", StringIO(SECRET + "\n"))
        call_command("register_judge", project="desk", file=file, credential_stdin=True, stdout=out)
        assert json.loads(out.getvalue())["version"] == expected
    judge = Judge.objects.get()
    assert SECRET.encode() not in bytes(judge.credential)
    assert registry.credential_of(judge) == SECRET
    assert SECRET not in str([event.data for event in events_of(type="judge", id=judge.id)])
    # Whoever moves the address behind the product's back does not get the key.
    judge.document["base_url"] = "http://127.0.0.1:1/v1"
    with pytest.raises(Unreadable):
        registry.credential_of(judge)
    file.write_text(json.dumps(rubric(server, kind="oracle")))
    with pytest.raises(CommandError, match="--file: kind: must be one of"):
        call_command("register_judge", project="desk", file=file, stdout=StringIO())
