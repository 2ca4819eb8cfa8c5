"""A real agent's production traffic, replayed: 100 recorded airline runs through the official SDK.

Nothing but `base_url` and `api_key` differs from what the agent would do with its provider: no header, no metadata.
The customer's side (user and tool messages) comes from the recording, the agent's side is whatever the gateway
answered. Does not know Ratchet's tables; what it learnt from the answers (`response id -> run`) is the truth that
stitching is held against."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

STREAM_EVERY = 4
"""Every fourth run streams its answers."""


@dataclass
class Replayed:
    """What the client saw."""

    run_of_response: dict[str, str] = field(default_factory=dict)
    """Response id -> the recorded run it belongs to, e.g. `12/3` for task 12, trial 3."""
    history_of_response: dict[str, str] = field(default_factory=dict)
    """Response id -> the request's messages and the answer, as text: equal texts cannot be told apart by anyone."""
    rewards: list[float] = field(default_factory=list)


async def replay(
    runs: Sequence[dict[str, Any]],
    *,
    base_url: str,
    api_key: str,
    at_once: int,
    on_call: Callable[[], None],
) -> Replayed:
    """Play all runs, `at_once` of them interleaved, then report each run's recorded reward as feedback."""
    seen = Replayed()
    places = asyncio.Semaphore(at_once)
    async with (
        AsyncOpenAI(base_url=base_url, api_key=api_key) as client,
        httpx.AsyncClient(timeout=30) as plain,
    ):

        async def play(number: int, run: dict[str, Any]) -> None:
            async with places:
                response_id = await _play_run(client, run, seen, on_call, stream=number % STREAM_EVERY == 0)
                for name, value in [("reward", run["reward"]), ("task", f"airline-{run['task_id']}")]:
                    answer = await plain.post(
                        f"{base_url}/feedback",
                        headers={"authorization": f"Bearer {api_key}"},
                        json={"response_id": response_id, "name": name, "value": value},
                    )
                    answer.raise_for_status()
                seen.rewards.append(run["reward"])

        async with asyncio.TaskGroup() as group:
            for number, run in enumerate(runs):
                group.create_task(play(number, run))
    return seen


async def _play_run(
    client: AsyncOpenAI, run: dict[str, Any], seen: Replayed, on_call: Callable[[], None], *, stream: bool
) -> str:
    history: list[Any] = []
    response_id = ""
    for message in run["traj"]:
        if message["role"] != "assistant":
            history.append(message)
            continue
        completion = await _ask(client, history, stream=stream)
        history.append(completion.choices[0].message.model_dump(exclude_none=True))
        response_id = completion.id
        seen.run_of_response[response_id] = f"{run['task_id']}/{run['trial']}"
        seen.history_of_response[response_id] = repr(history)
        on_call()
    return response_id


async def _ask(client: AsyncOpenAI, history: list[Any], *, stream: bool) -> ChatCompletion:
    if not stream:
        return await client.chat.completions.create(model="gpt-4o", messages=history)
    async with client.chat.completions.stream(model="gpt-4o", messages=history) as events:
        return await events.get_final_completion()


def strays(
    run_of_response: dict[str, str], history_of_response: dict[str, str], stitched: dict[str, str]
) -> int:
    """Calls that stand in a wrong run, calls with equal histories aside.

    `stitched` maps response ids to Ratchet's run ids. Each stitched run belongs to the recorded run that most of its
    calls come from; its other calls are strays, unless that recorded run holds a call with the very same history."""
    members: dict[str, list[str]] = {}
    histories: dict[str, set[str]] = {}
    for response_id, run in run_of_response.items():
        members.setdefault(stitched.get(response_id, f"missing {response_id}"), []).append(response_id)
        histories.setdefault(run, set()).add(history_of_response[response_id])
    common = Counter(history for of_run in histories.values() for history in of_run)
    count = 0
    owners: set[str] = set()
    # Largest first: a recorded run that was torn in two is owned by its larger part, and the smaller part is astray.
    for responses in sorted(members.values(), key=len, reverse=True):
        telling = [r for r in responses if common[history_of_response[r]] == 1] or responses
        origins = Counter(run_of_response[response_id] for response_id in telling)
        owner = max(sorted(origins), key=origins.__getitem__)
        torn = owner in owners
        owners.add(owner)
        count += sum(torn or history_of_response[r] not in histories[owner] for r in responses)
    return count
