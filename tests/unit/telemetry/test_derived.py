"""What a run's own turns say, judged on the recorded airline runs and on texts that mean harm."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from demo.recorded import load_runs
from telemetry.derived import COUNTED, CallFacts, Derived, TurnFacts, derive

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "required": ["order"]}},
    }
]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None, *calls: tuple[str, str]) -> dict[str, Any]:
    called = [
        {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, **({"tool_calls": called} if called else {})}


def result(text: Any, call: str = "c0") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": text}


def call(**fields: Any) -> CallFacts:
    values: dict[str, Any] = {
        "id": uuid4(),
        "outcome": "complete",
        "status_code": 200,
        "retry_count": 0,
        "started_at": NOW,
        "ended_at": NOW + timedelta(seconds=2),
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost_microusd": 1500,
    }
    return CallFacts(**values | fields)


def turn(
    index: int,
    parent: int | None,
    messages: Sequence[dict[str, Any]],
    answer: dict[str, Any] | None,
    calls: Sequence[CallFacts],
) -> TurnFacts:
    """A turn that was asked all these messages."""
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    news = messages[answers[-1] + 1 :] if answers else messages
    return TurnFacts(index, parent, json.dumps(messages) if messages else None, news, answer, calls)


def conversation(messages: Sequence[dict[str, Any]]) -> list[TurnFacts]:
    """The turns of an agent that sends its whole history each time."""
    turns: list[TurnFacts] = []
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            index = len(turns)
            turns.append(turn(index, index - 1 if index else None, messages[:at], message, [call()]))
    return turns


def counts(turns: Sequence[TurnFacts], tools: Any = None, **more: Any) -> dict[str, float]:
    """What is counted for the run and is not zero."""
    return {
        row.name: row.value
        for row in derive(turns, tools, **more)
        if row.step is None and row.name in COUNTED and row.value
    }


def about(rows: Sequence[Derived], name: str) -> list[tuple[int, str]]:
    (whole,) = [row for row in rows if row.name == name and row.step is None]
    return [(piece.step, piece.what) for piece in whole.evidence]


def test_the_airline_runs() -> None:
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, run in enumerate(load_runs()):
        for row in derive(conversation(run["traj"]), None):
            if row.step is None and row.name in COUNTED:
                found[row.name] += [(number, piece.step) for piece in row.evidence]
    assert {name: len(places) for name, places in found.items() if places} == {
        "tool_error": 21,
        "repeated_call": 6,
        "user_rephrased": 1,
        "user_corrected": 3,
        "abandoned": 3,
    }
    assert found["user_rephrased"] == [(22, 4)]
    assert found["user_corrected"] == [(21, 2), (45, 10), (71, 2)]
    assert found["abandoned"] == [(6, 6), (26, 29), (56, 6)]
    assert found["repeated_call"][:2] == [(29, 16), (29, 18)]
    assert (29, 14) in found["tool_error"]


def test_evidence_says_what_was_seen_and_where() -> None:
    turns = conversation(load_runs()[0]["traj"])
    rows = derive(turns, None)
    words = (
        "book_reservation answered: Error: payment amount does not add up, total price is 305, but paid 255"
    )
    assert about(rows, "tool_error") == [(9, words)]
    (of_step,) = [row for row in rows if row.name == "tool_error" and row.step is not None]
    assert (of_step.step, of_step.value, of_step.evidence[0].call_id) == (9, 1.0, turns[9].calls[-1].id)


@pytest.mark.parametrize(
    ("content", "is_error"),
    [
        ("Error: no such order", True),
        ("ValueError: bad", True),
        ("Traceback (most recent call last):\n ...", True),
        ('{"error": "no such order"}', True),
        ('{"success": false}', True),
        ('{"status": "failed", "order": 1}', True),
        ([{"type": "text", "text": "Error: no such order"}], True),
        ('{"error": null, "order": 1}', False),
        ('{"errors_fixed": 3}', False),
        ("Errors are listed on page 3", False),
        ("No error", False),
        ("[" * 5000, False),
        ("", False),
        (None, False),
    ],
)
def test_a_tools_error(content: Any, is_error: bool) -> None:
    turns = conversation([user("Where is it?"), said(None, ("look", "{}")), result(content), said("Here.")])
    assert counts(turns) == ({"tool_error": 1.0} if is_error else {})


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("look", '{"order": 1', "not JSON"),
        ("look", "[1]", "not an object"),
        ("look", "{}", "without order"),
        ("loook", '{"order": 1}', "not among the tools"),
        ("look", '{"order": 1}', ""),
    ],
)
def test_a_malformed_tool_call(name: str, arguments: str, words: str) -> None:
    turns = conversation([user("Where?"), said(None, (name, arguments)), result("here"), said("Here.")])
    found = about(derive(turns, TOOLS), "malformed_tool_call")
    assert bool(found) == bool(words)
    assert all(words in what for _, what in found)


def test_a_call_is_repeated_on_its_own_path_only() -> None:
    asks, again = said(None, ("look", '{"a":1,"b":2}')), said(None, ("look", '{"b": 2, "a": 1}'))
    assert counts(conversation([user("?"), asks, result("x"), again, result("x"), said("Done.")])) == {
        "repeated_call": 1.0
    }
    first = turn(0, None, [user("?")], said("Which?"), [])
    left = turn(1, 0, [user("?"), said("Which?"), user("one")], asks, [])
    right = turn(2, 0, [user("?"), said("Which?"), user("two")], again, [])
    assert counts([first, left, right], is_told_over=True) == {}


def test_users_who_say_it_again_and_who_agree() -> None:
    asked = "Please cancel my booking 4711 for tomorrow morning."
    again = conversation(
        [user(asked), said("Which one?"), user("Cancel booking 4711 for tomorrow!"), said("Ok.")]
    )
    assert about(derive(again, None), "user_rephrased")[0][0] == 0
    agrees = conversation([user(asked), said("Shall I?"), user("Yes, cancel my booking 4711."), said("Ok.")])
    assert counts(agrees) == {}


def test_a_correction_counts_for_the_answer_that_it_is_about() -> None:
    turns = conversation(
        [user("Two tickets."), said("Here are three."), user("That\u2019s wrong!"), said("Ok.")]
    )
    assert about(derive(turns, None), "user_corrected") == [
        (0, "the user said \u201cthats wrong\u201d: That\u2019s wrong!")
    ]
    refuses = conversation([user("Two tickets."), said("Insurance?"), user("No, thank you."), said("Ok.")])
    assert counts(refuses) == {}


@pytest.mark.parametrize(
    ("last", "is_abandoned"),
    [
        (said("Which of the two do you want?"), True),
        (said("**Shall I book it?**"), True),
        (said(None, ("book", "{}")), True),
        (said("It is booked. Is there anything else I can help you with?"), False),
        (said("It is booked."), False),
        (said(None, ("transfer_to_human_agents", "{}")), False),
    ],
)
def test_a_run_that_ends_in_the_air(last: dict[str, Any], is_abandoned: bool) -> None:
    turns = conversation([user("A ticket, please."), last])
    assert counts(turns) == ({"abandoned": 1.0} if is_abandoned else {})
    assert counts(turns, is_told_over=True) == {}


def test_the_same_request_answered_again_is_regenerated() -> None:
    opening = [user("A poem."), said("Roses."), user("Longer.")]
    turns = [
        turn(0, None, opening[:1], opening[1], []),
        turn(1, 0, opening, said("Red roses."), []),
        turn(2, 0, [dict(message) for message in opening], said("Redder roses."), []),
        turn(3, 0, [*opening[:2], user("Shorter.")], said("R."), []),
    ]
    assert about(derive(turns, None), "regenerated") == [(1, "step 2 answers the same request again")]


def test_measures_are_sums_and_never_guesses() -> None:
    first = turn(0, None, [user("?")], said("1"), [call(ended_at=None), call(retry_count=1)])
    second = turn(1, 0, [user("?"), said("1"), user("!")], said("2"), [call(cost_microusd=None)])
    rows = {(row.name, row.step): row.value for row in derive([first, second], None)}
    assert rows["latency_s", None] == 4.0
    assert rows["tokens", None] == 45.0
    assert rows["cost_usd", 0] == 0.003
    assert ("cost_usd", None) not in rows
    assert ("cost_usd", 1) not in rows
    backwards = turn(0, None, [user("?")], said("1"), [call(ended_at=NOW - timedelta(hours=3))])
    assert {row.name: row.value for row in derive([backwards], None)}["latency_s"] == 0.0


def test_what_was_not_kept_is_not_counted_as_zero() -> None:
    assert {row.name for row in derive([turn(0, None, [], None, [call()])], None)} == {
        "latency_s", "tokens", "cost_usd",
    }  # fmt: skip
    assert derive([], None) == []


def test_hostile_texts_neither_raise_nor_stall() -> None:
    """Pathological for backtracking, for parsers, for encodings: each as user, as tool, as answer, as arguments."""
    nasty = [
        "a" * 200_000,
        "no " * 100_000,
        "thats " * 100_000,
        "[" * 100_000,
        '{"a":' * 50_000,
        "\ud800\x00",
        "?" * 9999,
    ]
    for text in nasty:
        turns = conversation(
            [user(text), said(text, (text, text)), result(text), said("?"), user(text), said(text)]
        )
        rows = derive(turns, TOOLS)
        assert all(len(piece.what) <= 200 for row in rows for piece in row.evidence)


def test_a_run_of_2000_calls_is_linear_in_its_turns() -> None:
    """Every turn repeats the same call after the same error: the worst for each of the signals."""
    messages: list[dict[str, Any]] = [user("Go.")]
    for _ in range(2000):
        messages += [said(None, ("look", '{"order": 1}')), result("Error: no")]
    found = counts(conversation(messages), TOOLS, is_told_over=True)
    assert found == {"tool_error": 1999.0, "repeated_call": 1999.0}
