"""A support-desk agent as a customer would write it: the official SDK, a tool loop, and the outcome as feedback.

Its business system (orders, policies, what counts as resolved) is the support-desk environment; its model is
whatever the alias answers with. It works on, run after run, whether or not a promotion is under way."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from openai import AsyncOpenAI

from learning.environments.registry import get_environment

MAX_TURNS = 8


@dataclass(frozen=True)
class Worked:
    """One finished run, as the agent's owner knows it."""

    task_id: str
    versions: tuple[str, ...]
    """The version that answered each call, from `x-ratchet-model-version`."""
    resolved: bool
    risk: float

    @property
    def version(self) -> str:
        """The version that answered its last call."""
        return self.versions[-1]


async def work(
    task_ids: Sequence[str],
    *,
    base_url: str,
    api_key: str,
    model: str,
    at_once: int,
    on_run: Callable[[Worked], None],
) -> list[Worked]:
    """Work on every task once, `at_once` at a time, and report each outcome; results in the order of completion."""
    done: list[Worked] = []
    places = asyncio.Semaphore(at_once)
    async with (
        AsyncOpenAI(base_url=base_url, api_key=api_key) as client,
        httpx.AsyncClient(timeout=30) as plain,
    ):

        async def one(task_id: str) -> None:
            async with places:
                worked, response_id = await _run(client, task_id, model)
                for name, value in [("task", task_id), ("risk", worked.risk), ("resolved", worked.resolved)]:
                    answer = await plain.post(
                        f"{base_url}/feedback",
                        headers={"authorization": f"Bearer {api_key}"},
                        json={"response_id": response_id, "name": name, "value": value},
                    )
                    answer.raise_for_status()
                done.append(worked)
                on_run(worked)

        async with asyncio.TaskGroup() as group:
            for task_id in task_ids:
                group.create_task(one(task_id))
    return done


async def _run(client: AsyncOpenAI, task_id: str, model: str) -> tuple[Worked, str]:
    rollout = get_environment("support_desk").rollout(task_id)
    messages: list[Any] = list(rollout.messages)
    tools: Any = rollout.tools
    versions: list[str] = []
    response_id = ""
    for _ in range(MAX_TURNS):
        raw = await client.chat.completions.with_raw_response.create(
            model=model,
            messages=messages,
            tools=tools,
            temperature=1.0,
            max_tokens=64,
        )
        completion = raw.parse()
        versions.append(raw.headers["x-ratchet-model-version"])
        response_id = completion.id
        message = completion.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            if call.type == "function":
                result = rollout.call(call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    outcome = rollout.outcome
    return Worked(task_id, tuple(versions), outcome.success, outcome.risk), response_id


async def first_answer(task_id: str, *, base_url: str, api_key: str, model: str) -> str:
    """Open one run and return the version that answered its first call."""
    rollout = get_environment("support_desk").rollout(task_id)
    messages: Any = rollout.messages
    tools: Any = rollout.tools
    async with AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=model,
            messages=messages,
            tools=tools,
            max_tokens=64,
        )
    return str(raw.headers["x-ratchet-model-version"])
