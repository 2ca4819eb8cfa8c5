"""OpenAI's Responses at the gateway. How they are read is `telemetry.wire.responses`."""

import re
from typing import Any

from gateway.dialects.base import Addition, Asked
from gateway.dialects.requests import is_opted_out, run_id_of
from telemetry.wire import responses as wire
from telemetry.wire.answer import Answer
from telemetry.wire.event_stream import EndWatch

_TERMINAL = re.compile(
    rb"event: ?(?:response\.(?:completed|incomplete|failed)|error)(?=[\r\n])"
    rb'|data: ?\{"type": ?"(?:response\.(?:completed|incomplete|failed)|error)"'
)


class ResponsesDialect:
    """`/v1/responses`. What only reads or counts (`/v1/responses/{id}`, `/input_tokens`, `/compact`) passes
    through."""

    name = "responses"
    paths: tuple[str, ...] = ("/responses",)

    def parse_request(self, document: dict[str, Any]) -> Asked:
        """Refuses nothing: a stored prompt, a conversation or the provider's default may name the model."""
        model, previous = document.get("model"), document.get("previous_response_id")
        return Asked(
            model=model if isinstance(model, str) else "",
            stream=document.get("stream") is True,
            messages=wire.request_messages(document),
            metadata_run_id=run_id_of(document) or wire.conversation_id(document),
            is_opted_out=is_opted_out(document),
            previous_response_id=previous if isinstance(previous, str) else "",
        )

    def parse_answer(self, body: bytes, *, is_stream: bool) -> Answer:
        return wire.read_answer(body, is_stream=is_stream)

    def watch_end(self) -> EndWatch:
        return EndWatch(_TERMINAL)

    def ask_more(
        self, body: bytes, document: dict[str, Any], *, asks_usage: bool, is_own_node: bool
    ) -> Addition | None:
        """Nothing: the last event always brings the usage."""
        return None
