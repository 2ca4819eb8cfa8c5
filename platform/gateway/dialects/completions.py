"""OpenAI's legacy completions at the gateway. How they are read is `telemetry.wire.completions`."""

from typing import Any

from gateway.dialects.base import Addition, Asked
from gateway.dialects.hiding import USAGE, StreamHiding
from gateway.dialects.requests import is_opted_out, model_of, run_id_of, with_usage
from telemetry.wire import completions as wire
from telemetry.wire.answer import Answer
from telemetry.wire.event_stream import DONE, EndWatch


class CompletionsDialect:
    """`/v1/completions`."""

    name = "completions"
    paths: tuple[str, ...] = ("/completions",)

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
        return EndWatch(DONE)

    def ask_more(
        self, body: bytes, document: dict[str, Any], *, asks_usage: bool, is_own_node: bool
    ) -> Addition | None:
        if not asks_usage or document.get("stream") is not True:
            return None
        asking = with_usage(body, document)
        return Addition(asking, (USAGE,), StreamHiding([USAGE])) if asking else None
