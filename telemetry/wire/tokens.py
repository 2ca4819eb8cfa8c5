"""The token ids and log-probabilities of an answer of our own nodes, as vLLM sends them when asked for
`return_token_ids` and `logprobs`. Pure, and lenient: ids and log-probabilities that do not fit together are none.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html; `workers.policy_server.protocol` has the same
face."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from telemetry.wire import event_stream
from telemetry.wire.chat import END, first_choice
from telemetry.wire.lenient import load_object, mapping, mappings


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """What the model read and drew, token by token."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """One for each of `token_ids`: the log-probability with which it was drawn."""


def read_tokens(body: bytes, *, is_stream: bool) -> Sampled | None:
    """The tokens of a chat answer's first choice; None when it does not hold them all."""
    documents: Iterable[dict[str, Any]] = [load_object(body)]
    if is_stream:
        documents = (load_object(data) for data in event_stream.data(body) if data != END)
    prompt: list[int] = []
    drawn: list[int] = []
    logprobs: list[float] = []
    for document in documents:
        prompt = prompt or _ids(document.get("prompt_token_ids"))
        choice = first_choice(document)
        drawn += _ids(choice.get("token_ids"))
        entries = mappings(mapping(choice.get("logprobs")).get("content"))
        logprobs += [
            float(entry["logprob"]) for entry in entries if type(entry.get("logprob")) in (int, float)
        ]
    if not prompt or not drawn or len(drawn) != len(logprobs):
        return None
    return Sampled(prompt_token_ids=tuple(prompt), token_ids=tuple(drawn), logprobs=tuple(logprobs))


def _ids(values: Any) -> list[int]:
    return [value for value in values if type(value) is int] if isinstance(values, list) else []
