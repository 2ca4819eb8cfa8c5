"""Runs that are hard to tell apart, made from a seed: one function for each kind of trouble.

`KNOWABLE` kinds leave a trace by which an attentive reader could tell the run of each call; of `UNKNOWABLE` kinds
some calls are equal word for word to a stranger's, or hold nothing that was said before."""

import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.benchmarks.stitching_traffic import Exchange, Message, Scenario

SYSTEM: Message = {"role": "system", "content": "You are the support desk of a lamp shop. Be brief, be kind."}
WITH_EXAMPLE: Message = {"role": "system", "content": "You are the support desk. Answer as in the example."}
HELLO: Message = {"role": "user", "content": "Hello, I need help with my order."}
WELCOME: Message = {
    "role": "assistant",
    "content": "Welcome to the lamp shop! I am glad to help you. What is the number of your order?",
}
GOING_ON: Message = {"role": "assistant", "content": "Please wait."}
SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "ri", "so", "tu", "va", "ze")


@dataclass
class Talk:
    """One run as its agent keeps it."""

    kind: str
    run: str
    rng: random.Random
    messages: list[Message] = field(default_factory=lambda: [SYSTEM])
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What all its calls have besides."""

    def asks(self, message: Message | None = None) -> "Talk":
        self.messages.append(message or {"role": "user", "content": self.words(6)})
        return self

    def call(self, answer: Message | None = None, *, sent: list[Message] | None = None) -> Exchange:
        """The next call, answered; `sent` is what goes out in place of the whole history."""
        answer = answer or {"role": "assistant", "content": self.words(25)}
        exchange = self.exchange(answer, sent)
        self.messages.append(answer)
        return exchange

    def exchange(self, answer: Message | None, sent: list[Message] | None = None) -> Exchange:
        """A call that leaves nothing in the history."""
        messages = tuple(self.messages if sent is None else sent)
        return Exchange(kind=self.kind, run=self.run, messages=messages, answer=answer, **self.fields)

    def uses_tools(self, count: int = 1) -> Message:
        """An answer that calls tools."""
        calls = [
            {
                "id": "call_" + "".join(self.rng.choices(string.ascii_letters + string.digits, k=24)),
                "type": "function",
                "function": {"name": "find_order", "arguments": f'{{"number": {self.rng.randrange(10**6)}}}'},
            }
            for _ in range(count)
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    def gets(self, *results: str) -> "Talk":
        """The results of the tools that were called last."""
        called = self.messages[-1]["tool_calls"]
        self.messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call, result in zip(called, results, strict=True)
        ]
        return self

    def branch(self) -> "Talk":
        """The same run, with a history of its own from here on."""
        return replace(self, messages=list(self.messages))

    def words(self, count: int) -> str:
        rng = self.rng
        return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(count))


def turns(talk: Talk, count: int = 3) -> Scenario:
    """Turns of a tool call and an answer in words each."""
    rounds = []
    for _ in range(count):
        rounds.append([talk.asks().call(talk.uses_tools())])
        rounds.append([talk.gets('{"state": "shipped"}').call()])
    return rounds


def equal_openings(talk: Talk) -> Scenario:
    return [[talk.asks(HELLO).call()], *turns(talk)]


def templated_answers(talk: Talk) -> Scenario:
    """Everybody is welcomed in the same words."""
    return [[talk.asks().call(WELCOME)], *turns(talk)]


def retries(talk: Talk) -> Scenario:
    """The SDK tries a turn again, up to twice, after a failure or an answer that it did not wait for."""
    rounds = []
    for (call,) in turns(talk):
        attempts = talk.rng.randrange(3)
        for attempt in range(attempts):
            unheard = {"role": "assistant", "content": talk.words(25)} if talk.rng.random() < 0.3 else None
            rounds.append([replace(call, answer=unheard, retry_count=attempt)])
        rounds.append([replace(call, retry_count=attempts)])
    return rounds


def forks(talk: Talk) -> Scenario:
    """Two branches from one answer, and the second turn drawn twice."""
    first = [talk.asks().call()]
    talk.asks()
    again = [talk.exchange({"role": "assistant", "content": talk.words(25)})]
    second = [talk.call()]
    rounds = [turns(talk.branch(), 2) for _ in range(2)]
    return [first, again, second, *([*one, *other] for one, other in zip(*rounds, strict=True))]


def compaction(talk: Talk) -> Scenario:
    """The history is summed up; the tool call under way is kept."""
    before = turns(talk)
    asked = [talk.asks().call(talk.uses_tools())]
    summary: Message = {"role": "user", "content": f"What happened so far: {talk.words(20)}"}
    talk.messages = [SYSTEM, summary, talk.messages[-1]]
    return [*before, asked, [talk.gets('{"state": "lost"}').call()], *turns(talk, 2)]


def truncation(talk: Talk) -> Scenario:
    """Only the system message and the last messages go out, as much as holds two answers."""
    rounds = [[talk.asks().call()]]
    for _ in range(5):
        talk.asks()
        rounds.append([talk.call(sent=[SYSTEM, *talk.messages[-4:]] if len(talk.messages) > 5 else None)])
    return rounds


def edited_answer(talk: Talk) -> Scenario:
    """The client changes an answer of ours before it sends it back."""
    before = turns(talk, 2)
    talk.messages[-1] = {"role": "assistant", "content": talk.words(25)}
    return [*before, *turns(talk, 2)]


def edited_opening(talk: Talk) -> Scenario:
    """The first question is changed, all that was answered is kept."""
    before = turns(talk, 2)
    talk.messages[1] = {"role": "user", "content": talk.words(6)}
    return [*before, *turns(talk, 2)]


def clock_in_system_message(talk: Talk) -> Scenario:
    """The system message tells the time: no history begins as the one before."""
    return _by_the_clock(talk, None)


def clock_and_short_answers(talk: Talk) -> Scenario:
    """As above, and what is said is short: ids of tool calls alone tell the run."""
    return _by_the_clock(talk, GOING_ON)


def _by_the_clock(talk: Talk, answer: Message | None) -> Scenario:
    rounds = []
    for minute in range(4):
        talk.messages[0] = {
            **SYSTEM,
            "content": f"{SYSTEM['content']} It is 12:{minute:02}, {talk.words(2)}.",
        }
        rounds.append([talk.asks().call(talk.uses_tools())])
        rounds.append([talk.gets('{"state": "shipped"}').call(answer)])
    return rounds


def sub_agents(talk: Talk) -> Scenario:
    """Three agents side by side; each one's last words are what the tool answers."""
    asked = [talk.asks().call(talk.uses_tools(3))]
    fields = {"parent": talk.run}
    agents = [Talk(talk.kind, f"{talk.run}.{number}", talk.rng, fields=fields) for number in range(3)]
    rounds = [turns(agent, 1) for agent in agents]
    side_by_side = [[call for calls in together for call in calls] for together in zip(*rounds, strict=True)]
    talk.gets(*(agent.messages[-1]["content"] for agent in agents))
    return [asked, *side_by_side, [talk.call()], *turns(talk, 1)]


