"""Why does this version answer? The way back names people, figures, data and the events that prove it."""

import hashlib
from typing import Any

import pytest

from kernel.ids import uuid7
from learning.models import Episode
from release import explain, rollout
from release.explain import NothingToExplain


@pytest.fixture
def taught(company: Any) -> list[Episode]:
    """Five episodes, of which the first four are in the snapshot's file."""
    job = company.v2.job
    episodes = [
        Episode.objects.create(
            project=company.project,
            run_id=uuid7(),
            run_revision=1,
            reward_spec=job.reward_spec,
            task_key=f"train/{index}",
            step_count=2,
            reward=index / 10,
            reward_parts={},
            payload=f'{{"n":{index}}}'.encode(),
            sha256=hashlib.sha256(f'{{"n":{index}}}'.encode()).hexdigest(),
            created_at=job.created_at,
        )
        for index in range(5)
    ]
    company.store.write(job.snapshot.location, b"".join(bytes(e.payload) + b"\n" for e in episodes[:4]))
    return episodes


def champion(company: Any, **proposal: Any) -> None:
    row = company.approve(company.propose(**proposal))
    rollout.start_canary(promotion_id=row.pk, now=company.deployment.updated_at)
    company.calls(50, by=company.v2)
    rollout.judge_canary(promotion_id=row.pk, now=company.deployment.updated_at)


def test_from_the_alias_back_to_the_runs(company: Any, node: Any, taught: list[Episode]) -> None:
    champion(company)
    found = explain.explain(project=company.project, what="desk")
    assert found.subject == "desk-v2"
    assert found.answers == "champion of desk, generation 3"
    stages = {stage.name: stage for stage in found.stages}
    assert "38 points" in stages["evaluation"].facts["figures"]
    assert stages["dataset snapshot"].facts["merkle root"] == "a" * 64
    assert [(event.action, event.who, event.reason) for event in stages["promotion"].events] == [
        ("promotion.proposed", "maya (operator)", "the gate passed"),
        ("promotion.approved", "omar (approver)", "worst cases are fine"),
    ]
    assert [event.action for event in stages["deployment"].events] == ["canary.started", "champion.changed"]
    shown = [stage for stage in found.stages if stage.name == "episode"]
    assert [stage.id for stage in shown] == [str(taught[index].pk) for index in (3, 2, 1)]
    assert [stage.facts["run"] for stage in shown] == [str(taught[index].run_id) for index in (3, 2, 1)]


def test_the_text_says_it_in_a_short_tree(company: Any, node: Any, taught: list[Episode]) -> None:
    champion(company)
    text = explain.render(explain.explain(project=company.project, what="desk-v2"))
    assert text.splitlines()[0] == "desk-v2: champion of desk, generation 3"
    for words in ("by omar (approver)", "“worst cases are fine”", "merkle root: aaa", "not sealed yet"):
        assert words in text
    assert len(text.splitlines()) < 60


def test_the_text_says_each_thing_once(company: Any, node: Any, taught: list[Episode]) -> None:
    champion(company, reason=" ".join(company.evaluation.evidence["reasons"]))  # as an offered proposal does
    text = explain.render(explain.explain(project=company.project, what="desk"))
    for words in ("worst cases are fine", "38 points", "50 canary calls, 0.0% failed"):
        assert text.count(words) == 1, words


def test_a_constant_number_of_queries(
    company: Any, node: Any, taught: list[Episode], django_assert_max_num_queries: Any
) -> None:
    champion(company)
    with django_assert_max_num_queries(5):
        explain.explain(project=company.project, what="desk")


def test_a_version_that_does_not_answer_says_so(company: Any) -> None:
    found = explain.explain(project=company.project, what="desk-v2")
    assert found.answers == "not answering; champion of desk is desk-v1"
    assert "promotion" not in {stage.name for stage in found.stages}


def test_a_base_has_a_short_story(company: Any, node: Any) -> None:
    found = explain.explain(project=company.project, what="desk")
    assert [stage.name for stage in found.stages] == ["deployment", "model version"]
    assert [event.action for event in found.stages[0].events] == ["deployment.created"]


@pytest.mark.parametrize("what", ["", "nothing", "desk-v9", "desk-vx", "desk-v-1"])
def test_what_is_not_there_cannot_be_explained(company: Any, what: str) -> None:
    with pytest.raises(NothingToExplain):
        explain.explain(project=company.project, what=what)
