"""OpenAI's embeddings, read from bytes: what they cost. Pure, and lenient.

https://platform.openai.com/docs/api-reference/embeddings"""

from typing import Any

from telemetry.wire.answer import Answer
from telemetry.wire.chat import usage_of
from telemetry.wire.lenient import load_object


def request_messages(document: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """None: nobody speaks."""
    return ()


def read_answer(body: bytes, *, is_stream: bool) -> Answer:
    """The usage of an answer. There is no stream."""
    document = load_object(body)
    usage: dict[str, Any] = usage_of(document)
    return Answer(is_whole=bool(document), **usage)
