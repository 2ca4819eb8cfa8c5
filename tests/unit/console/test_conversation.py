import json

from console.conversation import MAX_TEXT, Message, ToolCall, answer_message, request_messages, since


def body(**document: object) -> bytes:
    return json.dumps(document).encode()


ASKED = {"id": "c1", "type": "function", "function": {"name": "find_order", "arguments": '{"order":7}'}}


def test_a_request_reads_as_messages_and_tools_carry_their_names() -> None:
    messages = request_messages(
        body(
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {}}],
                },
                {"role": "assistant", "content": None, "tool_calls": [ASKED]},
                {"role": "tool", "tool_call_id": "c1", "content": "shipped"},
            ]
        ),
        "chat",
    )
    assert messages == [
        Message("user", "Look:\n[image_url]"),
        Message("assistant", tool_calls=(ToolCall("find_order", '{\n  "order": 7\n}'),)),
        Message("tool", "shipped", name="find_order"),
    ]


def test_answers_whole_and_streamed_read_alike() -> None:
    whole = body(choices=[{"index": 0, "message": {"role": "assistant", "content": "On its way."}}])
    deltas = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in ("On its", " way.")]
    streamed = (
        b"".join(b"data: " + json.dumps(delta).encode() + b"\n\n" for delta in deltas) + b"data: [DONE]\n\n"
    )
    assert (
        answer_message(whole, "chat")
        == answer_message(streamed, "chat")
        == Message("assistant", "On its way.")
    )


def test_what_the_model_thought_and_looked_up_is_shown_beside_what_it_said() -> None:
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "web_search_call", "id": "ws_1"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Here."}]},
    ]
    assert answer_message(body(output=output), "responses") == Message(
        "assistant", "Here.", thinking="Hm.", hosted=("web_search_call",)
    )
    assert request_messages(body(input="Where?", previous_response_id="resp_1"), "responses") == [
        Message("previous_response", "resp_1"),
        Message("user", "Where?"),
    ]


def test_what_is_no_conversation_is_shown_as_it_is() -> None:
    assert answer_message(b"", "chat") is None
    assert answer_message(b"<html>502</html>", "chat") == Message("raw answer", "<html>502</html>")
    assert answer_message(body(error={"message": "no"}), "chat") == Message(
        "raw answer", '{\n  "error": {\n    "message": "no"\n  }\n}'
    )
    assert request_messages(body(input="embed me"), "embeddings") == [
        Message("request", '{\n  "input": "embed me"\n}')
    ]
    assert request_messages(b"\xff\xfe", "chat") == [Message("request", "\ufffd\ufffd")]


def test_long_text_says_how_much_is_left_out() -> None:
    [message] = request_messages(body(messages=[{"role": "user", "content": "x" * (MAX_TEXT + 5)}]), "chat")
    assert message.text.endswith("\n… 5 more characters")


def test_a_step_shows_what_its_parent_has_not() -> None:
    messages = [Message("user", str(number)) for number in range(4)]
    assert since(messages, 3) == messages[3:]
    assert since(messages, 9) == messages
