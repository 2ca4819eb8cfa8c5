"""Turns as a realtime session: the client's events are answered by the server's, over one WebSocket."""

from collections.abc import Iterator
from typing import Any

from tests.conformance.provider import script
from tests.conformance.provider.script import Turn

PATH = "/v1/realtime"


class Session:
    """One session's state: how many tool results it has been given."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._tool_results = 0
        self._session: dict[str, Any] = {
            "type": "realtime",
            "object": "realtime.session",
            "id": f"sess_{run}",
            "model": script.MODEL,
            "output_modalities": ["text"],
        }

    def greeting(self) -> dict[str, Any]:
        return {"type": "session.created", "event_id": "event_0", "session": self._session}

    def answers(self, received: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The server's events upon one of the client's."""
        match received["type"]:
            case "session.update":
                self._session |= received["session"]
                yield {"type": "session.updated", "event_id": "event_1", "session": self._session}
            case "conversation.item.create":
                item = {"id": "item_client", **received["item"]}
                self._tool_results += item["type"] == "function_call_output"
                yield {"type": "conversation.item.added", "event_id": "event_2", "item": item}
            case "response.create":
                yield from _response(Turn(self._run, self._tool_results))


def _response(turn: Turn) -> Iterator[dict[str, Any]]:
    place = {
        "event_id": "event_3",
        "response_id": turn.id("resp_"),
        "item_id": turn.id("item_"),
        "output_index": 0,
    }
    response = {"id": turn.id("resp_"), "object": "realtime.response", "status": "in_progress", "output": []}
    yield {"type": "response.created", "event_id": "event_3", "response": response}
    if turn.call:
        for piece in turn.pieces():
            yield {
                "type": "response.function_call_arguments.delta",
                **place,
                "call_id": turn.id("call_"),
                "delta": piece,
            }
        item: dict[str, Any] = {
            "id": turn.id("item_"),
            "object": "realtime.item",
            "type": "function_call",
            "status": "completed",
            "call_id": turn.id("call_"),
            "name": turn.call.name,
            "arguments": turn.call.arguments,
        }
    else:
        for piece in turn.pieces():
            yield {"type": "response.output_text.delta", **place, "content_index": 0, "delta": piece}
        yield {"type": "response.output_text.done", **place, "content_index": 0, "text": script.ANSWER}
        item = {
            "id": turn.id("item_"),
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": script.ANSWER}],
        }
    usage = {
        "total_tokens": script.PROMPT_TOKENS + script.COMPLETION_TOKENS,
        "input_tokens": script.PROMPT_TOKENS,
        "output_tokens": script.COMPLETION_TOKENS,
    }
    done = {**response, "status": "completed", "output": [item], "usage": usage}
    yield {"type": "response.done", "event_id": "event_4", "response": done}
