"""Rolling hashes and the linking rule, on recorded runs and on made-up mischief."""

import copy
import gzip
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.ids import uuid7
from telemetry.stitching import (
    MAX_PARENTS,
    MAX_TRACE_ROOTS,
    Earlier,
    Reason,
    decide,
    extend,
    is_particular,
    roll,
    said,
)
from telemetry.tracker import RunTracker, response_anchor

AIRLINE = Path(__file__).parents[3] / "platform" / "demo" / "data" / "tau_airline_gpt4o_runs.jsonl.gz"
KEY = "key-1"
Message = dict[str, Any]

texts = st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
tool_calls = st.fixed_dictionaries(
    {
        "id": texts,
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": texts, "arguments": st.dictionaries(texts, values).map(json.dumps)}
        ),
    }
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.none() | texts},
    optional={
        "tool_calls": st.lists(tool_calls, max_size=2),
        "tool_call_id": texts,
        "name": texts,
        "refusal": texts,
    },
)
conversations = st.lists(messages, max_size=4)
quick = settings(max_examples=40)


@pytest.fixture(scope="module")
def recorded() -> list[list[Message]]:
    with gzip.open(AIRLINE, "rt") as lines:
        return [json.loads(line)["traj"] for line in lines]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [8, 32])
def test_recorded_runs_interleaved_are_found_whole_and_unmixed(recorded, width, seed):
    rng = random.Random(seed)
    waiting = list(range(len(recorded)))
    rng.shuffle(waiting)
    tracker, found, running = RunTracker(), defaultdict(set), []
    while waiting or running:
        while waiting and len(running) < width:
            number = waiting.pop()
            running.append((number, [i for i, m in enumerate(recorded[number]) if m["role"] == "assistant"]))
        number, turns = rng.choice(running)
        position = turns.pop(0)
        if not turns:
            running.remove((number, turns))
        hashes = roll(recorded[number][:position])
        guess = tracker.open(KEY, hashes)
        tracker.answered(KEY, guess.run_id, extend(hashes.prefix, recorded[number][position]))
        found[guess.run_id].add(number)
    assert len(found) == 100
    assert [numbers for numbers in found.values() if len(numbers) > 1] == []


@given(conversations, messages)
@quick
def test_the_answer_sent_back_is_the_echo(history, answer):
    answer = {**answer, "role": "assistant"}
    request = roll([*history, answer, {"role": "user", "content": "and then?"}])
    assert request.parents[0] == extend(roll(history).prefix, answer)


@given(conversations)
@quick
def test_what_clients_change_in_sending_back_changes_nothing(history):
    changed = copy.deepcopy(history)
    for message in changed:
        if isinstance(message["content"], str):
            half = len(message["content"]) // 2
            parts = [message["content"][:half], message["content"][half:]]
            message["content"] = [{"type": "text", "text": part, "annotations": []} for part in parts]
        else:
            del message["content"]
        message["audio"] = None
        message["reasoning_content"] = "I thought so."
        for call in message.get("tool_calls", []):
            arguments = json.loads(call["function"]["arguments"])
            call["function"]["arguments"] = json.dumps(dict(reversed(arguments.items())), indent=2)
    assert roll(changed) == roll(history)


@given(conversations, conversations)
@quick
def test_different_text_is_different(one, other):
    if [(m["role"], m["content"] or "") for m in one] != [(m["role"], m["content"] or "") for m in other]:
        assert roll(one).prefix != roll(other).prefix


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name", "function_call"]), values)
    )
)
@quick
def test_no_shape_of_message_raises(history):
    assert len(roll(history).prefix) == 32


def test_at_most_the_newest_answers_are_parents():
    history = [{"role": "assistant", "content": str(number)} for number in range(40)]
    hashes = roll(history)
    assert len(hashes.parents) == MAX_PARENTS
    assert hashes.parents[0] == hashes.prefix


HELLO: Message = {"role": "user", "content": "Hello"}
HI: Message = {"role": "assistant", "content": "Hi."}
GOOD_DAY: Message = {"role": "assistant", "content": "Good day."}


def call(
    tracker: RunTracker, messages: list[Message], answer: Message | None, key: str = KEY, retry: int = 0
) -> UUID:
    hashes = roll(messages)
    run_id = tracker.open(key, hashes, retry).run_id
    if answer:
        tracker.answered(key, run_id, extend(hashes.prefix, answer))
    return run_id


def test_the_tracker_follows_echoes_within_a_key():
    tracker = RunTracker()
    one, other = call(tracker, [HELLO], HI), call(tracker, [HELLO], GOOD_DAY)
    assert one != other
    assert call(tracker, [HELLO, GOOD_DAY, HELLO], HI) == other
    assert call(tracker, [HELLO, HI, HELLO], HI) == one
    assert call(tracker, [HELLO, HI, HELLO], HI, key="key-2") not in {one, other}


def test_the_tracker_follows_named_responses_and_traces():
    tracker = RunTracker()
    first = tracker.open(KEY, roll([HELLO])).run_id
    tracker.answered(KEY, first, response_anchor("resp_1"))
    assert tracker.open(KEY, roll([HELLO]), continues="resp_1").run_id == first
    assert tracker.open("key-2", roll([HELLO]), continues="resp_1").run_id != first
    assert tracker.is_at_a_loss(KEY, roll([HELLO]), continues="resp_2")
    assert not tracker.is_at_a_loss(KEY, roll([HELLO]), continues="resp_1")
    traced = [tracker.open(KEY, roll([HELLO]), trace_id="a" * 32).run_id for _ in range(MAX_TRACE_ROOTS + 2)]
    assert len(set(traced[:MAX_TRACE_ROOTS])) == 1
    assert len(set(traced)) == 3


