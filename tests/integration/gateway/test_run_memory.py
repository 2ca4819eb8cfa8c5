"""What gateways tell each other about runs over a real Redis, and how they go on while it is away, empty or silent."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from config import embedded
from config.environment import Environment
from gateway.run_memory import KEPT_FOR_S, RunMemory
from tests.fakes.served_gateway import ServedGateway, Tenant, served_gateway, wait_until
from tests.fakes.silent_redis import silent_redis
from tests.fakes.upstream import RUNS, FakeUpstream
from tests.integration.gateway.conftest import CREDENTIAL, redis_client

KEY, RUN = uuid4(), uuid4()
ECHO, OLDER_ECHO, UNKNOWN = (bytes([number]) * 32 for number in (1, 2, 3))


def scenario(url: str, steps: Callable[[RunMemory, RunMemory], Awaitable[None]]) -> None:
    """Two gateway processes, as far as their memory of runs goes."""

    async def run() -> None:
        memories = RunMemory(url), RunMemory(url)
        for memory in memories:
            memory.start()
        try:
            async with asyncio.timeout(30):
                await steps(*memories)
        finally:
            for memory in memories:
                await memory.stop()

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  (what is waited for may be in Redis)
        await asyncio.sleep(0.005)


def told(store: Environment) -> int:
    return len(redis_client(store).keys("ratchet:run:*"))


def test_what_one_gateway_saw_the_other_finds(store: Environment) -> None:
    async def steps(first: RunMemory, second: RunMemory) -> None:
        first.answered(KEY, uuid4(), OLDER_ECHO)
        first.answered(KEY, RUN, ECHO)
        await until(lambda: told(store) == 2)
        assert await second.find(KEY, [UNKNOWN, ECHO, OLDER_ECHO]) == (RUN, ECHO)
        assert await second.find(KEY, [UNKNOWN]) is None
        assert await second.find(uuid4(), [ECHO]) is None  # another key's calls are nobody else's business
        assert second.lookups == {"found": 1, "missed": 2, "failed": 0}

    scenario(store.redis_url, steps)


def test_of_equal_answers_the_latest_one_is_known(store: Environment) -> None:
    async def steps(first: RunMemory, second: RunMemory) -> None:
        for run in (uuid4(), RUN):
            first.answered(KEY, run, ECHO)
            await until(lambda run=run: redis_client(store).mget(redis_client(store).keys()) == [run.bytes])
        assert await second.find(KEY, [ECHO]) == (RUN, ECHO)

    scenario(store.redis_url, steps)


def test_more_than_fits_one_round_trip_is_told(store: Environment) -> None:
    async def steps(first: RunMemory, second: RunMemory) -> None:
        for number in range(2500):
            first.answered(KEY, RUN, number.to_bytes(16) * 2)
        await until(lambda: told(store) == 2500)
        assert await second.find(KEY, [(2499).to_bytes(16) * 2])

    scenario(store.redis_url, steps)


def test_many_calls_at_a_loss_at_once_are_all_answered(store: Environment) -> None:
    """As after the restart of a gateway: no call that is under way is known to it."""

    async def steps(first: RunMemory, second: RunMemory) -> None:
        first.answered(KEY, RUN, ECHO)
        await until(lambda: told(store) == 1)
        found = await asyncio.gather(*(second.find(KEY, [UNKNOWN, ECHO]) for _ in range(101)))
        assert found == [(RUN, ECHO)] * 101
        assert not second.is_away

    scenario(store.redis_url, steps)


def test_a_gateway_that_ends_tells_what_it_has_not_told_yet(store: Environment) -> None:
    async def run() -> None:
        memory = RunMemory(store.redis_url)
        memory.start()
        memory.answered(KEY, RUN, ECHO)
        await memory.stop()

    asyncio.run(run())
    (name,) = redis_client(store).keys()
    assert 0 < redis_client(store).ttl(name) <= KEPT_FOR_S


def test_what_is_seen_while_redis_is_away_is_told_when_it_is_back(
    store: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(first: RunMemory, second: RunMemory) -> None:
        await asyncio.to_thread(embedded.stop, store)
        assert await second.find(KEY, [ECHO]) is None
        assert await second.find(KEY, [ECHO]) is None
        first.answered(KEY, RUN, ECHO)
        await until(lambda: first.is_away)
        assert second.lookups == {"found": 0, "missed": 0, "failed": 2}
        await asyncio.to_thread(embedded.start, store)
        await until(lambda: not (first.is_away or second.is_away))
        await until(lambda: told(store) == 1)
        assert await second.find(KEY, [ECHO]) == (RUN, ECHO)

    with caplog.at_level(logging.INFO, "gateway.run_memory"):
        scenario(store.redis_url, steps)
    assert caplog.text.count("runs are not shared over Redis") == 2
    assert caplog.text.count("runs are shared over Redis again") == 2


def test_a_redis_that_never_answers_is_asked_once_and_then_left_alone() -> None:
    with silent_redis() as silent:

        async def steps(first: RunMemory, second: RunMemory) -> None:
            async with asyncio.timeout(5):  # far below what a socket's own timeout would add up to
                for _ in range(1000):
                    assert await first.find(KEY, [ECHO]) is None
            assert first.is_away
            assert first.lookups["failed"] == 1000
            assert len(silent.accepted) <= 2  # the one question, and on a very slow machine a probe
            second.answered(KEY, RUN, ECHO)
            await until(lambda: second.is_away)

        scenario(silent.url, steps)


def metric(gateway: ServedGateway, sample: str) -> float:
    lines = httpx.get(f"{gateway.origin}/metrics").text.splitlines()
    return float(
        next(line for line in lines if line.startswith(f"ratchet_gateway_{sample} ")).rpartition(" ")[2]
    )


def play(gateway: ServedGateway, tenant: Tenant, trajectory: list[dict[str, Any]]) -> set[str]:
    """Ask for every recorded turn; the run ids that were told."""
    told = set()
    for index, message in enumerate(trajectory):
        if message["role"] == "assistant":
            answer = httpx.post(
                f"{gateway.origin}/v1/chat/completions",
                headers={"authorization": f"Bearer {tenant.key}"},
                json={"model": "gpt-4o", "messages": trajectory[:index]},
            )
            assert answer.status_code == 200
            told.add(answer.headers["x-ratchet-run-id"])
    return told


@pytest.mark.parametrize("is_silent", [True, False])
def test_calls_are_served_and_runs_known_to_their_own_gateway_without_redis(
    tmp_path: Path, upstream: FakeUpstream, is_silent: bool
) -> None:
    with silent_redis() as silent:
        url = silent.url if is_silent else f"unix://{tmp_path}/nobody.sock"
        with served_gateway(tmp_path, redis_url=url) as gateway:
            tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1", credential=CREDENTIAL)
            assert len(play(gateway, tenant, RUNS[0]["traj"])) == 1
            assert metric(gateway, 'run_lookups_total{result="failed"}') == 0  # it knows its own
            unknown = [*RUNS[1]["traj"][:2], {"role": "assistant", "content": "Not ours."}]
            for _ in range(3):
                headers = {"authorization": f"Bearer {tenant.key}"}
                body = {"model": "gpt-4o", "messages": unknown}
                answer = httpx.post(f"{gateway.origin}/v1/chat/completions", headers=headers, json=body)
                assert answer.json()["error"]["message"] == "These messages were never recorded."
            assert metric(gateway, 'run_lookups_total{result="failed"}') == 3


def test_what_a_gateway_knows_itself_is_not_looked_up(
    store: Environment, tmp_path: Path, upstream: FakeUpstream
) -> None:
    with served_gateway(tmp_path / "spool", redis_url=store.redis_url) as gateway:
        tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1", credential=CREDENTIAL)
        assert len(play(gateway, tenant, RUNS[0]["traj"])) == 1
        turns = sum(message["role"] == "assistant" for message in RUNS[0]["traj"])
        wait_until(lambda: told(store) == turns)
        for result in ("found", "missed", "failed"):
            assert metric(gateway, f'run_lookups_total{{result="{result}"}}') == 0
        assert metric(gateway, 'process_info{process="gateway-1"}') == 1
