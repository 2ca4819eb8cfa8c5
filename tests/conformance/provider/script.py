"""What the provider says, whatever the dialect: two tool calls, one after the other, then the answer.

Pure: how it is spelled on the wire is the business of the module named after the dialect."""

from collections.abc import Iterator
from dataclasses import dataclass

MODEL = "gpt-4o"
QUESTION = "My lamp from order 4817 arrived broken."
ANSWER = "I am sorry — a replacement for order 4817 is on its way, ticket R-17. ✓"
PROMPT_TOKENS = 61
COMPLETION_TOKENS = 17
CREATED = 1764000000


@dataclass(frozen=True)
class ToolCall:
    """A turn in which the model calls one tool."""

    name: str
    arguments: str


CALLS = (
    ToolCall("find_order", '{"number":"4817"}'),
    ToolCall("send_replacement", '{"number":"4817","reason":"arrived broken"}'),
)
TURNS = len(CALLS) + 1


@dataclass(frozen=True)
class Turn:
    """One answer of the model: a tool call, or the closing text."""

    run: str
    """Makes ids unique to an agent's run and the same whenever that run is repeated."""
    index: int

    @property
    def call(self) -> ToolCall | None:
        return CALLS[self.index] if self.index < len(CALLS) else None

    def id(self, prefix: str) -> str:
        return f"{prefix}{self.run}{self.index}"

    def pieces(self) -> Iterator[str]:
        """The turn's text or arguments, a few characters at a time."""
        text = self.call.arguments if self.call else ANSWER
        for start in range(0, len(text), 6):
            yield text[start : start + 6]
