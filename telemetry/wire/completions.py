"""OpenAI's legacy completions, read from bytes. Pure, and lenient. Usage and choices are those of chat.

https://platform.openai.com/docs/api-reference/completions"""

from typing import Any

from telemetry.wire import event_stream
from telemetry.wire.answer import Answer
from telemetry.wire.chat import END, first_choice, usage_of
from telemetry.wire.lenient import compact, load_object, text


def request_messages(document: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The prompt as a user's message. Token ids and lists of prompts stand as JSON."""
    prompt = document.get("prompt")
    return ({"role": "user", "content": compact(prompt)},) if prompt else ()


def read_answer(body: bytes, *, is_stream: bool) -> Answer:
    """The first choice of an answer, whole or cut; its text as an assistant's message."""
    documents = (
        [load_object(data) for data in event_stream.data(body) if data != END]
        if is_stream
        else [load_object(body)]
    )
    pieces: list[str] = []
    response_id = finish_reason = ""
    usage: dict[str, int | None] = {}
    for document in documents:
        choice = first_choice(document)
        if isinstance(piece := choice.get("text"), str):
            pieces.append(piece)
        response_id = response_id or text(document.get("id"))
        finish_reason = text(choice.get("finish_reason")) or finish_reason
        if document.get("usage"):
            usage = usage_of(document)
    is_done = is_stream and any(data == END for data in event_stream.data(body))
    return Answer(
        response_id=response_id,
        message={"role": "assistant", "content": "".join(pieces)} if pieces else None,
        finish_reason=finish_reason,
        is_whole=is_done or bool(finish_reason) or (not is_stream and bool(documents[0])),
        **usage,
    )
