"""Anthropic's Messages at the gateway. How they are read is `telemetry.wire.messages`."""

import re
from typing import Any

from gateway.dialects.base import Addition, Asked
from gateway.dialects.requests import is_opted_out, model_of, run_id_of
from telemetry.wire import messages as wire
from telemetry.wire.answer import Answer
from telemetry.wire.event_stream import EndWatch

_TERMINAL = re.compile(
    rb'event: ?(?:message_stop|error)(?=[\r\n])|data: ?\{"type": ?"(?:message_stop|error)"'
)


class MessagesDialect:
    """`/v1/messages`. What counts tokens (`/v1/messages/count_tokens`) and batches pass through."""

    name = "messages"
    paths: tuple[str, ...] = ("/messages",)

    def parse_request(self, document: dict[str, Any]) -> Asked:
        return Asked(
            model=model_of(document),
            stream=document.get("stream") is True,
            messages=wire.request_messages(document),
            metadata_run_id=run_id_of(document),
            is_opted_out=is_opted_out(document),
        )

    def parse_answer(self, body: bytes, *, is_stream: bool) -> Answer:
        return wire.read_answer(body, is_stream=is_stream)

    def watch_end(self) -> EndWatch:
        return EndWatch(_TERMINAL)

    def ask_more(
        self, body: bytes, document: dict[str, Any], *, asks_usage: bool, is_own_node: bool
    ) -> Addition | None:
        """Nothing: streams begin and end with their usage."""
        return None
