"""What the mock provider answers to whom: a pure function of the request's plan and the answer's serial number.

Because nothing but these decides the bytes, the oracle can make them again and compare them with what a client
received and with what was stored, to the last byte, prefixes of cut answers included. No IO here."""

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

LARGE_BYTES = 400_000
_WORDS = (
    "order",
    "depot",
    "näher",
    "今日は",
    "left",
    "\\n",
    "𝄞",
    "lamp",
    '"quoted"',
    "refund",
    "4817",
    "data: [",
    "\u2028",
)


class Behaviour(StrEnum):
    """How the provider treats a request."""

    FAST = "fast"
    SLOW = "slow"  # it thinks before it answers
    TRICKLE = "trickle"  # it pauses between pieces
    LARGE = "large"
    RATE_LIMITED = "rate_limited"  # 429 with retry-after
    FAILING = "failing"  # 500 with retry-after
    DIES_BEFORE = "dies_before"  # it closes the connection without an answer
    DIES_WITHIN = "dies_within"  # it closes the connection in the middle of the answer


_STATUS = {Behaviour.RATE_LIMITED: 429, Behaviour.FAILING: 500}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request asks the mock to do; travels in the request's `metadata`."""

    nonce: str
    """Names one request on the wire; a retry has a nonce of its own."""
    behaviour: Behaviour
    stream: bool
    usage: bool
    """Whether the client itself asks for the usage chunk. The gateway may ask for it as well, and hide it."""

    @property
    def metadata(self) -> dict[str, str]:
        return {"nonce": self.nonce, "behaviour": self.behaviour}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in full, before anything cuts it."""

    status: int
    content_type: str
    pieces: tuple[bytes, ...]
    """As they leave, one write each."""
    usage_piece: int | None = None
    """Which of them is the usage chunk."""

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    @property
    def whole(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def visible(self) -> bytes:
        """What a client may see that did not ask for usage."""
        return b"".join(piece for number, piece in enumerate(self.pieces) if number != self.usage_piece)


def reply(plan: Plan, serial: str, *, with_usage: bool) -> Reply:
    """The answer with this serial. `with_usage`: the request that reached the provider asked for the usage chunk."""
    chance = random.Random(f"{plan.nonce}:{serial}")
    status = _STATUS.get(plan.behaviour)
    if status:
        error = {"message": f"{plan.behaviour} {serial}", "type": "mock", "param": None, "code": None}
        return Reply(status, "application/json", (orjson.dumps({"error": error, "id": serial}),))
    words = [chance.choice(_WORDS) + " " for _ in range(chance.randint(3, 30))]
    if plan.behaviour == Behaviour.LARGE:
        words = [word * (LARGE_BYTES // 12 // len(word.encode())) for word in words[:3] * 4]
    usage = {"prompt_tokens": 21, "completion_tokens": len(words), "total_tokens": 21 + len(words)}
    if plan.stream:
        return _stream(serial, words, usage, with_usage=with_usage, chance=chance)
    message = {"role": "assistant", "content": "".join(words), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = orjson.dumps({**_head(serial, "chat.completion"), "choices": [choice], "usage": usage})
    middle = len(body) // 2
    return Reply(200, "application/json", (body[:middle], body[middle:]))


def _stream(
    serial: str, words: list[str], usage: dict[str, int], *, with_usage: bool, chance: random.Random
) -> Reply:
    line = chance.choice([b"\n", b"\n", b"\r\n"])
    head = _head(serial, "chat.completion.chunk")

    def event(**fields: Any) -> bytes:
        return b"data: " + orjson.dumps({**head, **fields}) + line + line

    def delta(content: dict[str, str], finish_reason: str | None = None) -> bytes:
        return event(choices=[{"index": 0, "delta": content, "finish_reason": finish_reason}])

    pieces = [delta({"role": "assistant", "content": ""})]
    if chance.random() < 0.3:
        pieces.append(b": keep-alive" + line + line)
    pieces += [delta({"content": word}) for word in words]
    pieces.append(delta({}, "stop"))
    usage_piece = None
    if with_usage:
        usage_piece = len(pieces)
        pieces.append(event(choices=[], usage=usage))
    pieces.append(b"data: [DONE]" + line + line)
    return Reply(200, "text/event-stream; charset=utf-8", tuple(pieces), usage_piece)


def _head(serial: str, kind: str) -> dict[str, Any]:
    return {
        "id": serial,
        "object": kind,
        "created": 1764000000,
        "model": "gpt-4o",
        "system_fingerprint": None,
    }
