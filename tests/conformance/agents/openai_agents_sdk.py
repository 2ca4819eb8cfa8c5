"""The OpenAI Agents SDK, streamed, over the API that API_SHAPE names: `chat_completions` or `responses`."""

import asyncio
import os
from typing import Any

import desk
from agents import (
    Agent,
    Runner,
    function_tool,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

report = desk.Report()


@function_tool
def find_order(number: str) -> str:
    """Look an order up by its number."""
    report.tools.append("find_order")
    return desk.find_order(number)


@function_tool
def send_replacement(number: str, reason: str) -> str:
    """Send the goods of an order again."""
    report.tools.append("send_replacement")
    return desk.send_replacement(number, reason)


async def main() -> None:
    set_tracing_disabled(True)
    set_default_openai_client(
        AsyncOpenAI(base_url=desk.BASE_URL, api_key=desk.API_KEY), use_for_tracing=False
    )
    shape: Any = os.environ["API_SHAPE"]
    set_default_openai_api(shape)
    agent = Agent(
        name="Order desk",
        instructions=desk.INSTRUCTIONS,
        model=desk.MODEL,
        tools=[find_order, send_replacement],
    )
    running = Runner.run_streamed(agent, desk.QUESTION)
    async for event in running.stream_events():
        report.pieces += event.type == "raw_response_event" and event.data.type.endswith(".delta")
    report.answer = running.final_output


asyncio.run(main())
report.print()
