"""The official `openai` package: a realtime session in text."""

from typing import Any

import desk
from openai import OpenAI

client = OpenAI(base_url=desk.BASE_URL, api_key=desk.API_KEY)
report = desk.Report()
tools: Any = [
    {"type": "function", "name": name, "description": tool.__doc__, "parameters": desk.PARAMETERS[name]}
    for name, tool in desk.TOOLS.items()
]
with client.realtime.connect(model=desk.MODEL) as connection:
    connection.session.update(
        session={
            "type": "realtime",
            "output_modalities": ["text"],
            "instructions": desk.INSTRUCTIONS,
            "tools": tools,
        }
    )
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": desk.QUESTION}]}
    )
    connection.response.create()
    for event in connection:
        report.pieces += event.type.endswith(".delta")
        if event.type == "response.output_text.done":
            report.answer = event.text
        if event.type != "response.done":
            continue
        if report.answer:
            break
        for item in event.response.output or []:
            if item.type == "function_call":
                result = report.use(item.name or "", item.arguments or "")
                connection.conversation.item.create(
                    item={"type": "function_call_output", "call_id": item.call_id or "", "output": result}
                )
        connection.response.create()
report.print()
