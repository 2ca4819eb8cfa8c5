"""The load generator: sends one request again and again to one port and says how long the answers took.

`python -m tests.benchmarks.load` reads a plan as JSON on standard input and prints what came of it as JSON. In a
closed loop a connection sends its next request when it has the answer to the last one. In an open loop requests
are due at a constant rate, however slow the answers are, and a latency counts from when the request was due: a
gateway that stalls cannot hide the wait of the requests behind the stall (wrk's closed loop guesses at them and
adds its guesses to the percentiles, so it does not serve here).

One thread over epoll, no more of HTTP than a benchmark needs; it costs about as much as the mock upstream. Knows
the mock's answers and checks them; starts no process."""

import json
import math
import re
import select
import socket
import sys
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import mock_upstream

DRAIN_S = 3.0
"""How long answers may still arrive after the last request was due."""
SAMPLE_EVERY = 100
"""Every so many answers, one is read whole; the others are looked at for their end only."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send where, how fast and for how long."""

    port: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    connections: int
    seconds: float = math.inf
    """Measured time, after the warm-up."""
    warm_up_s: float = 0.0
    rate: float = 0.0
    """Requests per second of an open loop; 0 for a closed one."""
    requests: int = sys.maxsize
    """Stop after so many, if that comes first."""
    status: int = 200
    """Of a right answer; only the bodies of those with 200 are the mock's, and looked into."""

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))

    def wire(self) -> bytes:
        """The request as it leaves."""
        body = json.dumps(self.body).encode()
        headers = {
            "host": f"127.0.0.1:{self.port}",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **self.headers,
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(kw_only=True)
class Outcome:
    """What came of a plan. Latencies are in milliseconds; one without an answer counts as what it waited."""

    sent: int = 0
    """Requests that left, warm-up included."""
    answered: int = 0
    """Answers that arrived within the measured time."""
    unanswered: int = 0
    """Requests that were due and had no answer when the drain was over."""
    errors: int = 0
    first_error: str = ""
    sampled: int = 0
    sampled_exact: int = 0
    """Of the sampled, those whose body was the upstream's, byte for byte."""
    events: int = 0
    """Server-sent events of all streams."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Processor time of the load generator itself."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    first_byte_p50_ms: float = 0.0
    first_byte_p99_ms: float = 0.0

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values in ascending order: the least that `share` of them do not pass."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Arrivals:
    """When requests are due. An open loop's times are fixed beforehand, and none is left out."""

    def __init__(self, *, begin: float, end: float, rate: float, requests: int) -> None:
        self.taken = 0
        self._begin, self._end, self._rate, self._requests = begin, end, rate, requests

    def next_due(self, now: float) -> float | None:
        """When the next request is due, perhaps long ago; None when there is none any more."""
        due = self._begin + self.taken / self._rate if self._rate else max(now, self._begin)
        return due if due < self._end and self.taken < self._requests else None

    def take(self, now: float) -> float | None:
        """The due time of one request that is due by `now`, or None."""
        due = self.next_due(now)
        if due is None or due > now:
            return None
        self.taken += 1
        return due


def unchunk(body: bytes) -> bytes:
    """The content of a chunked body. Raises ValueError where it is none."""
    pieces: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def text_of(body: bytes, *, is_stream: bool) -> str:
    """What the model said, from a whole answer or from a stream that ended as it should. Raises ValueError."""
    if not is_stream:
        answer = json.loads(body)
        if answer["usage"]["total_tokens"] != mock_upstream.USAGE["total_tokens"]:
            raise ValueError(f"usage is {answer['usage']}")
        return str(answer["choices"][0]["message"]["content"])
    events = [line[5:].strip() for line in body.replace(b"\r\n", b"\n").split(b"\n") if line[:5] == b"data:"]
    if not events or events[-1] != b"[DONE]":
        raise ValueError("the stream has no [DONE] at its end")
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


class _Connection:
    """One socket and the answer that it is waiting for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.is_measured = False
        self.first_byte_at = 0.0
        self.head = b""
        self.body = b""
        self._pieces: list[bytes] = []
        self._missing = 0
        """Bytes of the body to come; -1 when it is chunked."""

    def send(self, request: bytes, due: float) -> None:
        self.due, self.first_byte_at, self.head, self._pieces = due, 0.0, b"", []
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Take what has arrived; True when the answer is whole. Raises ConnectionError when it is cut."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the connection was closed")
        if not self.head:
            self._pieces.append(data)
            data = b"".join(self._pieces)
            self.head, is_complete, data = data.partition(b"\r\n\r\n")
            if not is_complete:
                self._pieces, self.head = [self.head], b""
                return False
            length = _LENGTH.search(self.head)
            self._missing = int(length[1]) if length else -1
            self._pieces = []
        if data:
            if not self.first_byte_at:
                self.first_byte_at = time.perf_counter()
            self._pieces.append(data)
        if self._missing >= 0:
            self._missing -= len(data)
            is_whole = self._missing <= 0
        else:
            # The last chunk may come alone, split over reads, or with what came before.
            tail = data if len(data) >= 7 else b"".join(self._pieces[-7:])
            is_whole = tail.endswith(b"\r\n0\r\n\r\n") or tail == b"0\r\n\r\n"
        if is_whole:
            self.body = b"".join(self._pieces)
        return is_whole


@dataclass
class _Run:
    """A plan under way."""

    plan: Plan
    outcome: Outcome = field(default_factory=Outcome)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    first_bytes: "array[float]" = field(default_factory=lambda: array("d"))

    def __post_init__(self) -> None:
        self._request = self.plan.wire()
        self._expected = b"".join(mock_upstream.answer_to(self._request))
        self._received = 0
        self._epoll = select.epoll()
        self._by_number: dict[int, _Connection] = {}
        # First in, first out: every connection is used in turn, so that none is closed for being idle.
        self._idle: deque[_Connection] = deque()
        for _ in range(self.plan.connections):
            self._connect()
        self._begin = time.perf_counter() + self.plan.warm_up_s
        self._end = self._begin + self.plan.seconds
        self._arrivals = Arrivals(
            begin=self._begin - self.plan.warm_up_s,
            end=self._end,
            rate=self.plan.rate,
            requests=self.plan.requests,
        )

    def finish(self) -> Outcome:
        """Send everything, wait for the answers, add up."""
        while True:
            while self._idle and (due := self._arrivals.take(time.perf_counter())) is not None:
                self._send(self._idle.popleft(), due)
            now = time.perf_counter()
            due = self._arrivals.next_due(now)
            if now > self._end + DRAIN_S or (due is None and len(self._idle) == len(self._by_number)):
                break
            self._receive(self._wait_s(due, now))
        self._count_unanswered(min(now, self._end + DRAIN_S))
        self.outcome.seconds = self.plan.seconds if self.plan.rate else min(now, self._end) - self._begin
        self._summarise()
        for connection in self._by_number.values():
            connection.socket.close()
        self._epoll.close()
        return self.outcome

    def _wait_s(self, due: float | None, now: float) -> float:
        """How long only answers can happen: until the next request is due, if a connection is free for it."""
        if due is not None and self._idle:
            return max(0.0, due - now)
        return max(0.0, self._end + DRAIN_S - now)

    def _connect(self) -> None:
        connection = _Connection(self.plan.port)
        self._by_number[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLIN)
        self._idle.append(connection)

    def _send(self, connection: _Connection, due: float) -> None:
        self.outcome.sent += 1
        connection.is_measured = due >= self._begin
        try:
            connection.send(self._request, due)
        except OSError as error:
            self._fail(connection, str(error))

    def _receive(self, wait_s: float) -> None:
        if self.plan.rate and wait_s < 0.5:
            # epoll counts in milliseconds; select waits for the epoll itself, and counts in microseconds.
            select.select([self._epoll], [], [], wait_s)
            wait_s = 0.0
        for number, _ in self._epoll.poll(min(wait_s, 0.5)):
            connection = self._by_number[number]
            try:
                is_whole = connection.receive()
            except OSError as error:
                self._fail(connection, str(error))
            else:
                if is_whole:
                    self._record(connection, time.perf_counter())
                    self._idle.append(connection)

    def _record(self, connection: _Connection, now: float) -> None:
        outcome = self.outcome
        if connection.is_measured:
            self.latencies.append(now - connection.due)
            self.first_bytes.append(connection.first_byte_at - connection.due)
            outcome.answered += now < self._end
        problem = self._problem(connection)
        if problem:
            outcome.errors += 1
            outcome.first_error = outcome.first_error or problem

    def _problem(self, connection: _Connection) -> str:
        """What is wrong with this answer; mostly by its status and its end, for a sample by all of it."""
        head, body, is_stream = connection.head, connection.body, self.plan.is_stream
        is_right = head.startswith(b"HTTP/1.1 %d " % self.plan.status)
        if not is_right or (is_stream and b"[DONE]" not in body[-40:]):
            return f"{head[:40]!r} {body[:200]!r}"
        if self.plan.status != 200:
            return ""
        if is_stream:
            self.outcome.events += body.count(b"data:")
        self._received += 1
        if self._received % SAMPLE_EVERY != 1:
            return ""
        self.outcome.sampled += 1
        try:
            content = body if _LENGTH.search(head) else unchunk(body)
            said = text_of(content, is_stream=is_stream)
        except (ValueError, LookupError, TypeError) as error:
            return f"an answer that cannot be read ({error}): {body[:200]!r}"
        self.outcome.sampled_exact += content == self._expected
        is_same = said == text_of(self._expected, is_stream=is_stream)
        return "" if is_same else f"not what the model said: {said[:200]!r}"

    def _fail(self, connection: _Connection, reason: str) -> None:
        """A connection that broke. Only one that was waiting for an answer is an error: idle ones may be closed."""
        was_waiting = connection not in self._idle
        if was_waiting:
            self.outcome.errors += 1
            self.outcome.first_error = self.outcome.first_error or reason
        else:
            self._idle.remove(connection)
        del self._by_number[connection.socket.fileno()]
        self._epoll.unregister(connection.socket)
        connection.socket.close()
        self._connect()

    def _count_unanswered(self, now: float) -> None:
        waiting = [c.due for c in self._by_number.values() if c not in self._idle and c.is_measured]
        if self.plan.rate:
            while (due := self._arrivals.take(now)) is not None:
                waiting.append(due)
        elif waiting:  # an open loop may ask for more than a gateway can; a closed one waits for each answer
            self.outcome.errors += len(waiting)
            self.outcome.first_error = self.outcome.first_error or f"no answer within {DRAIN_S:g} s"
        self.outcome.unanswered = len(waiting)
        self.latencies.extend(now - due for due in waiting)
        self.first_bytes.extend(now - due for due in waiting)

    def _summarise(self) -> None:
        outcome = self.outcome
        outcome.cpu_s = time.process_time()
        if self.latencies:
            latencies, first_bytes = sorted(self.latencies), sorted(self.first_bytes)
            outcome.p50_ms, outcome.p99_ms = (1000 * percentile(latencies, s) for s in (0.5, 0.99))
            outcome.first_byte_p50_ms = 1000 * percentile(first_bytes, 0.5)
            outcome.first_byte_p99_ms = 1000 * percentile(first_bytes, 0.99)


def run(plan: Plan) -> Outcome:
    """Carry out `plan`. Raises OSError when nobody listens."""
    # The kernel may let a sleep end 50 microseconds late; that would count as the gateway's latency.
    Path("/proc/self/timerslack_ns").write_text("1")
    return _Run(plan).finish()


if __name__ == "__main__":
    print(json.dumps(asdict(run(Plan(**json.load(sys.stdin))))))
