"""Takes out of chat and completion answers what only the gateway asked for: usage, token ids, logprobs.

What is left is byte for byte what the client would have seen: nothing is parsed and written again, members are cut
out where they stand. A question of the gateway's own is answered in members that have fixed places: `usage` and
`prompt_token_ids` of the outermost object, `logprobs` and `token_ids` of a choice.

Usage is hidden as OpenAI sends it (https://platform.openai.com/docs/api-reference/chat-streaming): the one event with
usage and without choices goes, and so does the `"usage":null` that all other events then carry. Where a server puts its
usage on an event with choices, the member goes and the event stays. A server that sends usage unasked need not be
asked: its upstream's `asks_usage` is off, and then nothing is hidden."""

import re
from collections.abc import Collection

from gateway.splice import Edit, Malformed, edited, find, removals
from telemetry.wire.event_stream import Splitter

USAGE, TOKEN_IDS, LOGPROBS = "usage", "token_ids", "logprobs"
_PLACES = {
    USAGE: [("usage", 1)],
    TOKEN_IDS: [("prompt_token_ids", 1), ("token_ids", 3)],
    LOGPROBS: [("logprobs", 3)],
}
"""Members and how deep they stand: a choice is an object in a list of the outermost object."""
_DATA = re.compile(rb"(?:\A|[\r\n])data: ?(?=\{)")
_LINE_END = re.compile(rb"[\r\n]")
_WHOLE_EVENTS = b"\n\n"
_NULL_AT_THE_END = b',"usage":null}\n\n'
"""As OpenAI spells it. Whatever stands before a blank line ends its event's outermost object, and inside a JSON string
no quote stands without a backslash: found as bytes, it is that member and nothing else."""
_NOTHING = re.compile(rb"\[[ \t]*\]")


class _Cutter:
    """Cuts the hidden members out of one JSON object."""

    def __init__(self, hidden: Collection[str]) -> None:
        self._hides_usage = USAGE in hidden
        self._places = [
            (name, depth, b'"%s"' % name.encode()) for kind in hidden for name, depth in _PLACES[kind]
        ]

    def concerns(self, event: bytes) -> bool:
        """Whether a hidden member may stand in the event; an escape in its key would go unseen, and no server writes
        one."""
        return any(quoted in event for _, _, quoted in self._places)

    def cut(self, body: bytes, start: int, end: int) -> bytes | None:
        """The bytes, and in them the object at `body[start:end]` without its hidden members; None when the whole
        object was for the gateway. What is not JSON stays as it is."""
        try:
            return self._cut(body, start, end)
        except Malformed:
            return body

    def _cut(self, body: bytes, start: int, end: int) -> bytes | None:
        gone, nulls = [], []
        for name, depth, quoted in self._places:
            if quoted not in body:
                continue
            found = find(body, name, depth=depth, start=start, end=end)
            if name == "logprobs":
                nulls += [Edit(member.value_start, member.value_end, b"null") for member in found]
                continue
            gone += found
            if name == "usage" and any(
                _tells_only_usage(body, member.value_start, start, end) for member in found
            ):
                return None
        return edited(body, sorted([*removals(body, sorted(gone)), *nulls]))


class StreamHiding:
    """For an event stream, in pieces of any size. An event is held back until it is whole."""

    def __init__(self, hidden: Collection[str]) -> None:
        self._cutter = _Cutter(hidden)
        self._splitter = Splitter()
        self._hides_usage_alone = tuple(hidden) == (USAGE,)

    def feed(self, piece: bytes) -> bytes:
        if self._hides_usage_alone and self._splitter.is_between_events and piece.endswith(_WHOLE_EVENTS):
            # How providers write, and much faster than to look into every event.
            if b"\r" not in piece:
                piece = piece.replace(_NULL_AT_THE_END, b"}\n\n")
            if not self._cutter.concerns(piece):
                return piece
        events = self._splitter.feed(piece)
        return b"".join([self._shown(event) if self._cutter.concerns(event) else event for event in events])

    def finish(self) -> bytes:
        return self._splitter.rest()

    def _shown(self, event: bytes) -> bytes:
        data = _DATA.search(event)
        if data is None:
            return event
        line_end = _LINE_END.search(event, data.end())
        assert line_end is not None  # an event ends in two of them
        if event.find(b"data:", line_end.end()) >= 0:  # spread over lines, as no server sends JSON
            return event
        shown = self._cutter.cut(event, data.end(), line_end.start())
        return _comments(event) if shown is None else shown


class DocumentHiding:
    """For an answer in JSON: it is held back until it is whole."""

    def __init__(self, hidden: Collection[str]) -> None:
        self._cutter = _Cutter(hidden)
        self._pieces: list[bytes] = []

    def feed(self, piece: bytes) -> bytes:
        self._pieces.append(piece)
        return b""

    def finish(self) -> bytes:
        body = b"".join(self._pieces)
        return self._cutter.cut(body, 0, len(body)) or body


def _tells_only_usage(body: bytes, usage_start: int, start: int, end: int) -> bool:
    """Whether an event has usage and no choices."""
    if body.startswith(b"null", usage_start):
        return False
    choices = find(body, "choices", start=start, end=end)
    return any(_NOTHING.fullmatch(body, member.value_start, member.value_end) for member in choices)


def _comments(event: bytes) -> bytes:
    return b"".join(line for line in event.splitlines(keepends=True) if line.startswith(b":"))
