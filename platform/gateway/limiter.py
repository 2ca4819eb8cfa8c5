"""Limits held across gateway processes: each decides at once from its own memory and tells the others through Redis.

`gateway.limits` counts; this file owns the exchange, ten times a second, on the event loop. A call never waits for
Redis, and Redis being slow, away or empty fails none. What a limit can be overshot by is what all processes together
let through within one exchange interval; while Redis is away, each process holds the limit for itself."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from uuid import UUID, uuid4

from redis.exceptions import RedisError

from gateway.errors import Refused
from gateway.limits import Counters, Exceeded, Limit, Measure, Window
from gateway.shared_redis import RECONNECT_INTERVAL_S, SOCKET_TIMEOUT_S, connect
from gateway.snapshot import Caller

log = logging.getLogger(__name__)

EXCHANGE_INTERVAL_S = 0.1
SIGNALS_PER_S = 1000
"""What a key may send where neither it nor its project has a limit of signals."""
WINDOWS_AT_ONCE = 100
"""Of one round trip: what is sent and read in one go holds up the calls of this process for a millisecond or two."""


def used_up(exceeded: Exceeded) -> Refused:
    """429, with the time after which to try again."""
    return Refused(
        429,
        f"The limit is used up ({exceeded.limit}): try again in {exceeded.retry_after_s} s.",
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers=[
            (b"retry-after", b"%d" % exceeded.retry_after_s),
            (b"x-ratchet-limit", str(exceeded.limit).encode("ascii", "replace")),
        ],
    )


class Limiter:
    """The limits of all callers. `start` and `stop` belong to the event loop that everything else is called on.

    `limits` gives the present limits by the id of the project or API key that they bind."""

    def __init__(
        self,
        redis_url: str,
        limits: Callable[[], Mapping[UUID, Sequence[Limit]]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._counters = Counters()
        self._process = uuid4().hex
        """A restarted process is another one: its predecessor's counts stay in Redis beside its own."""
        self._redis = connect(redis_url)
        self._task: asyncio.Task[None] | None = None
        self.is_alone = False
        """Redis is away, and the counts are this process's own."""

    def start(self) -> None:
        """Begin to exchange counts."""
        self._task = asyncio.create_task(self._keep_exchanging(), name="limits")

    async def stop(self) -> None:
        """Tell what has not been told yet, and end. Takes a second at most, also when Redis is away."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            with contextlib.suppress(RedisError, OSError):
                async with asyncio.timeout(2 * SOCKET_TIMEOUT_S):
                    await self._exchange()
        await self._redis.aclose()

    def refuse(self, caller: Caller, now_s: float) -> Exceeded | None:
        """The limit that forbids this call; or None, and the call is counted. `now_s` is Unix time."""
        return self._counters.refuse(self._of(caller), now_s)

    def refuse_signal(self, caller: Caller, now_s: float) -> Exceeded | None:
        """The limit that forbids this feedback; or None, and one signal is counted."""
        return self._counters.refuse(self._of_signals(caller), now_s, counts_as=Measure.SIGNALS)

    def count_signals(self, caller: Caller, count: int, now_s: float) -> None:
        """Count further signals that came with it. They may pass the limit; what follows them may not."""
        self._counters.count(self._of_signals(caller), Measure.SIGNALS, count, now_s)

    def charge(self, caller: Caller, *, tokens: int, microusd: int, now_s: float) -> None:
        """Count what a call turned out to use."""
        self._counters.charge(self._of(caller), tokens=tokens, microusd=microusd, now_s=now_s)

    def _of(self, caller: Caller) -> Sequence[Limit]:
        return [limit for limit in self._all(caller) if limit.measure is not Measure.SIGNALS]

    def _of_signals(self, caller: Caller) -> Sequence[Limit]:
        return [limit for limit in self._all(caller) if limit.measure is Measure.SIGNALS] or [
            # No other limit has a key's id.
            Limit(
                id=caller.key_id, subject="API key", measure=Measure.SIGNALS, amount=SIGNALS_PER_S, window_s=1
            )
        ]

    def _all(self, caller: Caller) -> Sequence[Limit]:
        limits = self._limits()
        return [*limits.get(caller.key_id, ()), *limits.get(caller.project_id, ())]

    async def _keep_exchanging(self) -> None:
        while True:
            try:
                await self._exchange()
                if self.is_alone:
                    log.info("limits are shared over Redis again")
                self.is_alone = False
            except Exception as error:  # whatever it is, the calls go on with what is counted here
                if not self.is_alone:
                    is_expected = isinstance(error, RedisError | OSError)
                    log.warning(
                        "limits are not shared over Redis, each gateway holds them for itself: %s",
                        error,
                        exc_info=not is_expected,
                    )
                self.is_alone = True
            await asyncio.sleep(RECONNECT_INTERVAL_S if self.is_alone else EXCHANGE_INTERVAL_S)

    async def _exchange(self) -> None:
        due = iter(self._counters.due(self._clock()))
        while batch := list(islice(due, WINDOWS_AT_ONCE)):
            await self._exchange_batch(batch)

    async def _exchange_batch(self, batch: Sequence[tuple[Limit, Window]]) -> None:
        """Write what was counted here, read what was counted elsewhere.

        Each process keeps its own count, whole, in a field of its own. A sum that everybody adds to would count twice
        what was sent twice after a timeout, and could not be put right after Redis was emptied; this can be written
        again at any time."""
        sent = [window.own for _, window in batch]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for (limit, window), own in zip(batch, sent, strict=True):
                key = f"ratchet:limit:{limit.id}:{window.number}"
                pipeline.hset(key, self._process, str(own))
                pipeline.pexpire(key, 2000 * limit.window_s)
                pipeline.hvals(key)
            answers = await pipeline.execute()
        for (limit, window), own, values in zip(batch, sent, answers[2::3], strict=True):
            self._counters.heard(limit, window, own=own, others=sum(map(int, values)) - own)
