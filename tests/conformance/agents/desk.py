"""The order desk that every agent here works at: its instructions, its tools, and how a run is reported.

An agent is told where its API is by BASE_URL and API_KEY alone, streams every turn, and prints one line of JSON."""

import json
import os
from typing import Any

BASE_URL = os.environ["BASE_URL"]
API_KEY = os.environ["API_KEY"]
MODEL = "gpt-4o"
INSTRUCTIONS = "You are an order desk. Find the order first, then help."
QUESTION = "My lamp from order 4817 arrived broken."


def find_order(number: str) -> str:
    """Look an order up by its number."""
    return json.dumps({"number": number, "status": "delivered"})


def send_replacement(number: str, reason: str) -> str:
    """Send the goods of an order again."""
    return json.dumps({"number": number, "ticket": "R-17", "reason": reason})


TOOLS = {"find_order": find_order, "send_replacement": send_replacement}
PARAMETERS: dict[str, dict[str, Any]] = {
    name: {
        "type": "object",
        "properties": {field: {"type": "string"} for field in fields},
        "required": list(fields),
        "additionalProperties": False,
    }
    for name, fields in {"find_order": ("number",), "send_replacement": ("number", "reason")}.items()
}


class Report:
    """What came of a run, as seen by the agent."""

    def __init__(self) -> None:
        self.answer = ""
        self.pieces = 0
        """Stream events that carried text or arguments."""
        self.tools: list[str] = []

    def use(self, name: str, arguments: str) -> str:
        """Run a tool for the model."""
        self.tools.append(f"{name} {arguments}")
        return TOOLS[name](**json.loads(arguments))

    def print(self) -> None:
        print(json.dumps({"answer": self.answer, "pieces": self.pieces, "tools": self.tools}))
