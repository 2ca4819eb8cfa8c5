"""The control API through HTTP, with a project's key."""

from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts import keys
from telemetry.models import Call
from tests.browser.scene import Scene, write_run

LISTS = [
    "runs",
    "calls",
    "signals",
    "episodes",
    "snapshots",
    "training-jobs",
    "evaluations",
    "versions",
    "deployments",
    "promotions",
    "upstreams",
    "aliases",
    "limits",
]


class Api:
    """A script with a key."""

    def __init__(self, client: Client, key: str) -> None:
        self._client, self._headers = client, {"authorization": f"Bearer {key}"}

    def get(self, path: str, status: int = 200) -> Any:
        answer = self._client.get(f"/api/{path}", headers=self._headers)
        assert answer.status_code == status, answer.content
        return answer.json()


@pytest.fixture
def airline(client: Client, scene: Scene) -> Api:
    return Api(client, scene.airline_key)


@pytest.fixture
def desk(client: Client, scene: Scene) -> Api:
    return Api(client, scene.desk_key)


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer rk_wrong", f"Bearer {keys.mint()}", "Basic eDp5"])
def test_a_wrong_key_is_refused_in_a_clear_shape(client: Client, db: None, header: str) -> None:
    answer = client.get("/api/runs", headers={"authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.json()["error"] == "invalid_api_key"
    assert answer["www-authenticate"].startswith("Bearer")


def test_lists_page_by_page_in_a_fixed_number_of_queries(
    airline: Api, desk: Api, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for name in LISTS:
        api = airline if name == "signals" else desk
        with django_assert_max_num_queries(3):  # the key, the rows, what belongs to them
            whole = api.get(f"{name}?limit=2000")
        assert whole["items"], name
        assert whole["more"] is False
        first, second = api.get(f"{name}?limit=1"), api.get(f"{name}?limit=1&offset=1")
        assert first["items"] == whole["items"][:1]
        assert second["items"] == whole["items"][1:2]
        assert first["more"] is (len(whole["items"]) > 1)
        assert api.get(f"{name}?limit=2001", status=422)


def test_the_summary_counts(airline: Api, scene: Scene) -> None:
    summary = airline.get("summary")
    assert (summary["runs"], summary["calls"], summary["unstitched_calls"]) == (25, 125, 0)
    assert summary["lost_calls"] == 3
    assert summary["unmatched_signals"] == 1
    assert summary["scored_episodes"] < summary["episodes"] == 24
    assert 0 < summary["mean_reward"] < 1
    groups = {group["task_key"]: group["runs"] for group in summary["task_groups"]}
    assert {groups[f"airline-{number:03d}"] for number in range(6)} == {4}


def test_a_run_comes_with_its_calls_and_signals(airline: Api, scene: Scene) -> None:
    run = airline.get(f"runs/{scene.hostile_run.pk}")
    assert [call["step"] for call in run["calls"]] == [0, 1, 2, 3, 4]
    assert {call["run_id"] for call in run["calls"]} == {run["id"]}
    assert run["calls"][1]["link_reason"] == "echo"
    assert {signal["name"] for signal in run["signals"]} == {"reward", "comment"}


def test_a_run_answers_to_the_id_that_the_caller_was_told(airline: Api, scene: Scene) -> None:
    told = scene.strangers.pk  # any id that is no run's
    Call.objects.filter(step__run=scene.hostile_run).update(run_hint=told)
    assert airline.get(f"runs/{told}")["id"] == str(scene.hostile_run.pk)
    assert airline.get(f"runs/{scene.proposed.pk}", status=404)["error"] == "not_found"


def test_calls_name_their_run_and_can_be_asked_for_by_it(airline: Api, scene: Scene) -> None:
    calls = airline.get(f"calls?run_id={scene.hostile_run.pk}")["items"]
    assert {call["run_id"] for call in calls} == {str(scene.hostile_run.pk)}
    assert len(calls) == 5


def test_signals_that_found_nothing(airline: Api) -> None:
    [signal] = airline.get("signals?unmatched=true")["items"]
    assert (signal["name"], signal["value"], signal["run_id"]) == ("csat", 4, None)


def test_an_unstitched_call_has_no_run_yet(airline: Api, scene: Scene) -> None:
    run = write_run(
        scene.airline, [{"role": "assistant", "content": "hi"}], task="", reward=None, started=scene.now
    )
    Call.objects.filter(step__run=run).update(step=None)
    assert airline.get("calls?limit=1")["items"][0]["run_id"] is None


def test_learning_and_release_are_told_by_name(desk: Api, scene: Scene) -> None:
    job = desk.get(f"training-jobs/{scene.running_job.pk}")
    assert (job["state"], job["snapshot"], job["progress"]["step"]) == ("running", "first-week", 56)
    promotion = desk.get(f"promotions/{scene.champion.pk}")
    assert (promotion["candidate"], promotion["previous"]) == ("billing-v2", "billing-v1")
    assert (promotion["requested_by"], promotion["decided_by"]) == ("maya", "omar")
    evaluation = desk.get(f"evaluations/{promotion['evaluation_id']}")
    assert evaluation["evidence"]["reasons"]
    by_alias = {row["alias"]: row for row in desk.get("deployments")["items"]}
    billing, refunds = by_alias["billing"], by_alias["refunds"]
    assert (billing["champion"], billing["previous"], billing["canary"]) == ("billing-v2", "billing-v1", None)
    assert (refunds["champion"], refunds["canary"], refunds["canary_share"]) == (
        "refunds-v1",
        "refunds-v2",
        0.25,
    )


def test_the_api_describes_itself_and_loads_nothing_foreign(client: Client, db: None) -> None:
    document = client.get("/api/openapi.json").json()
    assert {f"/api/{name}" for name in LISTS} < set(document["paths"])
    assert all(set(path) == {"get"} for path in document["paths"].values())  # decisions stay with people
    assert client.get("/api/docs").status_code != 200


def test_routing_can_be_read_without_its_credentials(airline: Api, scene: Scene) -> None:
    openai, azure = airline.get("upstreams")["items"]
    assert (openai["name"], azure["priority"]) == ("openai", 1)
    assert openai["prices"]["gpt-4o"]["output"] == 10
    assert not any("credential" in field for field in openai)
    (alias,) = airline.get("aliases")["items"]
    assert alias["name"] == "smart-of-airline-desk"
    assert {"target": "azure/gpt-4o", "weight": 1, "priority": 1} in alias["targets"]
    key = scene.airline.api_keys.get()
    assert {(limit["measure"], limit["api_key_id"]) for limit in airline.get("limits")["items"]} == {
        ("microusd", None),
        ("requests", str(key.pk)),
    }