def pasted_example(talk: Talk) -> Scenario:
    """What one run answered is an example in the opening of others."""
    said = talk.asks().call()
    return [[said], *turns(talk, 1), *_with_example(talk, [said.messages[-1], said.answer])]


def pasted_tool_call(talk: Talk) -> Scenario:
    """The example is a tool call, with the id that it had."""
    called = talk.asks().call(talk.uses_tools())
    rounds = [[called], [talk.gets('{"state": "shipped"}').call()]]
    return [*rounds, *_with_example(talk, talk.messages[1:4])]


def _with_example(talk: Talk, example: list[Message]) -> Scenario:
    others = [
        turns(Talk(talk.kind, f"{talk.run}.{number}", talk.rng, messages=[WITH_EXAMPLE, *example]), 1)
        for number in range(2)
    ]
    return [[call for calls in together for call in calls] for together in zip(*others, strict=True)]


def equal_runs(talk: Talk) -> Scenario:
    """Two runs, equal word for word from the first to the last."""
    return _side_by_side(talk, [turns(talk)] * 2)


def equal_first_turns(talk: Talk) -> Scenario:
    """Two runs, opened and welcomed alike, that go on each in its own way."""
    opening = [talk.asks().call(WELCOME)]
    return _side_by_side(talk, [[opening, *turns(talk.branch())] for _ in range(2)])


def _side_by_side(talk: Talk, twins: list[Scenario]) -> Scenario:
    return [
        [
            replace(call, run=f"{talk.run}.{number}")
            for number, calls in enumerate(together)
            for call in talk.rng.sample(calls, len(calls))
        ]
        for together in zip(*twins, strict=True)
    ]


def summed_up_whole(talk: Talk) -> Scenario:
    """Nothing that was said is kept, only its summary."""
    before = turns(talk, 2)
    talk.messages = [SYSTEM, {"role": "user", "content": f"What happened so far: {talk.words(20)}"}]
    return [*before, [talk.call()], *turns(talk, 1)]


def summed_up_whole_traced(talk: Talk) -> Scenario:
    """As above, under the trace of the caller."""
    talk.fields = {"trace_id": talk.rng.randbytes(16).hex()}
    return summed_up_whole(talk)


def short_and_truncated(talk: Talk) -> Scenario:
    """What is left of the history is too short to be anyone's."""
    rounds = [[talk.asks().call(GOING_ON)]]
    for _ in range(3):
        talk.asks()
        rounds.append([talk.call(GOING_ON, sent=[SYSTEM, *talk.messages[-2:]])])
    return rounds


Kind = Callable[[Talk], Scenario]
KNOWABLE: tuple[Kind, ...] = (
    equal_openings, templated_answers, retries, forks, compaction, truncation, edited_answer, edited_opening,
    clock_in_system_message, clock_and_short_answers, sub_agents, summed_up_whole_traced,
    pasted_example, pasted_tool_call,
)  # fmt: skip
UNKNOWABLE: tuple[Kind, ...] = (equal_runs, equal_first_turns, summed_up_whole, short_and_truncated)


def scenarios(*, each: int, seed: int) -> list[Scenario]:
    """`each` scenarios of every kind."""
    rng = random.Random(seed)
    return [
        kind(Talk(name_of(kind), f"{kind.__name__} {number}", rng))
        for kind in (*KNOWABLE, *UNKNOWABLE)
        for number in range(each)
    ]


def name_of(kind: Kind) -> str:
    return kind.__name__.replace("_", " ")
