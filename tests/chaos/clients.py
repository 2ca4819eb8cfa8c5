"""The near side: `python -m tests.chaos.clients SETTINGS JOURNAL`, many clients of two gateways until SIGTERM.

Each client holds conversations as an agent does, resends the history with every turn, tries again as an SDK does
(a new request, `x-stainless-retry-count`), and is at times slow, impatient or gone in the middle. Its journal says
of every request on the wire what was sent and what came back; nothing is judged here."""

import asyncio
import contextlib
import hashlib
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import uvloop

from tests.chaos.answers import Behaviour, Plan
from tests.chaos.exchange import Connection, Manners, Received, Result, post
from tests.chaos.journal import Journal

MAX_TRIES = 40
FEEDBACK_SHARE = 0.1
MAX_TURNS = 6
SYSTEM_PROMPT = (
    "You are the support desk of a lamp shop. " + "Be brief, be kind, and look the order up first. " * 20
)
WEIGHTS = {
    Behaviour.FAST: 64.0,
    Behaviour.SLOW: 12.0,
    Behaviour.TRICKLE: 8.0,
    Behaviour.LARGE: 1.5,
    Behaviour.RATE_LIMITED: 3.0,
    Behaviour.FAILING: 3.0,
    Behaviour.DIES_BEFORE: 3.0,
    Behaviour.DIES_WITHIN: 5.5,
}
_TRIED_AGAIN = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the process is told."""

    ports: list[int]
    """Of the gateways."""
    api_key: str
    seed: int
    clients: int
    think_s: float
    """The longest pause between two requests of a client."""

    def write(self, path: Path) -> None:
        path.write_bytes(orjson.dumps(asdict(self)))


class Client:
    """One client, with a connection to each gateway."""

    def __init__(self, name: str, settings: Settings, journal: Journal, is_over: Callable[[], bool]) -> None:
        self._name = name
        self._settings = settings
        self._journal = journal
        self._is_over = is_over
        self._chance = random.Random(f"{settings.seed}:{name}")
        self._connections = [Connection(port) for port in settings.ports]
        self._requests = 0

    async def live(self) -> None:
        """Hold one conversation after the other until it is over."""
        while not self._is_over():
            messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM_PROMPT}]
            for _ in range(self._chance.randint(1, MAX_TURNS)):
                if self._is_over():
                    break
                messages.append(
                    {"role": "user", "content": f"turn {len(messages)} of {self._name}-{self._requests}"}
                )
                answer = await self._turn(messages)
                if answer is None:
                    break
                messages.append({"role": "assistant", "content": answer})
                await asyncio.sleep(self._chance.uniform(0.0, self._settings.think_s))
        for connection in self._connections:
            connection.close()

    async def _turn(self, messages: list[dict[str, str]]) -> str | None:
        """Ask until there is an answer; its text, or None when the client gave up or went away."""
        for tries in range(MAX_TRIES):
            plan = self._plan(is_retry=tries > 0)
            received = await self._ask(plan, messages, tries)
            if received.result == Result.WHOLE and received.status == 200:
                call_id = received.headers.get("x-ratchet-call-id", "")
                if self._chance.random() < FEEDBACK_SHARE:
                    await self._give_feedback(plan.nonce, call_id)
                return _text(received.body, is_stream=plan.stream)
            if received.result in {Result.LEFT, Result.TIMEOUT}:
                return None
            if received.result == Result.WHOLE and received.status not in _TRIED_AGAIN:
                return None
            await asyncio.sleep(self._chance.uniform(0.5, 1.0) * min(2.0, 0.05 * 2**tries))
        return None

    def _plan(self, *, is_retry: bool) -> Plan:
        self._requests += 1
        behaviour = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        return Plan(
            nonce=f"{self._name}-{self._requests}",
            behaviour=Behaviour.FAST if is_retry else behaviour,
            stream=self._chance.random() < 0.5,
            usage=self._chance.random() < 0.5,
        )

    def _manners(self, plan: Plan) -> Manners:
        if plan.behaviour == Behaviour.SLOW and self._chance.random() < 0.2:
            return Manners(leaves_after_s=0.05)
        if plan.behaviour == Behaviour.TRICKLE and self._chance.random() < 0.2:
            return Manners(leaves_after_bytes=self._chance.randint(1, 2000))
        if plan.behaviour == Behaviour.LARGE:
            leaves = self._chance.randint(1, 100_000) if self._chance.random() < 0.2 else None
            return Manners(leaves_after_bytes=leaves, pause_s=self._chance.choice([0.0, 0.01, 0.05]))
        return Manners()

    async def _ask(self, plan: Plan, messages: list[dict[str, str]], tries: int) -> Received:
        body = _body(plan, messages)
        headers = {"x-stainless-retry-count": str(tries), "user-agent": "chaos/1"}
        gateway = self._gateway()
        self._journal.write(
            at=time.monotonic(),
            nonce=plan.nonce,
            gateway=gateway,
            behaviour=plan.behaviour,
            stream=plan.stream,
            usage=plan.usage,
            request_sha256=hashlib.sha256(body).hexdigest(),
        )
        sent = post("/v1/chat/completions", body, key=self._settings.api_key, headers=headers)
        received = await self._connections[gateway].exchange(sent, self._manners(plan))
        self._journal.write(
            at=time.monotonic(),
            nonce=plan.nonce,
            result=received.result,
            status=received.status,
            call_id=received.headers.get("x-ratchet-call-id", ""),
            serial=received.headers.get("x-request-id", ""),
            retry_after=received.headers.get("retry-after", ""),
            size_bytes=len(received.body),
            sha256=hashlib.sha256(received.body).hexdigest(),
            error_code=_error_code(received),
        )
        return received

    async def _give_feedback(self, nonce: str, call_id: str) -> None:
        """Say it until it is accepted; the idempotency key makes the tries one."""
        feedback = {
            "call_id": call_id,
            "name": "resolved",
            "value": True,
            "idempotency_key": f"signal-{nonce}",
        }
        for _ in range(MAX_TRIES):
            sent = post("/v1/feedback", orjson.dumps(feedback), key=self._settings.api_key, headers={})
            gateway = self._gateway()
            self._journal.write(at=time.monotonic(), feedback=nonce, gateway=gateway, call_id=call_id)
            received = await self._connections[gateway].exchange(sent, Manners())
            self._journal.write(
                at=time.monotonic(),
                feedback=nonce,
                gateway=gateway,
                result=received.result,
                status=received.status,
                error_code=_error_code(received),
            )
            if received.result == Result.WHOLE and received.status not in _TRIED_AGAIN:
                return
            await asyncio.sleep(0.2)

    def _gateway(self) -> int:
        return self._chance.randrange(len(self._connections))


def _body(plan: Plan, messages: list[dict[str, str]]) -> bytes:
    body: dict[str, Any] = {"model": "gpt-4o", "messages": messages, "metadata": plan.metadata}
    if plan.stream:
        body["stream"] = True
    if plan.stream and plan.usage:
        body["stream_options"] = {"include_usage": True}
    return orjson.dumps(body)


def _text(body: bytes | bytearray, *, is_stream: bool) -> str:
    """What the answer says, so that the next turn can repeat it."""
    if not is_stream:
        return str(orjson.loads(body)["choices"][0]["message"]["content"])
    events = [orjson.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])


def _error_code(received: Received) -> str:
    """The gateway's own word for what went wrong; empty for the provider's answers."""
    if received.result != Result.WHOLE or received.status < 400 or "x-request-id" in received.headers:
        return ""
    with contextlib.suppress(ValueError, KeyError):
        error = orjson.loads(received.body)["error"]
        return str(error["code"] or error["type"])
    return "unreadable"


async def _live(settings: Settings, journal: Journal) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    clients = [Client(f"c{n}", settings, journal, over.is_set) for n in range(settings.clients)]
    await asyncio.gather(*(client.live() for client in clients))


if __name__ == "__main__":
    uvloop.run(_live(Settings(**orjson.loads(Path(sys.argv[1]).read_bytes())), Journal(Path(sys.argv[2]))))
