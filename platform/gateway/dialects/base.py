"""What a dialect is: one wire format, read from a copy of the bytes. One file a dialect, all with this face.

A dialect names the paths that it reads, parses a request and an answer, and says what the gateway may ask an
upstream for on its own account and how that is hidden from the client again. The reading itself is in
`telemetry.wire`, where stored bytes are read as well. Relaying never depends on an answer that parses."""

from dataclasses import dataclass
from typing import Any, Protocol

from telemetry.wire.answer import Answer
from telemetry.wire.event_stream import EndWatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The interpreted part of a request."""

    model: str
    """Empty only where the dialect lets a request do without (e.g. a stored prompt)."""
    stream: bool = False
    messages: tuple[dict[str, Any], ...] = ()
    """In the shape of chat messages, whatever the dialect, so that runs can be stitched; empty when there are none."""
    metadata_run_id: str = ""
    """The caller's own name for the run: `metadata.run_id`, or the stored conversation that the request is part of."""
    is_opted_out: bool = False
    """`metadata.ratchet_training` is `off`: nothing may be learnt from the call."""
    previous_response_id: str = ""
    """The answer that the request continues; its messages then hold only what is new since."""


class Hiding(Protocol):
    """Takes out of an answer what only the gateway asked for. One object an answer; fed in order, without content
    encoding. The answer gets shorter: its `content-length` no longer holds."""

    def feed(self, piece: bytes) -> bytes:
        """What of the pieces so far may go to the client now; what is not decided yet is held back."""
        ...

    def finish(self) -> bytes:
        """What was still held back when the answer ended."""
        ...


@dataclass(frozen=True, slots=True)
class Addition:
    """A request with what the gateway asks for on its own account."""

    body: bytes
    hidden: tuple[str, ...]
    """`usage`, `token_ids`, `logprobs`: what the client would otherwise not have seen."""
    hiding: Hiding


class Dialect(Protocol):
    """One wire format."""

    name: str
    """As records and spans call it: `chat`, `responses`, `completions`, `embeddings`, `messages`."""
    paths: tuple[str, ...]
    """Behind `/v1`; POST to one of these is read by the dialect."""

    def parse_request(self, document: dict[str, Any]) -> Asked:
        """Raises Refused (400), naming the field, for a body that no model could be found for."""
        ...

    def parse_answer(self, body: bytes, *, is_stream: bool) -> Answer:
        """Read an answer, whole or cut. Never raises on odd content: what cannot be read stays empty."""
        ...

    def watch_end(self) -> EndWatch:
        """What tells a stream's end, for one answer."""
        ...

    def ask_more(
        self, body: bytes, document: dict[str, Any], *, asks_usage: bool, is_own_node: bool
    ) -> Addition | None:
        """What to ask the upstream for beyond the client's own request: usage of a stream (`asks_usage`: the upstream
        understands the question), token ids and logprobs of our own nodes. None when there is nothing to add.

        `body` is the request's bytes without content encoding, `document` the same parsed; other bytes stay as they
        are."""
        ...
