"""Limits shared by gateways over a real Redis, and held by each alone while it is slow, away or empty."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from config import embedded
from config.environment import Environment
from gateway.limiter import SIGNALS_PER_S, Limiter
from gateway.limits import Limit, Measure
from gateway.snapshot import Caller
from tests.fakes.served_gateway import NO_REDIS
from tests.fakes.silent_redis import silent_redis
from tests.integration.gateway.conftest import redis_client as client

NOW_S = 1_800_000_030.0
CALLER = Caller(uuid4(), uuid4())
HUNDRED = Limit(id=uuid4(), subject="project", measure=Measure.REQUESTS, amount=100, window_s=3600)


class Gateways:
    """Gateway processes, as far as limits go. Their clock stands still."""

    def __init__(self, url: str, *limits: Limit) -> None:
        self._url = url
        self._limits = {CALLER.project_id: limits or (HUNDRED,)}
        self._running: list[Limiter] = []

    def start(self) -> Limiter:
        limiter = Limiter(self._url, lambda: self._limits, clock=lambda: NOW_S)
        limiter.start()
        self._running.append(limiter)
        return limiter

    async def stop(self, *limiters: Limiter) -> None:
        for limiter in limiters or self._running:
            await limiter.stop()


def scenario(url: str, steps: Callable[[Gateways], Awaitable[None]], *limits: Limit) -> None:
    async def run() -> None:
        gateways = Gateways(url, *limits)
        try:
            await steps(gateways)
        finally:
            await gateways.stop()

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (some of what is waited for is in Redis)
            await asyncio.sleep(0.01)


def let_through(limiter: Limiter, asked: int) -> int:
    """How many of so many calls pass."""
    return sum(limiter.refuse(CALLER, NOW_S) is None for _ in range(asked))


def is_full(limiter: Limiter) -> bool:
    return limiter.refuse(CALLER, NOW_S) is not None


def counted(store: Environment) -> int:
    keys = client(store).keys("ratchet:limit:*")
    return sum(int(value) for key in keys for value in client(store).hvals(key))


def test_gateways_share_a_limit(store: Environment) -> None:
    async def steps(gateways: Gateways) -> None:
        first, second = gateways.start(), gateways.start()
        assert (let_through(first, 60), let_through(second, 39)) == (60, 39)
        await until(lambda: counted(store) == 99)
        await until(lambda: is_full(first))
        await until(lambda: is_full(second))
        assert (let_through(first, 5), let_through(second, 5)) == (0, 0)

    scenario(store.redis_url, steps)


def test_spent_tokens_and_money_count_for_all(store: Environment) -> None:
    tokens = Limit(id=uuid4(), subject="project", measure=Measure.TOKENS, amount=1000, window_s=3600)
    money = Limit(id=uuid4(), subject="project", measure=Measure.MICROUSD, amount=500, window_s=60)

    async def steps(gateways: Gateways) -> None:
        first, second = gateways.start(), gateways.start()
        assert second.refuse(CALLER, NOW_S) is None
        first.charge(CALLER, tokens=999, microusd=500, now_s=NOW_S)
        await until(lambda: is_full(second))
        refusal = second.refuse(CALLER, NOW_S)
        assert refusal is not None
        assert (refusal.limit, refusal.retry_after_s) == (money, 30)

    scenario(store.redis_url, steps, tokens, money)


def test_counts_survive_a_restart(store: Environment) -> None:
    async def steps(gateways: Gateways) -> None:
        before = gateways.start()
        assert let_through(before, 120) == 100
        await gateways.stop(before)  # tells what it had not told yet
        assert counted(store) == 100
        after = gateways.start()
        await until(lambda: is_full(after))

    scenario(store.redis_url, steps)


def test_what_is_kept_in_redis_expires(store: Environment) -> None:
    async def steps(gateways: Gateways) -> None:
        let_through(gateways.start(), 1)
        await until(lambda: counted(store) == 1)
        (key,) = client(store).keys("*")
        assert 3600 < client(store).ttl(key) <= 7200

    scenario(store.redis_url, steps)


def test_while_redis_is_away_each_gateway_goes_on_by_itself(
    store: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(gateways: Gateways) -> None:
        first, second = gateways.start(), gateways.start()
        assert let_through(first, 30) == 30
        await until(lambda: counted(store) == 30)
        await asyncio.to_thread(embedded.stop, store)
        assert let_through(first, 200) == 70
        assert let_through(second, 10) == 10
        await until(lambda: first.is_alone and second.is_alone)
        await asyncio.to_thread(embedded.start, store)
        # Redis comes back empty, as from every restart: what each knows is told again.
        await until(lambda: counted(store) >= 110)
        await until(lambda: is_full(second))
        assert not first.is_alone
        assert not second.is_alone

    with caplog.at_level(logging.INFO, "gateway.limiter"):
        scenario(store.redis_url, steps)
    assert caplog.text.count("limits are not shared over Redis") == 2
    assert caplog.text.count("limits are shared over Redis again") == 2


def test_a_flushed_redis_is_told_again(store: Environment) -> None:
    async def steps(gateways: Gateways) -> None:
        old = gateways.start()
        assert let_through(old, 99) == 99
        await until(lambda: counted(store) == 99)
        client(store).flushall()
        assert let_through(old, 2) == 1
        await until(lambda: counted(store) == 100)
        new = gateways.start()
        await until(lambda: is_full(new))

    scenario(store.redis_url, steps)


def test_a_redis_that_never_answers_holds_up_nothing() -> None:
    with silent_redis() as silent:

        async def steps(gateways: Gateways) -> None:
            limiter = gateways.start()
            assert let_through(limiter, 120) == 100
            await until(lambda: limiter.is_alone)
            assert silent.accepted
            assert is_full(limiter)

        scenario(silent.url, steps)


def test_a_key_without_a_limit_of_signals_has_the_usual_one() -> None:
    async def steps(gateways: Gateways) -> None:
        limiter = gateways.start()
        assert limiter.refuse_signal(CALLER, NOW_S) is None
        limiter.count_signals(CALLER, SIGNALS_PER_S - 1, NOW_S)
        refused = limiter.refuse_signal(CALLER, NOW_S)
        assert refused is not None
        assert str(refused.limit) == f"API key: {SIGNALS_PER_S} signals in 1 s"
        assert limiter.refuse_signal(CALLER, NOW_S + 1) is None
        assert not is_full(limiter)  # calls are counted apart

    scenario(NO_REDIS, steps)
