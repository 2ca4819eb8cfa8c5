"""How a caller may give a run the project's own key for what it is about, such as a ticket's number: so that a system
which knows only that key can say later how it went."""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import bad_request
from gateway.headers import first
from gateway.wire.exchange import Header
from telemetry.metrics import MAX_KEY_CHARACTERS


def of(headers: Sequence[Header], document: Mapping[str, Any]) -> str:
    """The header `x-ratchet-external-key`, else `metadata.external_key` of the body, else an empty text. Raises Refused
    (400) for a key that is too long to be kept."""
    metadata = document.get("metadata")
    in_body = metadata.get("external_key") if isinstance(metadata, dict) else None
    key = first(headers, b"x-ratchet-external-key").strip() or (
        in_body.strip() if isinstance(in_body, str) else ""
    )
    if len(key) > MAX_KEY_CHARACTERS:
        raise bad_request(
            f"The external key has {len(key)} characters; use at most {MAX_KEY_CHARACTERS}.",
            param="external_key",
        )
    return key
