"""Which headers pass, in both directions. Everything does, except what belongs to one connection and what is
Ratchet's.

Header names arrive in lower case from ASGI; values are bytes and stay as they are."""

from collections.abc import Iterable

Header = tuple[bytes, bytes]

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
_NOT_FORWARDED = HOP_BY_HOP | {
    b"host",  # the upstream's own
    b"authorization",  # ours; the upstream's credential takes its place
    b"content-length",  # set from the body that is sent
    b"expect",  # the server below has answered it
}
_PREFIX = b"x-ratchet-"


def first(headers: Iterable[Header], name: bytes) -> str:
    """The first value of a header, or an empty text."""
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def to_upstream(headers: Iterable[Header], credential: str) -> list[tuple[str, str]]:
    """The client's headers as the upstream may see them, with its credential when it has one."""
    headers = list(headers)
    dropped = _NOT_FORWARDED | _named_by_connection(headers)
    kept = [
        (name.decode("latin-1"), _text(value))
        for name, value in headers
        if name not in dropped and not name.startswith(_PREFIX)
    ]
    if credential:
        kept.append(("authorization", f"Bearer {credential}"))
    return kept


def to_client(raw_headers: Iterable[Header]) -> list[Header]:
    """The upstream's headers as the client may see them: repeated ones stay repeated."""
    headers = [(name.lower(), value) for name, value in raw_headers]
    dropped = HOP_BY_HOP | _named_by_connection(headers)
    return [(name, value) for name, value in headers if name not in dropped and not name.startswith(_PREFIX)]


def _text(value: bytes) -> str:
    """Text that the HTTP client below will write as these bytes again: it writes UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _named_by_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    values = [value for name, value in headers if name == b"connection"]
    return frozenset(item.strip().lower() for value in values for item in value.split(b","))
