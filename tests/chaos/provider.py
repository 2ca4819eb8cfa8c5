"""The far side: `python -m tests.chaos.provider PORT JOURNAL`, a provider that behaves as each request asks it to.

Raw HTTP over asyncio, because what it does badly (closing in the middle, pausing) has to be exact. Its journal says
which request arrived, and with which serial number and how far it was answered; the bytes follow from
`tests.chaos.answers`."""

import asyncio
import random
import re
import sys
import time
from pathlib import Path
from typing import cast

import orjson
import uvloop

from tests.chaos.answers import Behaviour, Plan, Reply, reply
from tests.chaos.journal import Journal

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REASONS = {200: "OK", 429: "Too Many Requests", 500: "Internal Server Error"}


class Connection(asyncio.Protocol):
    """One connection of a gateway; requests are answered in order, one at a time."""

    journal: Journal
    served = 0

    def __init__(self) -> None:
        self._received = b""
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        length = _LENGTH.search(self._received, 0, end + 2) if end >= 0 else None
        if length is None or len(self._received) < end + 4 + int(length[1]):
            return
        body, self._received = self._received[end + 4 :], b""
        self._task = asyncio.get_running_loop().create_task(self._serve(orjson.loads(body)))

    async def _serve(self, asked: dict[str, object]) -> None:
        metadata = cast(dict[str, str], asked["metadata"])
        options = cast(dict[str, bool], asked.get("stream_options") or {})
        with_usage = bool(options.get("include_usage"))
        plan = Plan(
            nonce=metadata["nonce"],
            behaviour=Behaviour(metadata["behaviour"]),
            stream=bool(asked.get("stream")),
            usage=False,  # which of the two asked cannot be seen from here
        )
        Connection.served += 1
        serial = f"chatcmpl-{Connection.served}-{plan.nonce}"
        self.journal.write(at=time.monotonic(), nonce=plan.nonce, serial=serial, with_usage=with_usage)
        sent_bytes, is_whole = 0, False
        try:
            chance = random.Random(serial)
            if plan.behaviour == Behaviour.SLOW:
                await asyncio.sleep(chance.uniform(0.05, 1.0))
            elif plan.behaviour == Behaviour.DIES_BEFORE:
                self._transport.close()
                return
            answer = reply(plan, serial, with_usage=with_usage)
            last = len(answer.pieces)
            if plan.behaviour == Behaviour.DIES_WITHIN:
                last = chance.randrange(1, last)
            self._transport.write(_head(answer, serial))
            for piece in answer.pieces[:last]:
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.is_stream else piece)
                sent_bytes += len(piece)
                if plan.behaviour == Behaviour.TRICKLE and sent_bytes < len(answer.whole):
                    await asyncio.sleep(chance.uniform(0.0, 0.2))
            is_whole = last == len(answer.pieces)
            if not is_whole:
                self._transport.close()
            elif answer.is_stream:
                self._transport.write(b"0\r\n\r\n")
        finally:
            self.journal.write(at=time.monotonic(), serial=serial, sent_bytes=sent_bytes, is_whole=is_whole)


def _head(answer: Reply, serial: str) -> bytes:
    length = "transfer-encoding: chunked" if answer.is_stream else f"content-length: {len(answer.whole)}"
    lines = [
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        f"content-type: {answer.content_type}",
        length,
    ]
    lines += [f"x-request-id: {serial}", *(["retry-after: 1"] if answer.status >= 400 else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    Connection.journal = Journal(Path(sys.argv[2]))
    uvloop.run(_serve(int(sys.argv[1])))
