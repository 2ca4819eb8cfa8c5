"""Spans find the run of their calls by proof, by relatives or by their trace, in any order; the rest waits, listed."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from kernel.ids import uuid7
from telemetry import runs, spans
from telemetry.models import Call, Run, Span
from telemetry.otlp_conventions import SpanKind
from telemetry.spans import FIRST_PAUSE, LONGEST_PAUSE, PATIENCE

HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi."}
TRACE = "0af7651916cd43dd8448eb211c80319c"
LATER = timedelta(minutes=3)

Tell = Callable[..., Span]


@pytest.fixture
def tell(tenant, now) -> Tell:
    def make(
        name: str, parent: str = "", *, kind: SpanKind = SpanKind.OTHER, trace: str = TRACE, **columns: Any
    ):
        times = dict.fromkeys(("started_at", "ended_at", "received_at", "stored_at", "next_try_at"), now)
        return Span.objects.create(
            **{
                "project": tenant.project,
                "api_key": tenant.key,
                "trace_id": trace,
                "span_id": _span_id(name),
                "parent_span_id": _span_id(parent) if parent else "",
                "name": name,
                "kind": kind,
                **times,
            }
            | columns
        )

    return make


def _span_id(name: str) -> str:
    return name.encode().hex()[:16].ljust(16, "0")


@pytest.fixture
def settle(tenant, now) -> Callable[[], int]:
    def work(after: timedelta = LATER) -> int:
        runs.stitch_pending(project_id=tenant.project.id, now=now + after)
        return spans.join_pending(project_id=tenant.project.id, now=now + after)

    return work


def places() -> dict[str, tuple[str, Any]]:
    """Name of a span -> why it stands where, and its step's index."""
    rows = Span.objects.values_list("name", "link", "step__index")
    return {name: (link, index) for name, link, index in rows}


def asks_for(tool_call_id: str, tool: str) -> dict[str, Any]:
    """Columns of a call whose answer asked for one tool call."""
    return {"tool_call_count": 1, "tool_call_ids": [tool_call_id], "tool_names": [tool]}


def run_of(call: Call) -> Run:
    call.refresh_from_db()
    assert call.step is not None
    return call.step.run


@pytest.mark.parametrize("seed", range(4))
def test_an_agents_spans_join_in_any_order(make_call, tell, settle, tenant, seed: int) -> None:
    """No call carries the trace; the model calls name their answers, and the rest hangs on them."""
    asks = {**HI, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "find"}}]}
    told = {"role": "tool", "tool_call_id": "call_1", "content": "2"}

    def calls() -> None:
        make_call([HELLO], asks, response_id="r-1", **asks_for("call_1", "find"))
        make_call([HELLO, asks, told], HI, at=1, response_id="r-2")

    steps: list[Callable[[], Any]] = [
        calls,
        lambda: tell("agent", kind=SpanKind.AGENT),
        lambda: tell("chat-1", "agent", kind=SpanKind.INFERENCE, response_id="r-1"),
        lambda: tell("find", "agent", kind=SpanKind.TOOL, tool_call_id="call_1"),
        lambda: tell("http", "find"),
        lambda: tell("chat-2", "agent", kind=SpanKind.INFERENCE, response_id="r-2"),
        lambda: tell("parse", "agent"),
    ]
    random.Random(seed).shuffle(steps)
    for number, step in enumerate(steps):
        step()
        settle(timedelta(minutes=3 * (number + 1)))
    settle(timedelta(hours=2))
    exact = {name: place for name, place in places().items() if name.startswith(("chat", "find"))}
    assert exact == {"chat-1": ("response", 0), "find": ("tool_call", 0), "chat-2": ("response", 1)}
    assert len(spans.spans_of(tenant.project.id, Run.objects.get().id)) == 6
    assert settle(timedelta(hours=3)) == 0


def test_a_trace_of_one_run_decides_alone(make_call, tell, settle) -> None:
    make_call([HELLO], HI, trace_id=TRACE)
    tell("tool", kind=SpanKind.TOOL)
    assert settle() == 1
    assert places() == {"tool": ("trace", None)}


def test_several_runs_of_one_trace_are_told_apart(make_call, tell, settle) -> None:
    """A job works off a list within one trace that its calls do not carry: each agent has its own run, the job none."""
    first = make_call([HELLO], HI, response_id="r-1")
    second = make_call([{**HELLO, "content": "Other"}], HI, response_id="r-2")
    tell("job")
    for name, response in (("a", "r-1"), ("b", "r-2")):
        tell(f"agent-{name}", "job", kind=SpanKind.AGENT)
        tell(f"chat-{name}", f"agent-{name}", kind=SpanKind.INFERENCE, response_id=response)
        tell(f"tool-{name}", f"agent-{name}", kind=SpanKind.TOOL)
    settle()
    found = dict(Span.objects.values_list("name", "run_id"))
    assert {found[f"{kind}-a"] for kind in ("agent", "chat", "tool")} == {run_of(first).id}
    assert {found[f"{kind}-b"] for kind in ("agent", "chat", "tool")} == {run_of(second).id}
    assert places()["job"] == ("several_runs", None)


def test_an_agent_that_a_tool_calls_has_its_own_run(make_call, tell, settle) -> None:
    outer = make_call([HELLO], HI, response_id="r-1", **asks_for("call_1", "find"))
    inner = make_call([{**HELLO, "content": "Sub-task"}], HI, response_id="r-2")
    tell("agent", kind=SpanKind.AGENT)
    tell("chat", "agent", kind=SpanKind.INFERENCE, response_id="r-1")
    tell("delegate", "agent", kind=SpanKind.TOOL)
    tell("helper", "delegate", kind=SpanKind.AGENT)
    tell("thought", "helper", kind=SpanKind.INFERENCE, response_id="r-2")
    settle()
    found = dict(Span.objects.values_list("name", "run_id"))
    assert {found[name] for name in ("agent", "chat", "delegate")} == {run_of(outer).id}
    assert {found[name] for name in ("helper", "thought")} == {run_of(inner).id}


