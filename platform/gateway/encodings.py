"""Content encodings (RFC 9110 section 8.4.1), undone on the gateway's copy of a body; the relayed bytes keep
theirs."""

import zlib

MAX_DECODED_BYTES = 128 << 20
"""A small body may unfold into a very large one: this is where unfolding stops."""

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Undecodable(ValueError):
    """The encoding is not known here, or the body is not in it."""


def decode(body: bytes, encoding: str) -> bytes:
    """The body without its content encoding; of a cut body as much as can be had. Raises Undecodable."""
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    window = _WINDOWS.get(encoding)
    if window is None:
        raise Undecodable(f"the content encoding {encoding!r} is not known; use gzip, deflate or none")
    try:
        return _inflate(body, window)
    except zlib.error:
        if encoding != "deflate":
            raise Undecodable(f"the body is not {encoding}") from None
    try:
        return _inflate(body, -15)  # many senders leave out the zlib frame that the standard asks for
    except zlib.error:
        raise Undecodable("the body is not deflate") from None


def _inflate(body: bytes, window: int) -> bytes:
    stream = zlib.decompressobj(window)
    decoded = stream.decompress(body, MAX_DECODED_BYTES)
    if stream.unconsumed_tail:
        raise Undecodable(f"the body unfolds to more than {MAX_DECODED_BYTES} bytes")
    return decoded
