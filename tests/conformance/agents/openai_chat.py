"""The official `openai` package: chat completions."""

from typing import Any

import desk
from openai import OpenAI

client = OpenAI(base_url=desk.BASE_URL, api_key=desk.API_KEY)
report = desk.Report()
messages: list[Any] = [
    {"role": "system", "content": desk.INSTRUCTIONS},
    {"role": "user", "content": desk.QUESTION},
]
tools: Any = [
    {
        "type": "function",
        "function": {"name": name, "description": tool.__doc__, "parameters": desk.PARAMETERS[name]},
    }
    for name, tool in desk.TOOLS.items()
]
while not report.answer:
    with client.chat.completions.stream(model=desk.MODEL, messages=messages, tools=tools) as stream:
        report.pieces += sum(
            event.type in {"content.delta", "tool_calls.function.arguments.delta"} for event in stream
        )
        message = stream.get_final_completion().choices[0].message
    messages.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
    for call in message.tool_calls or []:
        result = report.use(call.function.name, call.function.arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    report.answer = message.content or ""
report.print()
