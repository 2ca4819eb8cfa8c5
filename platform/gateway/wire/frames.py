"""WebSocket messages, read from a copy of the bytes (RFC 6455 section 5, RFC 7692 for permessage-deflate).

Reads one direction of one connection. Sends nothing and answers nothing: the two ends do that themselves."""

import struct
import zlib

from gateway.wire.exchange import Header

MAX_MESSAGE_BYTES = 64 << 20
"""A longer message is passed over; the relay itself has no limit."""

_CONTINUATION = 0x0
TEXT = 0x1
BINARY = 0x2
_END_OF_BLOCK = b"\x00\x00\xff\xff"


class Unreadable(ValueError):
    """The bytes are no WebSocket frames: nothing more can be read of this direction."""


class MessageReader:
    """Puts the frames of one direction together."""

    def __init__(self, *, is_deflated: bool = False, keeps_context: bool = True) -> None:
        self._received = bytearray()
        self._pieces: list[bytes] = []
        self._size = 0
        self._opcode = _CONTINUATION
        self._is_compressed = False
        self._is_deflated = is_deflated
        self._keeps_context = keeps_context
        self._inflate = zlib.decompressobj(-15)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The messages that are whole with these bytes: opcode and payload, data messages only. Raises
        Unreadable."""
        self._received += data
        messages = []
        while (frame := self._next_frame()) is not None:
            is_final, is_compressed, opcode, payload = frame
            if opcode >= 0x8:  # close, ping, pong: may stand between the frames of a message
                continue
            if opcode != _CONTINUATION:
                self._opcode, self._is_compressed = opcode, is_compressed
                self._pieces, self._size = [], 0
            self._size += len(payload)
            if self._size <= MAX_MESSAGE_BYTES:
                self._pieces.append(payload)
            if is_final:
                message = self._whole()
                if message is not None:
                    messages.append((self._opcode, message))
                self._pieces, self._size = [], 0
        return messages

    def _next_frame(self) -> tuple[bool, bool, int, bytes] | None:
        received = self._received
        if len(received) < 2:
            return None
        first, second = received[0], received[1]
        length, start = second & 0x7F, 2
        if length == 126:
            if len(received) < 4:
                return None
            (length,), start = struct.unpack_from(">H", received, 2), 4
        elif length == 127:
            if len(received) < 10:
                return None
            (length,), start = struct.unpack_from(">Q", received, 2), 10
        is_masked = bool(second & 0x80)
        mask = bytes(received[start : start + 4]) if is_masked else b""
        start += 4 if is_masked else 0
        if length > MAX_MESSAGE_BYTES:
            raise Unreadable(f"a frame of {length} bytes")
        if len(received) < start + length:
            return None
        payload = bytes(received[start : start + length])
        del received[: start + length]
        return bool(first & 0x80), bool(first & 0x40), first & 0x0F, _unmasked(payload, mask)

    def _whole(self) -> bytes | None:
        payload = b"".join(self._pieces)
        if self._is_compressed and self._is_deflated:
            try:
                inflated = self._inflate.decompress(payload + _END_OF_BLOCK, MAX_MESSAGE_BYTES)
            except zlib.error as error:
                raise Unreadable("a message that is not deflated") from error
            if self._inflate.unconsumed_tail:
                raise Unreadable("a message that unfolds too far")
            if not self._keeps_context:
                self._inflate = zlib.decompressobj(-15)
            return inflated
        return payload if self._size <= MAX_MESSAGE_BYTES else None


def readers(answer_headers: list[Header]) -> tuple[MessageReader, MessageReader]:
    """For what the client and for what the server sends, as the server's answer has settled it."""
    said = b",".join(v for name, v in answer_headers if name.lower() == b"sec-websocket-extensions").lower()
    is_deflated = b"permessage-deflate" in said
    return (
        MessageReader(is_deflated=is_deflated, keeps_context=b"client_no_context_takeover" not in said),
        MessageReader(is_deflated=is_deflated, keeps_context=b"server_no_context_takeover" not in said),
    )


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    if not mask or not payload:
        return payload
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)