@pytest.mark.parametrize(
    ("message", "is_proof"),
    [
        ({"role": "assistant", "content": "OK"}, False),
        ({"role": "assistant", "content": "word " * 13}, True),
        ({"role": "tool", "content": [{"type": "text", "text": "word " * 13}]}, True),
        ({"role": "assistant", "tool_calls": [{"id": "call_9f8e7d6c5b4a39281"}]}, True),
        ({"role": "assistant", "tool_calls": [{"id": "call_1"}]}, False),
        ({"role": "assistant", "content": "word " * 13, "tool_calls": [{"id": None}]}, False),
        ({"role": "assistant", "tool_calls": ["odd"]}, False),
        ({"role": "assistant", "content": 7}, False),
        ({"role": "assistant", "content": "\ud800" * 60}, True),
    ],
)
def test_proof_is_what_is_not_said_twice(message, is_proof):
    assert is_particular(said(message)) == is_proof


def test_equals_are_continued_in_turn_and_said_to_be_ambiguous():
    tracker = RunTracker()
    equals = [call(tracker, [HELLO], HI) for _ in range(3)]
    guesses = [tracker.open(KEY, roll([HELLO, HI, HELLO])) for _ in range(3)]
    assert [guess.run_id for guess in guesses] == equals
    assert all(guess.ambiguous for guess in guesses)
    assert not tracker.open(KEY, roll([HELLO])).ambiguous


def test_a_retry_stays_in_the_run_of_its_first_attempt():
    tracker = RunTracker()
    run_id = call(tracker, [HELLO], None)
    assert call(tracker, [HELLO], HI, retry=1) == run_id
    assert call(tracker, [HELLO, HI, HELLO], None) == run_id
    assert call(tracker, [HELLO, HI, HELLO], HI, retry=1) == run_id
    assert call(tracker, [GOOD_DAY], HI, retry=1) != run_id  # its first attempt was never seen


def test_what_another_process_saw_is_continued_like_ones_own():
    elsewhere, here = RunTracker(), RunTracker()
    run_id = call(elsewhere, [HELLO], HI)
    second = roll([HELLO, HI, HELLO])
    assert not here.is_at_a_loss(KEY, roll([HELLO]))  # an opening: nobody can know better
    assert here.is_at_a_loss(KEY, second)
    here.heard(KEY, run_id, second.parents[0])
    assert not here.is_at_a_loss(KEY, second)
    assert call(here, [HELLO, HI, HELLO], GOOD_DAY) == run_id
    assert not here.is_at_a_loss(KEY, roll([HELLO, HI, HELLO, GOOD_DAY, HELLO]))


def test_an_answer_that_was_continued_may_since_belong_to_an_equal_run_elsewhere():
    elsewhere, here = RunTracker(), RunTracker()
    second = roll([HELLO, HI, HELLO])
    runs = []
    for _ in range(2):
        runs.append(call(elsewhere, [HELLO], HI))
        assert here.is_at_a_loss(KEY, second)
        here.heard(KEY, runs[-1], second.parents[0])
        assert call(here, [HELLO, HI, HELLO], None) == runs[-1]
        assert not here.is_at_a_loss(KEY, second, retry_count=1)
    here.heard(KEY, runs[1], second.parents[0])  # nothing new: a fork of the same run
    assert here.is_at_a_loss(KEY, second)


def test_the_tracker_forgets_the_longest_unused():
    tracker = RunTracker(capacity=10)
    old = call(tracker, [HELLO], HI)
    for number in range(20):
        call(tracker, [{"role": "user", "content": str(number)}], HI)
    assert call(tracker, [HELLO, HI, HELLO], HI) != old


def test_the_rule_says_why_and_how_sure():
    hashes = roll([HELLO, HI, HELLO, GOOD_DAY, HELLO])
    newest, older = hashes.parents
    one, other = Earlier(uuid7()), Earlier(uuid7())
    cases = [
        (decide(None, answers={}), (None, 1.0, Reason.SINGLE)),
        (decide(roll([HELLO]), answers={}), (None, 1.0, Reason.OPENING)),
        (decide(hashes, answers={}), (None, 0.5, Reason.ORPHAN)),
        (decide(hashes, answers={newest: [one]}), (one, 1.0, Reason.ECHO)),
        (decide(hashes, answers={older: [one]}), (one, 0.8, Reason.ECHO)),
        (decide(hashes, answers={newest: [one], older: [other]}), (one, 1.0, Reason.ECHO)),
        (decide(hashes, answers={newest: [one, other]}), (one, 0.5, Reason.ECHO_AMBIGUOUS)),
        (
            decide(hashes, answers={newest: [one, other]}, told=other.run_id),
            (other, 0.5, Reason.ECHO_AMBIGUOUS),
        ),
        (decide(hashes, answers={newest: [one]}, named=True), (one, 1.0, Reason.NAMED)),
        (decide(hashes, answers={}, named=True), (None, 1.0, Reason.NAMED)),
        (decide(hashes, answers={newest: [one]}, attempts=[other]), (other, 1.0, Reason.RETRY)),
    ]
    for link, (to, confidence, reason) in cases:
        assert (link.to, link.confidence, link.reason) == (to, confidence, reason)


def test_a_failed_attempt_is_retried_before_an_answered_one():
    answered, failed = Earlier(uuid7(), answered=True), Earlier(uuid7())
    assert decide(roll([HELLO]), answers={}, attempts=[failed, answered]).to is failed
