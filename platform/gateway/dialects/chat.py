"""OpenAI's chat completions at the gateway. How they are read is `telemetry.wire.chat`."""

from typing import Any

from gateway.dialects.base import Addition, Asked
from gateway.dialects.hiding import LOGPROBS, TOKEN_IDS, USAGE, DocumentHiding, StreamHiding
from gateway.dialects.requests import is_opted_out, model_of, run_id_of, with_true, with_usage
from telemetry.wire import chat as wire
from telemetry.wire.answer import Answer
from telemetry.wire.event_stream import DONE, EndWatch


class ChatDialect:
    """`/v1/chat/completions`, of providers and of our own nodes."""

    name = "chat"
    paths: tuple[str, ...] = ("/chat/completions",)

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
        """Of our own nodes also what learning needs: `return_token_ids` and `logprobs`, as vLLM calls them
        (https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html). A stream brings the prompt's ids
        once, and the ids of its tokens chunk by chunk."""
        is_stream = document.get("stream") is True
        hidden = []
        if is_stream and asks_usage and (asking := with_usage(body, document)):
            body = asking
            hidden.append(USAGE)
        if is_own_node and (asking := with_true(body, document, "return_token_ids")):
            body = asking
            hidden.append(TOKEN_IDS)
        # `top_logprobs` without `logprobs` is an error of the client's, and has to stay one.
        if (
            is_own_node
            and document.get("top_logprobs") is None
            and (asking := with_true(body, document, "logprobs"))
        ):
            body = asking
            hidden.append(LOGPROBS)
        if not hidden:
            return None
        return Addition(body, tuple(hidden), StreamHiding(hidden) if is_stream else DocumentHiding(hidden))
