"""OpenAI's Realtime API, as far as a turn of it becomes a call: client events in, server events until `response.done`.

Read by `gateway.websocket` only: no path is posted to. The stored request is one client event a line; the stored
answer is the server's events, framed as an event stream. https://platform.openai.com/docs/api-reference/realtime"""

import re
from typing import Any

from gateway.dialects.base import Addition, Asked
from telemetry.wire.answer import Answer
from telemetry.wire.event_stream import EndWatch, data
from telemetry.wire.lenient import count, load_object, mapping, text

_DONE = re.compile(rb'[\r\n]data: ?\{ ?"type": ?"response\.done"')


class RealtimeDialect:
    """The dialect, as `gateway.capture` needs it."""

    name = "realtime"
    paths: tuple[str, ...] = ()

    def parse_request(self, document: dict[str, Any]) -> Asked:
        return Asked(model=text(document.get("model")), stream=True)

    def parse_answer(self, body: bytes, *, is_stream: bool) -> Answer:
        for line in reversed(list(data(body))):
            event = load_object(line)
            if event.get("type") == "response.done":
                return _answer(mapping(event.get("response")))
        return Answer()

    def watch_end(self) -> EndWatch:
        return EndWatch(_DONE)

    def ask_more(
        self, body: bytes, document: dict[str, Any], *, asks_usage: bool, is_own_node: bool
    ) -> Addition | None:
        return None


def _answer(response: dict[str, Any]) -> Answer:
    usage = mapping(response.get("usage"))
    details = mapping(usage.get("input_token_details"))
    return Answer(
        response_id=text(response.get("id")),
        finish_reason=text(response.get("status")),
        prompt_tokens=count(usage.get("input_tokens")),
        completion_tokens=count(usage.get("output_tokens")),
        cached_tokens=count(details.get("cached_tokens")),
        is_whole=True,
    )
