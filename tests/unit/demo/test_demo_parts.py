"""The demo's own yardsticks: what counts as a stray, and a recorded provider that answers as it once did."""

import json

import pytest

from demo import traffic
from demo.recorded import RecordedRuns, completion, events, load_runs

TRUTH = {"a1": "A", "a2": "A", "b1": "B", "b2": "B"}
HISTORIES = {"a1": "hello", "a2": "hello a", "b1": "hello", "b2": "hello b"}


@pytest.mark.parametrize(
    ("stitched", "strays"),
    [
        ({"a1": 1, "a2": 1, "b1": 2, "b2": 2}, 0),
        ({"b1": 1, "a2": 1, "a1": 2, "b2": 2}, 0),  # a1 and b1 are equal word for word: exchanged, not astray
        ({"a1": 1, "a2": 1, "b1": 2, "b2": 1}, 1),
        ({"a1": 1, "a2": 3, "b1": 2, "b2": 2}, 1),  # run A was torn in two
        ({"a1": 1, "a2": 1, "b1": 2}, 1),  # b2 was never stitched
        ({}, 2),  # each run keeps one call of its own; the rest is lost
    ],
)
def test_a_stray_is_a_call_in_a_wrong_run(stitched, strays) -> None:
    assert traffic.strays(TRUTH, HISTORIES, {key: str(run) for key, run in stitched.items()}) == strays


def test_every_recorded_turn_is_answered_and_nothing_else() -> None:
    runs = load_runs()
    recorded = RecordedRuns(runs)
    turns = 0
    for run in runs:
        for index, message in enumerate(run["traj"]):
            if message["role"] == "assistant":
                turns += 1
                assert recorded.answer(run["traj"][:index]) == message
    assert turns == 1163
    assert recorded.answer([{"role": "user", "content": "never said"}]) is None


def test_a_stream_says_what_the_json_says() -> None:
    run = load_runs()[0]
    turn = next(i for i, message in enumerate(run["traj"]) if message.get("tool_calls"))
    whole = completion(run["traj"][:turn], run["traj"][turn])
    frames = [frame for frame in b"".join(events(whole, with_usage=True)).split(b"\n\n") if frame]
    assert frames[-1] == b"data: [DONE]"
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-1]]
    assert chunks[-1]["usage"] == whole["usage"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    arguments = "".join(
        call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", [])
    )
    message = whole["choices"][0]["message"]
    assert text == (message["content"] or "")
    assert arguments == message["tool_calls"][0]["function"]["arguments"]
