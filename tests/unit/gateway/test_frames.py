"""WebSocket messages put together from frames, whatever way the bytes arrive."""

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.frames import BINARY, TEXT, MessageReader, Unreadable, readers


def frame(
    payload: bytes, opcode: int = TEXT, *, is_final: bool = True, mask: bytes = b"", rsv1: bool = False
) -> bytes:
    first = (0x80 if is_final else 0) | (0x40 if rsv1 else 0) | opcode
    flag = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head = bytes([first, flag | size])
    elif size < 1 << 16:
        head = bytes([first, flag | 126]) + size.to_bytes(2)
    else:
        head = bytes([first, flag | 127]) + size.to_bytes(8)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload
    return head + mask + masked


@given(
    payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    mask=st.sampled_from([b"", b"\x01\x02\x03\x04", b"\xff\x00\xff\x00"]),
    step=st.integers(1, 40),
)
def test_messages_come_out_as_they_went_in(payloads: list[bytes], mask: bytes, step: int) -> None:
    stream = b"".join(frame(payload, BINARY, mask=mask) for payload in payloads)
    reader = MessageReader()
    seen = [message for at in range(0, len(stream), step) for message in reader.feed(stream[at : at + step])]
    assert seen == [(BINARY, payload) for payload in payloads]


def test_a_message_in_fragments_with_a_ping_between_them() -> None:
    reader = MessageReader()
    stream = (
        frame(b"Grue", is_final=False)
        + frame(b"?", 0x9)
        + frame(b"sse", 0x0, is_final=False)
        + frame(b"!", 0x0)
    )
    assert reader.feed(stream) == [(TEXT, b"Gruesse!")]


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 200_000])
def test_every_spelling_of_a_length(size: int) -> None:
    payload = os.urandom(size)
    assert MessageReader().feed(frame(payload, BINARY, mask=b"abcd")) == [(BINARY, payload)]


@pytest.mark.parametrize("keeps_context", [True, False])
def test_compressed_messages_with_and_without_a_common_context(keeps_context: bool) -> None:
    said = b"permessage-deflate" + (b"" if keeps_context else b"; server_no_context_takeover")
    _, reader = readers([(b"Sec-WebSocket-Extensions", said)])
    packer = zlib.compressobj(wbits=-15)
    for number in range(3):
        if not keeps_context:
            packer = zlib.compressobj(wbits=-15)
        text = b"the same words each time " * 20 + b"%d" % number
        packed = packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)
        assert reader.feed(frame(packed.removesuffix(b"\x00\x00\xff\xff"), rsv1=True)) == [(TEXT, text)]


def test_what_cannot_be_read_says_so_rather_than_growing() -> None:
    with pytest.raises(Unreadable):
        MessageReader().feed(bytes([0x82, 127]) + (1 << 40).to_bytes(8))
    with pytest.raises(Unreadable):
        readers([(b"sec-websocket-extensions", b"permessage-deflate")])[0].feed(frame(b"\xff\xff", rsv1=True))
