"""OpenAI's embeddings at the gateway. How they are read is `telemetry.wire.embeddings`."""

from typing import Any

from gateway.dialects.base import Addition, Asked
from gateway.dialects.requests import model_of
from telemetry.wire import embeddings as wire
from telemetry.wire.answer import Answer
from telemetry.wire.event_stream import DONE, EndWatch


class EmbeddingsDialect:
    """`/v1/embeddings`: no messages, no stream, usage always."""

    name = "embeddings"
    paths: tuple[str, ...] = ("/embeddings",)

    def parse_request(self, document: dict[str, Any]) -> Asked:
        return Asked(model=model_of(document))

    def parse_answer(self, body: bytes, *, is_stream: bool) -> Answer:
        return wire.read_answer(body, is_stream=is_stream)

    def watch_end(self) -> EndWatch:
        return EndWatch(DONE)

    def ask_more(
        self, body: bytes, document: dict[str, Any], *, asks_usage: bool, is_own_node: bool
    ) -> Addition | None:
        return None
