"""The plan of a call: who is asked, in which order, and that a run keeps its place."""

from collections import Counter
from uuid import UUID, uuid4

import pytest

from gateway.routing import (
    AliasTarget,
    CredentialUnreadable,
    Destination,
    Price,
    ProjectRoutes,
    Timeouts,
    Upstream,
    passthrough,
    plan,
)
from release.routing import Route, Target

DEFAULTS = Timeouts(connect_s=1, first_byte_s=2, idle_s=3)


def upstream(name: str, priority: int = 0, credential: str | None = "sk", **more: object) -> Upstream:
    fields = {"base_url": f"https://{name}.example.com/v1", "priority": priority, **more}
    return Upstream(id=uuid4(), name=name, credential=credential, **fields)  # type: ignore[arg-type]


def version(name: str) -> Target:
    return Target(str(uuid4()), name, f"{name}:abc", "http://127.0.0.1:9000")


def deployment(alias: str, canary: Target | None = None, share: float = 0.0) -> Route:
    champion = version(f"{alias}-v1")
    return Route(str(uuid4()), alias, str(uuid4()), champion, canary, share, "salt")


def planned(
    routes: ProjectRoutes, model: str, run_id: str = "run", dialect: str = "chat"
) -> list[Destination]:
    return plan(routes, model=model, dialect=dialect, run_id=run_id, defaults=DEFAULTS)


def names(routes: ProjectRoutes, model: str, run_id: str = "run", dialect: str = "chat") -> list[str]:
    return [place.name for place in planned(routes, model, run_id, dialect)]


def test_a_model_of_nobody_goes_to_the_upstreams_that_speak_the_dialect() -> None:
    routes = ProjectRoutes(
        upstreams=(upstream("a"), upstream("b", 1, serves=("messages",)), upstream("c", 2))
    )
    assert names(routes, "gpt") == ["a", "c"]
    assert names(routes, "gpt", dialect="messages") == ["a", "b", "c"]
    assert names(ProjectRoutes(), "gpt") == []
    assert names(ProjectRoutes(upstreams=(upstream("b", serves=("messages",)),)), "gpt") == []


def test_an_upstream_is_called_as_it_is_set() -> None:
    price = Price(input=1, output=2)
    set_up = upstream(
        "a", timeouts=Timeouts(idle_s=9), max_retries=3, asks_usage=False, prices={"gpt": price}
    )
    (place,) = planned(ProjectRoutes(upstreams=(set_up,)), "gpt")
    assert place == Destination(
        base_url="https://a.example.com/v1",
        auth=(b"authorization", b"Bearer sk"),
        upstream_id=set_up.id,
        name="a",
        timeouts=Timeouts(idle_s=9),
        max_retries=3,
        asks_usage=False,
        price=price,
    )
    assert place.key == set_up.id


@pytest.mark.parametrize(
    ("auth", "credential", "header"),
    [
        ("bearer", "sk", (b"authorization", b"Bearer sk")),
        ("x-api-key", "sk", (b"x-api-key", b"sk")),
        ("api-key", "sk", (b"api-key", b"sk")),
        ("bearer", "", None),
    ],
)
def test_the_credential_travels_in_the_upstreams_own_header(
    auth: str, credential: str, header: tuple[bytes, bytes] | None
) -> None:
    (place,) = planned(ProjectRoutes(upstreams=(upstream("a", 0, credential, auth=auth),)), "gpt")
    assert place.auth == header


def test_a_deployment_answers_with_champion_or_canary_whole_runs_long() -> None:
    canary = version("desk-v2")
    route = deployment("desk", canary, 0.3)
    routes = ProjectRoutes(deployments={"desk": route}, upstreams=(upstream("a"),))
    places = [planned(routes, "desk", f"run-{n}") for n in range(1000)]
    assert all(len(place) == 1 for place in places)
    assert places == [planned(routes, "desk", f"run-{n}") for n in range(1000)]
    by_version = Counter(place.version for [place] in places)
    assert 250 < by_version["desk-v2"] < 350
    answer = next(place for [place] in places if place.is_canary)
    assert answer == Destination(
        base_url="http://127.0.0.1:9000/v1",
        auth=None,
        model="desk-v2:abc",
        name="http://127.0.0.1:9000",
        model_version_id=UUID(canary.model_version_id),
        version="desk-v2",
        deployment_id=UUID(route.deployment_id),
        is_canary=True,
        timeouts=DEFAULTS,
    )
    assert answer.is_own
    assert {place.version for [place] in places if not place.is_canary} == {"desk-v1"}


