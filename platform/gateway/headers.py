"""Which headers pass, in both directions. Everything does, except what belongs to one connection and what is
Ratchet's.

Requests' names are in lower case; answers' names and all values are bytes that stay as they came."""

from collections.abc import Iterable, Sequence

from gateway.wire.exchange import Header

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 section 7.6.1, with the two that clients send all the same."""
CREDENTIALS = (b"authorization", b"x-api-key", b"api-key")
"""Where callers put the project's key: as OpenAI's, Anthropic's and Azure's SDKs do. None of them is forwarded; the
upstream's credential takes their place."""
_NOT_FORWARDED = (
    HOP_BY_HOP
    | frozenset(CREDENTIALS)
    | {
        b"host",  # the upstream's own
        b"content-length",  # set from the body that is sent
        b"expect",  # answered here
    }
)
_PREFIX = b"x-ratchet-"


def first(headers: Iterable[Header], name: bytes) -> str:
    """The first value of a header, or an empty text."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return ""


def to_upstream(
    headers: Sequence[Header], auth: Header | None, *, without: Iterable[bytes] = ()
) -> list[Header]:
    """The client's headers as the upstream may see them, with its credential when it has one; `without` names
    further ones to leave out."""
    dropped = _NOT_FORWARDED | _named_by_connection(headers) | frozenset(without)
    kept = [(name, value) for name, value in headers if name not in dropped and not name.startswith(_PREFIX)]
    if auth is not None:
        kept.append(auth)
    return kept


def to_client(headers: Sequence[Header], *, has_length: bool = True) -> list[Header]:
    """The upstream's headers as the client may see them: repeated ones stay repeated. Without `has_length` the
    body's length changes on the way."""
    dropped = HOP_BY_HOP if has_length else HOP_BY_HOP | {b"content-length"}
    if any(len(name) == 10 and name.lower() == b"connection" for name, _ in headers):
        dropped = dropped | _named_by_connection((name.lower(), value) for name, value in headers)
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower not in dropped and not lower.startswith(_PREFIX):
            kept.append((name, value))
    return kept


def _named_by_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    values = [value for name, value in headers if name == b"connection"]
    return (
        frozenset(item.strip().lower() for value in values for item in value.split(b","))
        if values
        else frozenset()
    )
