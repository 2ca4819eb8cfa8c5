"""`POST /v1/webhooks/<address>`: signals of a business system, signed with a shared secret instead of an API key.

    x-ratchet-signature: t=<Unix seconds>,v1=<hex of HMAC-SHA256 over "<t>.<body>">

The body is one signal as feedback has it, or a list of them. What a signal may hold and how it is answered is
`gateway.feedback`'s. A request that is sent again as it was is the first one: where a signal has no idempotency key,
its signature stands for one."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.authentication import require_loaded
from gateway.errors import Refused, bad_request, unprocessable
from gateway.feedback import MAX_SIGNALS, Feedback
from gateway.headers import first
from gateway.keeper import SnapshotKeeper
from gateway.limiter import Limiter, used_up
from gateway.request import Request
from gateway.snapshot import Webhook

PREFIX = "/v1/webhooks/"
HEADER = "x-ratchet-signature"
TOLERANCE_S = 300
"""How far the sender's clock and ours may differ, and how long a request may be under way."""
MAX_BODY_BYTES = 1 << 20
MAX_SIGNATURES = 5
"""Of one request; while a secret is changed a sender may sign with both."""


class Webhooks:
    """The door of one gateway process."""

    def __init__(self, feedback: Feedback, limiter: Limiter) -> None:
        self._feedback = feedback
        self._limiter = limiter

    def addressed(self, method: str, path: str, keeper: SnapshotKeeper) -> Webhook | None:
        """The webhook that a request is for; None for a request of another kind. Raises Refused: 401 for an address
        that nobody has, 503 before any is known."""
        if method != "POST" or not path.startswith(PREFIX):
            return None
        require_loaded(keeper)
        webhook = keeper.current.webhooks.get(path.removeprefix(PREFIX))
        if webhook is None:
            raise _unproven()
        return webhook

    async def answer(self, request: Request, webhook: Webhook) -> None:
        """Answer the exchange. Raises Refused: 400, 401, 409, 413, 422 naming the field, 429, 503."""
        now_s = request.started_at // 1_000_000
        body = await request.body(MAX_BODY_BYTES)
        signed = verified(first(request.headers, HEADER.encode()), body, secret=webhook.secret, now_s=now_s)
        # Counted once it is proven who sends: otherwise a stranger could use up the limit.
        if exceeded := self._limiter.refuse_signal(request.caller, now_s):
            raise used_up(exceeded)
        source = f"webhook:{webhook.name}"
        signals = _signals(body)
        if isinstance(signals, list):
            items = [_completed(item, signed, index) for index, item in enumerate(signals)]
            await self._feedback.answer_all(request, items, source=source)
        else:
            await self._feedback.answer_one(request, _completed(signals, signed, 0), source=source)


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that was proven."""

    at_s: int
    """When it was made, in Unix seconds."""
    digits: str


def signature(body: bytes, *, secret: str, at_s: int) -> str:
    """The header with which the owner of the secret sends the body."""
    return f"t={at_s},v1={_digits(body, secret, str(at_s))}"


def verified(header: str, body: bytes, *, secret: str, now_s: int) -> Signed:
    """The signature that proves the body. Raises Refused (401)."""
    if not header:
        raise Refused(401, f"The header {HEADER} is missing: sign the request.", code="invalid_signature")
    parts = [part.strip().partition("=")[::2] for part in header.split(",")]
    stamp = next((value for name, value in parts if name == "t"), "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
        raise Refused(
            401, f"The header {HEADER} must be t=<Unix seconds>,v1=<hex digits>.", code="invalid_signature"
        )
    expected = _digits(body, secret, stamp)
    given = [value.lower() for name, value in parts if name == "v1"][:MAX_SIGNATURES]
    if not any(hmac.compare_digest(expected.encode(), digits.encode()) for digits in given):
        raise _unproven()
    if abs(now_s - int(stamp)) > TOLERANCE_S:
        raise Refused(
            401,
            f"The signature's time is more than {TOLERANCE_S} s away from ours: check the clock, and sign each"
            " attempt anew.",
            code="signature_expired",
        )
    return Signed(int(stamp), expected)


def _digits(body: bytes, secret: str, stamp: str) -> str:
    return hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _unproven() -> Refused:
    return Refused(
        401,
        "There is no webhook of this address, or the signature is not by its secret.",
        code="invalid_signature",
    )


def _signals(body: bytes) -> Any:
    try:
        signals = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The signals are not valid JSON: {error.msg}.") from None
    if isinstance(signals, list) and not 0 < len(signals) <= MAX_SIGNALS:
        raise unprocessable(f"A list must hold 1 to {MAX_SIGNALS} signals.", param="signals")
    return signals


def _completed(fields: Any, signed: Signed, index: int) -> Any:
    """A signal with what the signature says where it says nothing itself, so that a request that is sent again is
    equal in everything."""
    if not isinstance(fields, Mapping):
        return fields
    return {
        "idempotency_key": f"webhook:{signed.digits}:{index}",
        "observed_at": datetime.fromtimestamp(signed.at_s, UTC).isoformat(),
        **{name: value for name, value in fields.items() if value is not None},
    }
