"""The official `openai` package: responses over one WebSocket, each continuing the one before."""

from typing import Any

import desk
from openai import OpenAI

client = OpenAI(base_url=desk.BASE_URL, api_key=desk.API_KEY)
report = desk.Report()
tools: Any = [
    {
        "type": "function",
        "name": name,
        "description": tool.__doc__,
        "parameters": desk.PARAMETERS[name],
        "strict": True,
    }
    for name, tool in desk.TOOLS.items()
]
news: list[Any] = [{"role": "user", "content": desk.QUESTION}]
previous: dict[str, Any] = {}
with client.responses.connect() as connection:
    while not report.answer:
        connection.response.create(
            model=desk.MODEL, instructions=desk.INSTRUCTIONS, input=news, tools=tools, **previous
        )
        for event in connection:
            report.pieces += event.type.endswith(".delta")
            if event.type == "response.completed":
                break
        response = event.response
        previous = {"previous_response_id": response.id}
        news = [
            {
                "type": "function_call_output",
                "call_id": item.call_id,
                "output": report.use(item.name, item.arguments),
            }
            for item in response.output
            if item.type == "function_call"
        ]
        report.answer = response.output_text
report.print()
