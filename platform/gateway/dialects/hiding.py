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

from gateway.splice import Edit, Member, edited, members, removals
from telemetry.wire.event_stream import Splitter

USAGE, TOKEN_IDS, LOGPROBS = "usage", "token_ids", "logprobs"
_PLACES = {
    USAGE: {(1, "usage")},
    TOKEN_IDS: {(1, "prompt_token_ids"), (3, "token_ids")},
    LOGPROBS: {(3, "logprobs")},
}
_DATA = re.compile(rb"(?:\A|[\r\n])data: ?(?=\{)")
_NO_CHOICES = re.compile(rb"\[[ \t]*\]")


class _Cutter:
    """Cuts the hidden members out of one JSON object."""

    def __init__(self, hidden: Collection[str]) -> None:
        self._places = {place for name in hidden for place in _PLACES[name]}
        self._names = {name for _, name in self._places}
        self._depths = {depth for depth, _ in self._places}
        # A key holds these bytes, quotes and all, unless it is spelled with escapes, which no server does. Where they
        # turn up in text instead, the object is looked at for nothing.
        self._marks = [b'"%s"' % name.encode() for name in self._names]
        self._hides_usage = USAGE in hidden

    def may_concern(self, json: bytes) -> bool:
        return any(mark in json for mark in self._marks)

    def cut(self, json: bytes, start: int = 0) -> bytes | None:
        """The bytes without the hidden members of the object at `start`; None when the whole object was for the
        gateway."""
        found = members(json, {*self._names, "choices"}, depths={1, *self._depths}, start=start)
        hidden = [member for member in found if self._is_hidden(member)]
        if self._hides_usage and _is_usage_only(json, found):
            return None
        logprobs = [member for member in hidden if member.name == "logprobs"]
        gone = removals(json, [member for member in hidden if member.name != "logprobs"])
        nulls = [Edit(member.value_start, member.value_end, b"null") for member in logprobs]
        return edited(json, sorted([*gone, *nulls], key=lambda edit: edit.start))

    def _is_hidden(self, member: Member) -> bool:
        return (member.depth, member.name) in self._places and (
            member.depth == 1 or member.within == "choices"
        )


class StreamHiding:
    """For an event stream, in pieces of any size. An event is held back until it is whole."""

    def __init__(self, hidden: Collection[str]) -> None:
        self._cutter = _Cutter(hidden)
        self._splitter = Splitter()

    def feed(self, piece: bytes) -> bytes:
        return b"".join([self._shown(event) for event in self._splitter.feed(piece)])

    def finish(self) -> bytes:
        return self._shown(self._splitter.rest())

    def _shown(self, event: bytes) -> bytes:
        if not self._cutter.may_concern(event):
            return event
        data = _DATA.findall(event)
        found = _DATA.search(event)
        if found is None or len(data) > 1:  # no JSON, or spread over lines, as no server sends it
            return event
        shown = self._cutter.cut(event, found.end())
        if shown is None:
            return b"".join(line for line in event.splitlines(keepends=True) if line.startswith(b":"))
        return shown


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
        return (self._cutter.cut(body) if self._cutter.may_concern(body) else None) or body


def _is_usage_only(json: bytes, found: list[Member]) -> bool:
    """Whether an event tells the usage and nothing else."""
    values = {
        member.name: json[member.value_start : member.value_end] for member in found if member.depth == 1
    }
    return values.get("usage", b"null") != b"null" and bool(_NO_CHOICES.fullmatch(values.get("choices", b"")))
