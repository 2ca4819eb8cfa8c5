"""Asking a judge's model: one chat completion of any OpenAI-compatible server.

Says what came back and what it used. Retries are the caller's, whose rows know when to try again."""

from collections.abc import Sequence
from dataclasses import dataclass

import httpx

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 120.0
MAX_ANSWER_TOKENS = 4_000


class JudgeUnavailable(Exception):
    """The model server could not be reached, refused, or answered what is no chat completion."""


@dataclass(frozen=True)
class Reply:
    """What the model said, and the tokens that its server counted."""

    text: str
    prompt_tokens: int
    completion_tokens: int


def ask(
    *, base_url: str, model: str, credential: str, messages: Sequence[dict[str, str]], client: httpx.Client
) -> Reply:
    """Put one chat to the model, at temperature 0. Raises JudgeUnavailable."""
    body = {
        "model": model, "messages": list(messages), "temperature": 0, "max_tokens": MAX_ANSWER_TOKENS,
    }  # fmt: skip
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    try:
        response = client.post(f"{base_url}/chat/completions", json=body, headers=headers)
    except httpx.HTTPError as error:
        raise JudgeUnavailable(f"the judge's server cannot be reached: {type(error).__name__}") from error
    if response.status_code != 200:
        # The body may repeat the prompt: it is neither logged nor kept.
        raise JudgeUnavailable(f"the judge's server answered {response.status_code}")
    try:
        answer = response.json()
        text = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage") or {}
        reply = Reply(text, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise JudgeUnavailable("the judge's server answered what is no chat completion") from error
    if not isinstance(text, str) or min(reply.prompt_tokens, reply.completion_tokens) < 0:
        raise JudgeUnavailable("the judge's server answered what is no chat completion")
    return reply


def client() -> httpx.Client:
    """Follows no redirects: a credential goes to the origin that it was given for."""
    return httpx.Client(timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S), trust_env=False)