def test_weights_are_shares_of_runs_and_every_other_target_is_a_fallback() -> None:
    a, b, c, last = (upstream(name) for name in "abcz")
    targets = [AliasTarget(weight=weight, upstream_id=u.id) for u, weight in ((a, 6), (b, 3), (c, 1))]
    targets.insert(0, AliasTarget(weight=100, priority=1, upstream_id=last.id))
    routes = ProjectRoutes(aliases={"smart": tuple(targets)}, upstreams=(a, b, c, last))
    orders = [names(routes, "smart", f"run-{n}") for n in range(5000)]
    assert orders == [names(routes, "smart", f"run-{n}") for n in range(5000)]
    assert all(sorted(order[:3]) == ["a", "b", "c"] and order[3] == "z" for order in orders)
    first = Counter(order[0] for order in orders)
    assert (first["a"] / 5000, first["b"] / 5000, first["c"] / 5000) == pytest.approx(
        (0.6, 0.3, 0.1), abs=0.02
    )
    # Where a is ill, its runs are shared by weight as well, not heaped on one fallback.
    second = Counter(order[1] for order in orders if order[0] == "a")
    assert second["b"] / first["a"] == pytest.approx(0.75, abs=0.03)


def test_a_target_that_goes_moves_only_its_own_runs() -> None:
    a, b, c = upstream("a"), upstream("b"), upstream("c")
    targets = tuple(AliasTarget(weight=1, upstream_id=u.id) for u in (a, b, c))
    before = ProjectRoutes(aliases={"smart": targets}, upstreams=(a, b, c))
    after = ProjectRoutes(aliases={"smart": targets[:2]}, upstreams=(a, b, c))
    for n in range(500):
        was, now = names(before, "smart", f"run-{n}"), names(after, "smart", f"run-{n}")
        assert now == [name for name in was if name != "c"]


def test_an_alias_may_rename_mix_and_hide_a_deployment() -> None:
    cheap = Price(input=0.1, output=0.2)
    a = upstream("a", prices={"gpt-mini": cheap})
    targets = (
        AliasTarget(weight=1, deployment="desk"),
        AliasTarget(weight=1, priority=1, upstream_id=a.id, model="gpt-mini"),
    )
    routes = ProjectRoutes(
        deployments={"desk": deployment("desk")}, aliases={"desk": targets}, upstreams=(a,)
    )
    own, provider = planned(routes, "desk")
    assert (own.version, provider.model, provider.price) == ("desk-v1", "gpt-mini", cheap)


def test_targets_that_cannot_answer_are_passed_over_and_never_replaced_by_the_other_upstreams() -> None:
    a = upstream("a", serves=("messages",))
    targets = (
        AliasTarget(weight=1, deployment="gone"),
        AliasTarget(weight=1, upstream_id=uuid4()),
        AliasTarget(weight=1, upstream_id=a.id),
    )
    routes = ProjectRoutes(aliases={"smart": targets}, upstreams=(a, upstream("b")))
    assert names(routes, "smart", dialect="messages") == ["a"]
    assert names(routes, "smart") == []


def test_an_unreadable_credential_costs_an_upstream_its_turn_and_the_call_only_when_no_other_is_left() -> (
    None
):
    torn, whole = upstream("torn", 0, None), upstream("whole", 1)
    assert names(ProjectRoutes(upstreams=(torn, whole)), "gpt") == ["whole"]
    with pytest.raises(CredentialUnreadable, match="'torn' cannot be read"):
        names(ProjectRoutes(upstreams=(torn,)), "gpt")
    with pytest.raises(CredentialUnreadable):
        passthrough(ProjectRoutes(upstreams=(torn, whole)))


def test_what_is_not_interpreted_goes_to_the_first_upstream() -> None:
    routes = ProjectRoutes(upstreams=(upstream("a", serves=("messages",)), upstream("b", 1)))
    place = passthrough(routes)
    assert place is not None
    assert (place.name, place.model, place.price) == ("a", "", None)
    assert passthrough(ProjectRoutes()) is None


def test_the_price_of_a_call() -> None:
    price = Price(input=2.5, output=10, cached_input=1.25)
    assert price.microusd(prompt_tokens=1000, completion_tokens=50, cached_tokens=400) == 1500 + 500 + 500
    plain = Price(input=0.15, output=0.6)
    assert plain.microusd(prompt_tokens=10, completion_tokens=1, cached_tokens=4) == 2
    # Some providers count cached tokens beside the prompt's.
    assert price.microusd(prompt_tokens=10, completion_tokens=0, cached_tokens=400) == 500


def test_a_credential_is_not_printed_by_accident() -> None:
    assert "sk" not in repr(upstream("a"))
