"""How an answer's raw text becomes content and tool calls; whole or streamed, the same."""

import pytest

from workers.policy_server.answers import Answer, ToolCall, parse, streamable

CALL = '<tool_call>{"name": "refund", "arguments": {"order_id": "4817"}}</tool_call>'
REFUND = ToolCall("refund", '{"order_id": "4817"}')


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Done.", Answer("Done.", ())),
        ("", Answer("", ())),
        (CALL, Answer("", (REFUND,))),
        ("Let me see. " + CALL + "\n" + CALL, Answer("Let me see. ", (REFUND, REFUND))),
        ('<tool_call>{"name": "ping"}</tool_call>', Answer("", (ToolCall("ping", "{}"),))),
    ],
)
def test_answers_that_parse(text, answer):
    assert parse(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        CALL.removesuffix("</tool_call>"),
        CALL.replace("}}", "}"),
        CALL.replace('{"order_id": "4817"}', '"4817"'),
        CALL.replace('"refund"', "3"),
        CALL + "and more",
        "<tool_call>[]</tool_call>",
        CALL + "<tool_call>{</tool_call>",
    ],
)
def test_a_call_that_does_not_parse_stays_visible_text(text):
    assert parse(text) == Answer(text, ())


@pytest.mark.parametrize(
    "text", ["Done.", "a < b and <tool or <tool_cal", "Let me see. " + CALL, CALL, "<tool_call>{"]
)
def test_streamed_text_is_always_a_prefix_of_the_answer(text):
    for end in range(len(text) + 1):
        assert parse(text).content.startswith(streamable(text[:end]))
