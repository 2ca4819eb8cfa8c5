"""Which answers belong to which runs, told among gateways through Redis: a run stays one, and on its target, when its
calls reach several of them.

`telemetry.stitching.RunTracker` is the rule and what this process has seen itself; this file owns the exchange. An
answer is told as soon as it has ended, many in one go under load, and nobody waits for that. A call waits only where
this process is at a loss, for LOOKUP_LIMIT_S at most, and not at all while Redis is away or slow; then each gateway
knows what it has seen. Of runs that are equal word for word, Redis holds the latest.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from uuid import UUID

from redis.exceptions import RedisError

from gateway.shared_redis import RECONNECT_INTERVAL_S, SOCKET_TIMEOUT_S, connect

log = logging.getLogger(__name__)

LOOKUP_LIMIT_S = 0.025
TELL_INTERVAL_S = 0.005
"""Between two round trips of what is told; the first answer after a pause is told at once."""
KEPT_FOR_S = 1800
"""How long a run may pause and still be known to a gateway that has not seen it."""
ANSWERS_AT_ONCE = 1000
"""Of one round trip; Redis is busy with them for about a millisecond."""
CALLS_AT_ONCE = 64
"""Of one round trip: calls that look up their runs, each with up to 16 names."""
MAX_UNTOLD = 10_000
"""Answers that wait until Redis is back; the newest ones."""


_TELL = """
for at = 1, #ARGV[1], 48 do
    local name, run = string.sub(ARGV[1], at, at + 31), string.sub(ARGV[1], at + 32, at + 47)
    redis.call('SET', 'ratchet:run:' .. name, run, 'EX', ARGV[2])
end
"""
"""Every answer is told, so it has to be cheap: one command for all of them, where a SET for each in a pipeline cost 25
microseconds of the event loop an answer."""


class RunMemory:
    """What the gateways tell each other. `start` and `stop` belong to the event loop that all else is called on."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect(redis_url)
        self._untold: dict[bytes, UUID] = {}
        """By `name_of` the answer, oldest first."""
        self._asked: list[tuple[list[bytes], asyncio.Future[Sequence[object] | None]]] = []
        """Calls that wait for what Redis holds under these names; None says that it did not answer."""
        self._asking: asyncio.Task[None] | None = None
        self._is_due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.is_away = False
        """Redis is away or slow: it is not asked, but tried again every RECONNECT_INTERVAL_S."""
        self.lookups = Counter[str](found=0, missed=0, failed=0)
        """Calls that this process was at a loss with, by what Redis said; `failed` also while it is away."""

    def start(self) -> None:
        """Begin to tell."""
        self._task = asyncio.create_task(self._keep_telling(), name="run memory")

    async def stop(self) -> None:
        """Tell what has not been told yet, and end. Takes a second at most, also when Redis is away."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            with contextlib.suppress(RedisError, OSError):
                async with asyncio.timeout(2 * SOCKET_TIMEOUT_S):
                    await self._tell()
        await self._redis.aclose()

    def answered(self, key_id: UUID, run_id: UUID, echo_hash: bytes) -> None:
        """A whole answer has been seen here, and its echo may open a later request anywhere."""
        name = name_of(key_id, echo_hash)
        self._untold.pop(name, None)
        self._untold[name] = run_id
        if len(self._untold) > MAX_UNTOLD:
            del self._untold[next(iter(self._untold))]
        self._is_due.set()

    async def find(self, key_id: UUID, echoes: Sequence[bytes]) -> tuple[UUID, bytes] | None:
        """The run of the first of these echoes that any gateway has told of, and that echo; None when there is none,
        or when Redis does not say in time."""
        if self.is_away:
            self.lookups["failed"] += 1
            return None
        answer = asyncio.get_running_loop().create_future()
        self._asked.append(([name_of(key_id, echo) for echo in echoes], answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="run lookups")
        values = None
        try:
            async with asyncio.timeout(LOOKUP_LIMIT_S):
                values = await answer
        except TimeoutError as error:
            self._lost(error)
        if values is None:
            self.lookups["failed"] += 1
            return None
        found = first_told(echoes, values)
        self.lookups["found" if found else "missed"] += 1
        return found

    async def _ask(self) -> None:
        """Answer all that ask, one round trip at a time; who asks meanwhile shares the next one.

        After a restart no run under way is known, and many calls ask at once. A command for each would take longer than
        they may wait, and a connection for each a millisecond of the event loop."""
        while self._asked:
            due = [entry for entry in self._asked[:CALLS_AT_ONCE] if not entry[1].done()]
            del self._asked[:CALLS_AT_ONCE]
            names = [b"ratchet:run:" + name for wanted, _ in due for name in wanted]
            values = None
            try:
                async with asyncio.timeout(LOOKUP_LIMIT_S):
                    values = iter(await self._redis.mget(names) if names else ())
            except Exception as error:  # whatever it is, the calls go on with what is known here
                self._lost(error)
            for wanted, answer in due:
                held = None if values is None else list(islice(values, len(wanted)))
                if not answer.done():
                    answer.set_result(held)

    async def _keep_telling(self) -> None:
        while True:
            await self._is_due.wait()
            if self.is_away:
                await asyncio.sleep(RECONNECT_INTERVAL_S)
            self._is_due.clear()
            try:
                await self._tell()
                if self.is_away:
                    log.info("runs are shared over Redis again")
                self.is_away = False
            except Exception as error:  # whatever it is, the calls go on with what is known here
                self._lost(error)
            await asyncio.sleep(TELL_INTERVAL_S)

    async def _tell(self) -> None:
        if self.is_away:  # back means quick enough for a call to wait for
            async with asyncio.timeout(LOOKUP_LIMIT_S):
                await self._redis.ping()
        while batch := list(islice(self._untold.items(), ANSWERS_AT_ONCE)):
            told = b"".join(name + run_id.bytes for name, run_id in batch)
            await self._redis.eval(_TELL, 0, told, KEPT_FOR_S)
            for name, run_id in batch:
                if self._untold.get(name) == run_id:
                    del self._untold[name]

    def _lost(self, error: Exception) -> None:
        if not self.is_away:
            is_expected = isinstance(error, RedisError | OSError)
            log.warning(
                "runs are not shared over Redis, each gateway knows its own: %s",
                str(error) or "no answer in time",
                exc_info=not is_expected,
            )
        self.is_away = True
        self._is_due.set()  # to try again


def name_of(key_id: UUID, echo_hash: bytes) -> bytes:
    """What an answer is called among gateways, 32 bytes. Half a SHA-256 tells the echoes of one API key apart."""
    return key_id.bytes + echo_hash[:16]


def first_told(echoes: Sequence[bytes], values: Sequence[object]) -> tuple[UUID, bytes] | None:
    """The first echo with a run, from what Redis holds for each; what is no run id counts as nothing."""
    return next(
        (
            (UUID(bytes=value), echo)
            for echo, value in zip(echoes, values, strict=True)
            if isinstance(value, bytes) and len(value) == 16
        ),
        None,
    )
