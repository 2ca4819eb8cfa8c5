"""Event streams as the HTML standard reads them, in one piece and in many."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.table import BY_NAME
from telemetry.wire import event_stream

lines = st.sampled_from(
    [
        "data: a",
        "data:b",
        "data:  c",
        "data",
        "data:",
        ": comment",
        "event: x",
        "id: 1",
        "retry: 1",
        "odd",
        "",
    ]
)
streams = st.lists(st.tuples(lines, st.sampled_from(["\n", "\r\n", "\r"])), max_size=14).map(
    lambda pairs: "".join(line + end for line, end in pairs).encode()
)


def standard(body: bytes) -> list[bytes]:
    """The standard's algorithm, word for word."""
    events = []
    buffer = b""
    *whole, _ = re.split(rb"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf"))
    for line in whole:
        field, _, value = line.partition(b":")
        if not line:
            if buffer:
                events.append(buffer.removesuffix(b"\n"))
            buffer = b""
        elif field == b"data":
            buffer += value.removeprefix(b" ") + b"\n"
    return events


@given(body=streams, has_mark=st.booleans())
def test_data_is_what_the_standard_says(body: bytes, has_mark: bool) -> None:
    body = (b"\xef\xbb\xbf" if has_mark else b"") + body
    assert list(event_stream.data(body)) == standard(body)


@given(body=streams, places=st.lists(st.integers(0, 200), max_size=10))
def test_events_are_cut_out_whole_however_the_pieces_fall(body: bytes, places: list[int]) -> None:
    splitter = event_stream.Splitter()
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    events = [event for start, end in pairwise(edges) for event in splitter.feed(body[start:end])]
    rest = splitter.rest()
    assert b"".join(events) + rest == body
    in_one_piece = event_stream.Splitter()
    assert events == in_one_piece.feed(body)
    for event in events:
        assert len(list(event_stream.data(event))) <= 1
    found = [data for event in events for data in event_stream.data(event)]
    assert found == list(event_stream.data(body))[: len(found)]
    assert splitter.rest() == b""


def test_an_event_larger_than_64_mib_in_small_pieces() -> None:
    # Looked at again with every piece, this would take an hour.
    splitter = event_stream.Splitter()
    watch = BY_NAME["chat"].watch_end()
    piece = b"x" * (16 << 10)
    assert splitter.feed(b"data: ") == []
    for _ in range((65 << 20) // len(piece)):
        assert splitter.feed(piece) == []
        assert not watch.feed(piece)
    [event] = splitter.feed(b"\r\n\r\n:")
    assert len(event) == 6 + (65 << 20) + 4
    [data] = event_stream.data(event)
    assert len(data) == 65 << 20


ENDS = [
    ("chat", b"data: [DONE]"),
    ("chat", b"data:[DONE]"),
    ("completions", b"data: [DONE]"),
    ("responses", b'event: response.completed\ndata: {"type":"response.completed","response":{"output":[]}}'),
    ("responses", b'event: response.incomplete\ndata: {"response":{}}'),
    ("responses", b'data: {"type": "response.failed", "response": {}}'),
    ("responses", b'event: error\ndata: {"type":"error"}'),
    ("messages", b'event: message_stop\ndata: {"type":"message_stop"}'),
    ("messages", b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}'),
]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(("name", "end"), ENDS)
def test_the_end_is_seen_with_its_event_and_not_before(name: str, end: bytes, newline: bytes) -> None:
    text = b'data: {"content":"data: [DONE]\\n\\nevent: error\\n\\ndata: {\\"type\\":\\"error\\"}"}\n\n'
    before = text.replace(b"\n", newline)
    stream = before + end.replace(b"\n", newline) + newline * 2
    for size in (1, 7, len(stream)):
        watch = BY_NAME[name].watch_end()
        seen = [watch.feed(stream[start : start + size]) for start in range(0, len(stream), size)]
        assert seen[-1]
        if size == 1:
            assert not any(seen[: len(stream) - len(newline)])
        assert watch.feed(b"")


@pytest.mark.parametrize(("name", "end"), ENDS)
def test_a_stream_that_only_begins_to_end_has_not(name: str, end: bytes) -> None:
    watch = BY_NAME[name].watch_end()
    assert not watch.feed(b": hi\n\n" + end)
    assert not watch.feed(b"\n")
    assert watch.feed(b"\n")
