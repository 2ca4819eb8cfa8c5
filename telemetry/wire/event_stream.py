"""Event streams as the HTML standard says (section 9.2), over bytes: the data of stored streams, and whole events
of a stream that arrives in pieces.

Knows nothing of what the data says."""

import re
from collections.abc import Iterator

DONE = re.compile(rb"[\r\n]data: ?\[DONE\](?=[\r\n])")
"""How OpenAI's chat and completion streams say that they are complete; for EndWatch."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
# Two line ends in a row. A CR counts when the next byte is here, because a LF may belong to it.
_EVENT_END = re.compile(
    rb"\n(?:\n|\r\n|\r(?=[^\n]))|\r(?:\r\n|\r(?=[^\n])|\n(?:\n|\r\n|\r(?=[^\n])))",
)
_MAX_EVENT_END_BYTES = 4
_BLANK_LINE = re.compile(rb"\n[\r\n]|\r\r")


def data(body: bytes) -> Iterator[bytes]:
    """The data of each finished event; comments and other fields are passed over, an unfinished event is
    dropped."""
    lines: list[bytes] = []
    for line in _LINE_END.split(body.removeprefix(_BYTE_ORDER_MARK)):
        if not line:
            if lines:
                yield b"\n".join(lines)
                lines = []
        elif line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))


class Splitter:
    """Cuts a stream into its events, line ends and comments and all. Joined, they are the stream again.

    Every byte is looked at once, whatever the size of an event and of the pieces."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._seen_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that are whole with this piece."""
        ends_at = piece.find(b"\n\n")
        if 0 <= ends_at == len(piece) - 2 and not self._held and b"\r" not in piece:
            return [piece]  # one event a piece: how providers write
        held = self._held
        held += piece
        start = 0
        scanned = self._seen_bytes
        events = []
        while found := _EVENT_END.search(held, scanned):
            scanned = found.end()
            events.append(bytes(held[start:scanned]))
            start = scanned
        del held[:start]
        self._seen_bytes = max(0, len(held) - _MAX_EVENT_END_BYTES + 1)
        return events

    def rest(self) -> bytes:
        """What is left of an event that did not end."""
        rest = bytes(self._held)
        self._held.clear()
        self._seen_bytes = 0
        return rest


class EndWatch:
    """Looks for the event that says that a stream is complete, in pieces fed in order.

    `mark` is a pattern of how its line begins, a line end before it, in at most MAX_MARK_BYTES. No data can forge
    it: a JSON text holds no line end inside a string."""

    MAX_MARK_BYTES = 80

    def __init__(self, mark: re.Pattern[bytes]) -> None:
        self._mark = mark
        self._tail = b"\n"
        self._is_marked = False
        self._is_over = False

    def feed(self, piece: bytes) -> bool:
        """Whether the marked event has ended, with this piece or before."""
        if self._is_over:
            return True
        window = self._tail + piece
        if not self._is_marked and (found := self._mark.search(window)):
            self._is_marked = True
            window = window[found.end() :]
        if self._is_marked:
            self._is_over = _BLANK_LINE.search(window) is not None
        self._tail = window[-self.MAX_MARK_BYTES :]
        return self._is_over
