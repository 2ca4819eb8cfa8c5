"""The official `openai` package: responses. CONTINUES_BY says how a turn continues the one before: by `history`,
sent along, or by the earlier response's `id`."""

import os
from typing import Any

import desk
from openai import OpenAI

client = OpenAI(base_url=desk.BASE_URL, api_key=desk.API_KEY)
report = desk.Report()
sends_history = os.environ["CONTINUES_BY"] == "history"
asked: list[Any] = [{"role": "user", "content": desk.QUESTION}]
previous: dict[str, Any] = {}
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
        model=desk.MODEL, instructions=desk.INSTRUCTIONS, input=asked, tools=tools, **previous
    ) as stream:
        report.pieces += sum(event.type.endswith(".delta") for event in stream)
        response = stream.get_final_response()
    results = [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": report.use(item.name, item.arguments),
        }
        for item in response.output
        if item.type == "function_call"
    ]
    if sends_history:
        items = [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in response.output]
        asked = [*asked, *items, *results]
    else:
        asked, previous = results, {"previous_response_id": response.id}
    report.answer = response.output_text
report.print()
