"""Who calls: the API key in a request's headers, and the project that it belongs to.

Keys are looked up in the snapshot by their digest; none is stored, logged or repeated in an answer."""

from collections.abc import Sequence
from functools import lru_cache

from accounts import keys
from gateway import websocket
from gateway.errors import Refused
from gateway.headers import CREDENTIALS, first
from gateway.keeper import SnapshotKeeper
from gateway.snapshot import Caller
from gateway.wire.exchange import Header

MAX_KNOWN_KEYS = 4096


class Authenticator:
    """Knows the pepper under which keys are stored."""

    def __init__(self, key_pepper: bytes) -> None:
        # A key comes with every call, and its digest costs a tenth of what the gateway has to do for one.
        self._digest = lru_cache(maxsize=MAX_KNOWN_KEYS)(
            lambda key: keys.digest(key, key_pepper) if keys.well_formed(key) else None
        )

    def caller(self, headers: Sequence[Header], keeper: SnapshotKeeper) -> Caller:
        """Raises Refused: 401 without a live key, 503 before any key is known."""
        require_loaded(keeper)
        key = _key(headers)
        if not key:
            raise _unauthorized(
                "No API key was given. Send the project's key as `Authorization: Bearer rk_...`."
            )
        digest = self._digest(key)
        if digest is None:
            raise _unauthorized(
                "This is not a Ratchet key (they look like rk_...). Use the project's key here; the provider's own key"
                " belongs to the project's upstream."
            )
        caller = keeper.current.callers.get(digest)
        if caller is None:
            raise _unauthorized(
                "This API key is unknown or was revoked. Make a new one for the project and use that."
            )
        return caller


def require_loaded(keeper: SnapshotKeeper) -> None:
    """Raises Refused (503) before any key is known."""
    if not keeper.is_loaded:
        raise Refused(
            503,
            "The gateway has just started and does not know its keys yet: try again in a moment.",
            type="server_error",
            code="starting",
        )


def _key(headers: Sequence[Header]) -> str:
    """The caller's key, from wherever its SDK puts it."""
    for name in CREDENTIALS:
        value = first(headers, name)
        if name == b"authorization":
            scheme, _, value = value.partition(" ")
            value = value if scheme.lower() == "bearer" else ""
        if value.strip():
            return value.strip()
    return websocket.key_in_protocol(headers)


def _unauthorized(message: str) -> Refused:
    return Refused(401, message, code="invalid_api_key")
