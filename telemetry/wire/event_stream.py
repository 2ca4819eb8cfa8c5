"""Event streams as the HTML standard says (section 9.2), over bytes: the data of stored streams, and whole events
of a stream that arrives in pieces.

Knows nothing of what the data says."""

import re
from collections.abc import Iterator

DONE = re.compile(rb"data: ?\[DONE\](?=[\r\n])")
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
    body = body.removeprefix(_BYTE_ORDER_MARK)
    if b"\r" in body:
        yield from _data_of_lines(body)
        return
    *events, _ = body.split(b"\n\n")
    for event in events:
        if event.startswith(b"data: ") and b"\n" not in event:
            yield event[6:]  # how providers write
        else:
            yield from _data_of_lines(event + b"\n\n")


def _data_of_lines(body: bytes) -> Iterator[bytes]:
    lines: list[bytes] = []
    *whole, _ = _LINE_END.split(body)
    for line in whole:
        if not line:
            if lines:
                yield b"\n".join(lines)
                lines = []
        elif line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif line == b"data":
            lines.append(b"")


class Splitter:
    """Cuts a stream into its events, line ends and comments and all. Joined, they are the stream again.

    Every byte is looked at once, whatever the size of an event and of the pieces."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._seen_bytes = 0
        self._has_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that are whole with this piece."""
        self._has_cr = self._has_cr or b"\r" in piece
        if not self._held and not self._has_cr and 0 <= piece.find(b"\n\n") == len(piece) - 2:
            return [piece]  # one event a piece: how providers write
        self._held += piece
        events = []
        start = 0
        scanned = self._seen_bytes
        while (end := self._event_end(scanned)) >= 0:
            events.append(bytes(self._held[start:end]))
            start = scanned = end
        del self._held[:start]
        self._seen_bytes = max(0, len(self._held) - _MAX_EVENT_END_BYTES + 1)
        return events

    @property
    def is_between_events(self) -> bool:
        """Whether nothing is held of an event that has begun; never after a CR, whose LF may still come."""
        return not self._held and not self._has_cr

    def _event_end(self, start: int) -> int:
        """Behind the first event that ends after `start`; -1 when none does yet."""
        if not self._has_cr:  # nearly always, and much faster
            found_at = self._held.find(b"\n\n", start)
            return found_at + 2 if found_at >= 0 else -1
        found = _EVENT_END.search(self._held, start)
        return found.end() if found else -1

    def rest(self) -> bytes:
        """What is left of an event that did not end."""
        rest = bytes(self._held)
        self._held.clear()
        self._seen_bytes = 0
        return rest


class EndWatch:
    """Looks for the event that says that a stream is complete, in pieces fed in order.

    `mark` is how one of its lines begins, in at most MAX_MARK_BYTES. No data can forge it: a JSON text holds no line
    end inside a string."""

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
        if not self._is_marked:
            marks = (self._mark.match(window, start) for start in _line_starts(window))
            if found := next(filter(None, marks), None):
                self._is_marked = True
                window = window[found.end() :]
        if self._is_marked:
            self._is_over = _BLANK_LINE.search(window) is not None
        self._tail = window[-self.MAX_MARK_BYTES :]
        return self._is_over


def _line_starts(window: bytes) -> Iterator[int]:
    for line_end in (b"\n", b"\r"):
        found_at = window.find(line_end)
        while found_at >= 0:
            yield found_at + 1
            found_at = window.find(line_end, found_at + 1)