def test_tool_call_ids_that_repeat_decide_only_within_their_trace(
    make_call, tell, settle, monkeypatch
) -> None:
    other = TRACE[::-1]
    counted = asks_for("call_0", "find")
    mine = make_call([HELLO], HI, trace_id=TRACE, **counted)
    make_call([{**HELLO, "content": "x"}], HI, trace_id=other, **counted)
    tell("mine", kind=SpanKind.TOOL, tool_call_id="call_0")
    tell("nobodys", kind=SpanKind.TOOL, tool_call_id="call_0", trace="1" * 32)
    settle()
    assert places() == {"mine": ("tool_call", 0), "nobodys": ("waiting", None)}
    monkeypatch.setattr(spans, "MAX_EQUALS", 1)  # so many that not all are looked at
    tell("mine-too", kind=SpanKind.TOOL, tool_call_id="call_0")
    settle(timedelta(hours=1))
    assert places()["mine-too"] == ("tool_call", 0)
    assert Span.objects.get(name="mine-too").run == run_of(mine)


def test_a_repeated_tool_call_id_is_told_apart_by_its_tool(make_call, tell, settle) -> None:
    calls = [("r-1", "find"), ("r-2", "book"), ("r-3", "book")]
    messages: list[dict[str, Any]] = [HELLO]
    for at, (response, tool) in enumerate(calls):
        make_call(messages, HI, at=at, response_id=response, **asks_for("call_0", tool))
        messages = [*messages, HI, HELLO]
    for tool in ("find", "book", "other"):
        tell(tool, kind=SpanKind.TOOL, tool_call_id="call_0", tool_name=tool)
    settle()
    assert Run.objects.count() == 1
    assert places() == {"find": ("tool_call", 0), "book": ("tool_call", None), "other": ("trace", None)}


def test_a_named_run_is_found_by_its_name_and_by_the_id_that_was_told(
    make_call, tell, settle, stranger
) -> None:
    make_call([HELLO], HI, run_name="job-1")
    settle()
    run = Run.objects.get()
    tell("by-name", run_name="job-1")
    tell("by-id", run_name=str(run.id), trace="1" * 32)
    tell("other-key", run_name="job-1", trace="2" * 32, project=stranger.project, api_key=stranger.key)
    assert settle(timedelta(hours=1)) == 2
    assert places() == {"by-name": ("named", None), "by-id": ("named", None), "other-key": ("waiting", None)}


def test_another_projects_calls_prove_nothing(make_call, tell, settle, stranger, now) -> None:
    make_call([HELLO], HI, trace_id=TRACE, response_id="r-1", **asks_for("call_1", "find"))
    settle()
    tell(
        "theirs", kind=SpanKind.TOOL, response_id="r-1", tool_call_id="call_1",
        project=stranger.project, api_key=stranger.key,
    )  # fmt: skip
    spans.join_pending(project_id=stranger.project.id, now=now + LATER)
    assert places() == {"theirs": ("waiting", None)}


def test_a_circle_of_parents_ends(make_call, tell, settle) -> None:
    make_call([HELLO], HI, response_id="r-1")
    tell("a", "b")
    tell("b", "a")
    tell("self", "self", trace="1" * 32)
    tell("chat", "a", kind=SpanKind.INFERENCE, response_id="r-1")
    settle()
    assert places() == {
        "a": ("children", None),
        "b": ("children", None),
        "chat": ("response", 0),
        "self": ("waiting", None),
    }


def test_looking_again_gets_rarer_and_ends(tell, tenant, now) -> None:
    tell("lonely")
    at, looks = now, []
    while (tried := Span.objects.get().next_try_at) is not None:
        at = max(at, tried)
        looks.append(at)
        assert tenant.project.id in spans.due_projects(now=at)
        spans.join_pending(project_id=tenant.project.id, now=at)
    assert looks[1] - looks[0] == FIRST_PAUSE
    assert looks[-1] - looks[-2] == LONGEST_PAUSE
    assert looks[-1] - now > PATIENCE
    assert len(looks) < 50
    assert spans.due_projects(now=at + timedelta(days=1)) == []
    (row,) = spans.unjoined(tenant.project.id)
    assert (row.name, row.link, row.run_id) == ("lonely", "waiting", None)


def test_a_span_that_was_given_up_joins_with_a_later_one_of_its_trace(make_call, tell, settle) -> None:
    tell("early", next_try_at=None)
    make_call([HELLO], HI, trace_id=TRACE)
    tell("late")
    assert settle() == 2


def test_the_queries_do_not_grow_with_the_spans(
    make_call, tell, settle, tenant, now, django_assert_max_num_queries
) -> None:
    for number in range(30):
        make_call([{**HELLO, "content": str(number)}], HI, response_id=f"r-{number}", trace_id=uuid7().hex)
    runs.stitch_pending(project_id=tenant.project.id, now=now + LATER)
    for number in range(30):
        trace = uuid4().hex
        tell(f"agent-{number}", kind=SpanKind.AGENT, trace=trace)
        tell(
            f"chat-{number}",
            f"agent-{number}",
            kind=SpanKind.INFERENCE,
            trace=trace,
            response_id=f"r-{number}",
        )
    with django_assert_max_num_queries(10):
        assert spans.join_pending(project_id=tenant.project.id, now=now + LATER) == 60
    assert Span.objects.filter(run=None).count() == 0
