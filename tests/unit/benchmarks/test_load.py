"""The load generator's arithmetic, and that it believes no answer it should not believe."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from tests.benchmarks import load, mock_upstream
from tests.benchmarks.load import Arrivals, Plan, percentile, run, text_of, unchunk

SAID = "Your order 4817 left our depot this morning."


@contextmanager
def upstream(pieces: Sequence[bytes]) -> Iterator[int]:
    """A port that answers every request with these pieces, each in a packet of its own; with none, never."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=_accept, args=(server, pieces))
        accepting.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes the thread
            accepting.join()


def _accept(server: socket.socket, pieces: Sequence[bytes]) -> None:
    silent = []
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if pieces:
                threading.Thread(target=_answer, args=(connection, pieces), daemon=True).start()
            else:
                silent.append(connection)
    for connection in silent:
        connection.close()


def _answer(connection: socket.socket, pieces: Sequence[bytes]) -> None:
    with connection:
        while connection.recv(65536):
            for piece in pieces:
                connection.sendall(piece)


def plan(port: int, **changes: object) -> Plan:
    told = {"path": "/", "headers": {}, "body": {"stream": True}, "connections": 1, "requests": 1, **changes}
    return Plan(port=port, **told)  # type: ignore[arg-type]


def stream_of(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


RIGHT = stream_of(chunked(*mock_upstream.answer_to(b'{"stream": true}')))


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        ([1, 2, 3, 4], 0.5, 2),
        (range(1, 101), 0.99, 99),
        (range(1, 102), 0.99, 100),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(
    values: Sequence[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == expected


def test_an_open_loop_leaves_no_request_out_when_it_falls_behind() -> None:
    """Nothing could be sent for half a second: what was due then is still due, as of when it was."""
    arrivals = Arrivals(begin=100.0, end=101.0, rate=10.0, requests=1000)
    assert arrivals.take(99.9) is None
    assert arrivals.take(100.0) == 100.0
    assert arrivals.take(100.05) is None
    late = [arrivals.take(100.55) for _ in range(6)]
    assert late == pytest.approx([100.1, 100.2, 100.3, 100.4, 100.5, None])
    assert [arrivals.take(200.0) is None for _ in range(5)] == [False, False, False, False, True]
    assert arrivals.taken == 10


def test_a_closed_loop_sends_when_it_may_until_the_end_or_the_count() -> None:
    arrivals = Arrivals(begin=100.0, end=101.0, rate=0.0, requests=2)
    assert [arrivals.take(at) for at in (99.0, 100.2, 100.7, 100.8)] == [None, 100.2, 100.7, None]
    assert Arrivals(begin=100.0, end=101.0, rate=0.0, requests=2).take(101.0) is None


def test_requests_that_wait_behind_a_stall_count_with_what_they_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "DRAIN_S", 0.1)
    with upstream([]) as port:
        outcome = run(plan(port, rate=100.0, seconds=0.2, requests=1000))
    assert outcome.sent == 1
    assert outcome.answered == 0
    assert outcome.unanswered == 20
    # Due over 0.2 s, and waited for 0.1 s after it: the middle one for 0.2 s or more.
    assert outcome.p50_ms >= 190
    assert outcome.p99_ms >= 290


def test_a_request_of_a_closed_loop_without_an_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "DRAIN_S", 0.1)
    with upstream([]) as port:
        outcome = run(plan(port, seconds=0.1, connections=2, requests=1000))
    assert (outcome.sent, outcome.answered, outcome.errors) == (2, 0, 2)
    assert outcome.first_error == "no answer within 0.1 s"


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_stream_is_whole_however_it_was_cut(size: int) -> None:
    with upstream([RIGHT[at : at + size] for at in range(0, len(RIGHT), size)]) as port:
        outcome = run(plan(port, requests=3, connections=2))
    assert (outcome.sent, outcome.errors, outcome.first_error) == (3, 0, "")
    assert outcome.events == 3 * 12
    assert outcome.sampled == outcome.sampled_exact == 1


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno", "500 Oh"),
        (stream_of(chunked(mock_upstream.CHUNKS[0])), "assistant"),
        (stream_of(chunked(*mock_upstream.CHUNKS[1:-2], mock_upstream.DONE)), "not what the model said"),
        (stream_of(chunked(b"data: {}\n\n", mock_upstream.DONE)), "cannot be read"),
    ],
)
def test_a_wrong_answer_is_an_error(answer: bytes, problem: str) -> None:
    with upstream([answer]) as port:
        outcome = run(plan(port))
    assert outcome.errors == 1
    assert problem in outcome.first_error


def test_an_answer_with_other_bytes_is_right_and_not_exact() -> None:
    answer = mock_upstream.ANSWER.replace(b'"refusal": null', b'"refusal":null')
    with upstream([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer]) as port:
        outcome = run(plan(port, body={}))
    assert (outcome.errors, outcome.sampled, outcome.sampled_exact) == (0, 1, 0)


def test_text_is_read_from_both_forms() -> None:
    assert text_of(mock_upstream.ANSWER, is_stream=False) == SAID
    pieces = mock_upstream.answer_to(b'{"stream":true, "stream_options": {"include_usage": true}}')
    assert text_of(unchunk(chunked(*pieces)), is_stream=True) == SAID
    with pytest.raises(ValueError, match="DONE"):
        text_of(b"".join(pieces[:-1]), is_stream=True)
    with pytest.raises(ValueError, match="usage"):
        text_of(mock_upstream.ANSWER.replace(b": 30", b": 31"), is_stream=False)
