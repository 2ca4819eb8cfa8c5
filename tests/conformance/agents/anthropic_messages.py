"""The official `anthropic` package: messages."""

import json
from typing import Any

import desk
from anthropic import Anthropic

# Its paths begin with /v1 themselves.
client = Anthropic(base_url=desk.BASE_URL.removesuffix("/v1"), api_key=desk.API_KEY)
report = desk.Report()
messages: list[Any] = [{"role": "user", "content": desk.QUESTION}]
tools: Any = [
    {"name": name, "description": tool.__doc__, "input_schema": desk.PARAMETERS[name]}
    for name, tool in desk.TOOLS.items()
]
while not report.answer:
    with client.messages.stream(
        model="claude-sonnet-4-5", max_tokens=1024, system=desk.INSTRUCTIONS, messages=messages, tools=tools
    ) as stream:
        report.pieces += sum(event.type == "content_block_delta" for event in stream)
        message = stream.get_final_message()
    messages.append(
        {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in message.content]}
    )
    results = [
        {"type": "tool_result", "tool_use_id": b.id, "content": report.use(b.name, json.dumps(b.input))}
        for b in message.content
        if b.type == "tool_use"
    ]
    if results:
        messages.append({"role": "user", "content": results})
    report.answer = "".join(block.text for block in message.content if block.type == "text")
report.print()
