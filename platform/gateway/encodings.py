"""Content encodings (RFC 9110 section 8.4.1), undone on the gateway's copy of a body; the relayed bytes keep
theirs."""

import zlib

import zstandard

MAX_DECODED_BYTES = 128 << 20
"""A small body may unfold into a very large one: this is where unfolding stops."""
MAX_WINDOW_BYTES = 8 << 20
"""How far back a zstd body may refer: what RFC 9659 allows, and all that a reader has to set aside."""

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Undecodable(ValueError):
    """The encoding is not known here, or the body is not in it."""


class TooLarge(Undecodable):
    """The body unfolds beyond the limit."""


def decode(body: bytes, encoding: str, *, limit_bytes: int = MAX_DECODED_BYTES) -> bytes:
    """The body without its content encoding; of a cut body as much as can be had. Raises Undecodable, TooLarge."""
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding == "zstd":
        return _unzstd(body, limit_bytes)
    window = _WINDOWS.get(encoding)
    if window is None:
        raise Undecodable(f"the content encoding {encoding!r} is not known; use gzip, deflate, zstd or none")
    try:
        return _inflate(body, window, limit_bytes)
    except zlib.error:
        if encoding != "deflate":
            raise Undecodable(f"the body is not {encoding}") from None
    try:
        return _inflate(
            body, -15, limit_bytes
        )  # many senders leave out the zlib frame that the standard asks for
    except zlib.error:
        raise Undecodable("the body is not deflate") from None


def _inflate(body: bytes, window: int, limit_bytes: int) -> bytes:
    stream = zlib.decompressobj(window)
    decoded = stream.decompress(body, limit_bytes)
    if stream.unconsumed_tail:
        raise _too_large(limit_bytes)
    return decoded


def _unzstd(body: bytes, limit_bytes: int) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        with reader.stream_reader(body, read_across_frames=True) as stream:
            decoded = stream.read(limit_bytes + 1)
    except zstandard.ZstdError:
        raise Undecodable("the body is not zstd, or refers back too far") from None
    if len(decoded) > limit_bytes:
        raise _too_large(limit_bytes)
    return decoded


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the body unfolds to more than {limit_bytes} bytes")
