"""Policy nodes get what deployments need, verified, and may be down or come back empty; routes follow."""

from datetime import timedelta
from typing import Any

import pytest

from audit.actions import Actor
from release import registry, rollout, selectors, serving
from release.models import PolicyNode
from release.sweep import sweep


def test_a_node_that_came_back_empty_is_filled_again(company: Any, node: Any, wire: Any) -> None:
    company.approve(company.propose())
    now = company.deployment.updated_at
    assert serving.sync_node(node=node, now=now) == []
    wire.names[:] = ["desk-base"]
    assert serving.sync_node(node=node, now=now + timedelta(seconds=1)) == [company.v2.served_name]
    assert wire.loads == [
        {"lora_name": company.v2.served_name, "lora_path": str(company.store.path(company.v2.adapter_path))}
    ]
    node = PolicyNode.objects.get()
    assert node.loaded == sorted(["desk-base", company.v2.served_name])
    assert node.seen_at == now + timedelta(seconds=1)


def test_nothing_is_loaded_that_no_approval_asks_for(company: Any, node: Any, wire: Any) -> None:
    wire.names[:] = ["desk-base"]
    company.propose()
    assert serving.sync_node(node=node, now=company.deployment.updated_at) == []
    assert wire.loads == []


def test_swapped_weights_are_not_loaded(company: Any, node: Any, wire: Any) -> None:
    company.approve(company.propose())
    wire.names[:] = ["desk-base"]
    weights = company.store.path(company.v2.adapter_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"!")
    assert serving.sync_node(node=node, now=company.deployment.updated_at) == []
    assert wire.loads == []


def test_a_node_that_is_down_changes_nothing(company: Any, node: Any) -> None:
    PolicyNode.objects.update(base_url="http://127.0.0.1:9")
    node.refresh_from_db()
    assert serving.sync_node(node=node, now=company.deployment.updated_at) == []
    assert PolicyNode.objects.get().loaded == node.loaded


def test_a_node_is_spoken_of_when_it_goes_and_when_it_is_back(
    company: Any, node: Any, wire: Any, caplog: pytest.LogCaptureFixture
) -> None:
    said = []
    for url in (wire.url, "http://127.0.0.1:9", "http://127.0.0.1:9", wire.url, wire.url):
        node.base_url = url
        caplog.clear()
        serving.sync_node(node=node, now=company.deployment.updated_at)
        said.append([record.getMessage().partition(":")[0] for record in caplog.records])
    assert said == [
        [],
        ["policy node node-1 does not answer"],
        [],
        ["policy node node-1 answers again"],
        [],
    ]


def test_nodes_are_known_by_their_origin(company: Any) -> None:
    fields = {"base_model": "/m", "base_sha256": "1" * 64}
    first = serving.register_node(base_url="http://127.0.0.1:8402/", **fields)
    assert (first.name, first.base_url) == ("127.0.0.1:8402", "http://127.0.0.1:8402")
    assert serving.register_node(base_url="http://127.0.0.1:8402", **fields) == first
    for wrong in ("ftp://x", "127.0.0.1:8402", "http://x/v1", ""):
        with pytest.raises(ValueError, match="origin"):
            serving.register_node(base_url=wrong, **fields)


def test_the_embedded_node_may_move_to_another_port(company: Any) -> None:
    fields = {"base_model": "/m", "base_sha256": "1" * 64, "name": serving.EMBEDDED}
    before = serving.register_node(base_url="http://127.0.0.1:8402", **fields)
    after = serving.register_node(base_url="http://127.0.0.1:9402", **fields)
    assert after == before
    assert after.base_url == "http://127.0.0.1:9402"


def test_routes_name_champion_and_canary(
    company: Any, node: Any, wire: Any, django_assert_num_queries: Any
) -> None:
    (route,) = selectors.routes()
    assert (route.alias, route.project_id) == ("desk", str(company.project.pk))
    assert (route.champion.version, route.champion.served_name) == ("desk-v1", "desk-base")
    assert route.champion.node_url == wire.url
    assert (route.canary, route.canary_share) == (None, 0.0)
    row = company.approve(company.propose())
    rollout.start_canary(promotion_id=row.pk, now=company.deployment.updated_at)
    salt = route.salt
    with django_assert_num_queries(2):
        (route,) = selectors.routes()
    assert route.canary is not None
    assert (route.canary.version, route.canary_share) == ("desk-v2", 0.25)
    assert route.canary.model_version_id == str(company.v2.pk)
    assert route.salt != salt


def test_routes_take_two_queries_however_many(
    company: Any, node: Any, django_assert_num_queries: Any
) -> None:
    for index in range(5):
        fields = {
            "project": company.project,
            "actor": Actor.service("test"),
            "now": company.deployment.updated_at,
        }
        base = registry.register_base(
            line=f"more-{index}", base_model="/m", base_sha256=company.v1.base_sha256, **fields
        )
        rollout.create_deployment(alias=f"more-{index}", champion=base, **fields)
    with django_assert_num_queries(2):
        assert len(selectors.routes()) == 6


def test_a_canary_that_no_node_has_loaded_gets_no_share(company: Any, node: Any) -> None:
    row = company.approve(company.propose())
    rollout.start_canary(promotion_id=row.pk, now=company.deployment.updated_at)
    PolicyNode.objects.update(loaded=[])
    (route,) = selectors.routes()
    assert (route.champion.version, route.canary, route.canary_share) == ("desk-v1", None, 0.0)


def test_an_alias_that_no_node_serves_has_no_route(company: Any) -> None:
    assert selectors.routes() == []


def test_the_sweep_takes_a_trained_job_all_the_way_to_its_canary(
    company: Any, node: Any, wire: Any, helpers: Any
) -> None:
    now = company.deployment.updated_at
    job = helpers.training_job(company.project, 9, requested_by="maya")
    digest = helpers.adapter(company.store.path(f"jobs/{job.pk}/adapter"), content=b"nine")
    job.result = {"adapter_dir": "adapter", "adapter_sha256": digest, "steps": 1}
    job.save()
    sweep(now=now)  # registers it, asks for its evaluation, offers the passed v2
    job.refresh_from_db()
    assert job.model_version.name == "desk-v3"
    (row,) = company.deployment.promotions.all()
    assert (row.candidate, row.state) == (company.v2, "proposed")
    wire.names.remove(company.v2.served_name)
    company.approve(row)
    sweep(now=now)  # loads the candidate, lets the canary begin, looks at it
    row.refresh_from_db()
    assert (row.state, row.verdict) == ("canary", "0 of 50 canary calls")


def test_one_broken_job_does_not_hold_up_the_sweep(
    company: Any, node: Any, helpers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken = helpers.training_job(company.project, 9)
    broken.result = {"adapter_dir": "nowhere"}  # a result that no trainer writes
    broken.save()
    sweep(now=company.deployment.updated_at)
    assert company.deployment.promotions.get().state == "proposed"
    assert str(broken.pk) in caplog.text
