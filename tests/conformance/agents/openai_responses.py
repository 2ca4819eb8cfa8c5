"""The official `openai` package: responses, the history sent along."""

from typing import Any

import desk
from openai import OpenAI

client = OpenAI(base_url=desk.BASE_URL, api_key=desk.API_KEY)
report = desk.Report()
history: list[Any] = [{"role": "user", "content": desk.QUESTION}]
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
while not report.answer:
    with client.responses.stream(
        model=desk.MODEL, instructions=desk.INSTRUCTIONS, input=history, tools=tools
    ) as stream:
        report.pieces += sum(event.type.endswith(".delta") for event in stream)
        response = stream.get_final_response()
    for item in response.output:
        history.append(item.model_dump(exclude_none=True, exclude={"parsed_arguments"}))
        if item.type == "function_call":
            result = report.use(item.name, item.arguments)
            history.append({"type": "function_call_output", "call_id": item.call_id, "output": result})
    report.answer = response.output_text
report.print()
