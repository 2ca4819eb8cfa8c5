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


def decode(body: bytes, encoding: str) -> bytes:
    """The body without its content encoding; of a cut body as much as can be had. Raises Undecodable."""
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding == "zstd":
        return _unzstd(body)
    window = _WINDOWS.get(encoding)
    if window is None:
        raise Undecodable(f"the content encoding {encoding!r} is not known; use gzip, deflate, zstd or none")
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
        raise _too_large()
    return decoded


def _unzstd(body: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        with reader.stream_reader(body, read_across_frames=True) as stream:
            decoded = stream.read(MAX_DECODED_BYTES + 1)
    except zstandard.ZstdError:
        raise Undecodable("the body is not zstd, or refers back too far") from None
    if len(decoded) > MAX_DECODED_BYTES:
        raise _too_large()
    return decoded


def _too_large() -> Undecodable:
    return Undecodable(f"the body unfolds to more than {MAX_DECODED_BYTES} bytes")
