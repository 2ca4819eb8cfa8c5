"""One request to `/v1`: who asks for what, and the record that it begins.

What becomes of it is decided in `gateway.app`; what its body says is read by the dialects."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway import encodings, external_keys
from gateway.capture import RunGuess
from gateway.errors import Refused, bad_request
from gateway.headers import first
from gateway.snapshot import Caller
from gateway.wire.exchange import BodyTooLarge, Exchange, Header
from kernel.ids import uuid7
from telemetry.records import BeginRecord

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
"""W3C Trace Context, section 3.2; later versions may add fields."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request to `/v1`, with the caller that its key belongs to."""

    caller: Caller
    method: str
    path: str
    """Behind `/v1`, percent-encoded as it came."""
    query: str
    headers: Sequence[Header]
    path_run_name: str
    started_at: int
    """Unix microseconds."""
    exchange: Exchange

    @property
    def retry_count(self) -> int:
        """Which retry of OpenAI's SDK this is; 0 for a first attempt and for what is no small number."""
        text = first(self.headers, b"x-stainless-retry-count")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0

    @property
    def is_opted_out(self) -> bool:
        """Whether the key or the header `x-ratchet-training: off` says that nothing may be learnt from the call."""
        said = first(self.headers, b"x-ratchet-training")
        return self.caller.is_opted_out or said.strip().lower() == "off"

    @property
    def trace(self) -> tuple[str, str]:
        """The caller's `traceparent` and `tracestate` (W3C Trace Context), or empty texts."""
        return first(self.headers, b"traceparent"), first(self.headers, b"tracestate")

    @property
    def trace_id(self) -> str:
        """The trace that the caller works under, as 32 hexadecimal digits; empty when it names none."""
        found = _TRACEPARENT.fullmatch(self.trace[0].strip())
        return found[1] if found and found[1].strip("0") else ""

    @property
    def family(self) -> str:
        """The dialect whose provider this is for, where path or headers tell: a request for Anthropic's API must not
        go to OpenAI's only because both have /v1/models."""
        is_messages = self.path.startswith("/messages") or first(self.headers, b"anthropic-version")
        return "messages" if is_messages else ""

    @property
    def target(self) -> bytes:
        """Path and query behind `/v1`, as they came."""
        text = f"{self.path}?{self.query}" if self.query else self.path
        return text.encode("latin-1")

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body as it came. Raises Refused (413)."""
        try:
            return await self.exchange.body(limit_bytes)
        except BodyTooLarge:
            raise Refused(
                413, f"The request body is larger than {limit_bytes} bytes.", code="body_too_large"
            ) from None

    def decoded(self, body: bytes, *, limit_bytes: int = encodings.MAX_DECODED_BYTES) -> bytes:
        """The body without its content encoding. Raises Refused: 400, or 413 for what unfolds beyond the limit."""
        encoding = first(self.headers, b"content-encoding")
        if not encoding:
            return body
        try:
            return encodings.decode(body, encoding, limit_bytes=limit_bytes)
        except encodings.TooLarge as error:
            raise Refused(413, f"The request body cannot be read: {error}.", code="body_too_large") from None
        except encodings.Undecodable as error:
            raise bad_request(
                f"The request body cannot be read: {error}.", param="content-encoding"
            ) from None

    def begin_record(
        self, run: RunGuess | None, *, dialect: str = "", is_opted_out: bool = False, **fields: Any
    ) -> BeginRecord:
        """What the spool is told before the upstream hears of the call; `fields` are what a dialect reads."""
        hashes = run.hashes if run else None
        if "external_key" not in fields:  # no dialect has read the body
            fields["external_key"] = external_keys.of(self.headers, {})
        return BeginRecord(
            call_id=uuid7(),
            project_id=self.caller.project_id,
            api_key_id=self.caller.key_id,
            started_at=self.started_at,
            dialect=dialect,
            method=self.method,
            path=f"/v1{self.path}",
            retry_count=self.retry_count,
            run_hint=run.run_id if run else None,
            run_name=run.name if run else "",
            prefix_hash=hashes.prefix if hashes else None,
            parent_hashes=hashes.parents if hashes else (),
            repeat_hashes=hashes.repeats if hashes else (),
            result_hashes=hashes.results if hashes else (),
            continues=run.continues if run else "",
            trace_id=self.trace_id,
            is_opted_out=is_opted_out or self.is_opted_out,
            **fields,
        )
