"""What an environment is, and the two ways to run one.

A tool environment is a plain class: `reset(task_id=...)`, public methods that are the tools, an `outcome`
property, and private state. TRL's `environment_factory` takes such a class unchanged; because it turns
*every* public method into a tool, whatever a caller needs besides the tools lives here: `Environment` (name,
digest, task sets, tool schemas) and `Rollout`, one environment instance driven by an ordinary OpenAI tool
loop. No environment's rules live here."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

MAX_TASK_NUMBER = 999_999
_TASK_ID = re.compile(r"([a-z]+)-([0-9]{4,6})")
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


class UnknownTask(ValueError):
    """A task id that this environment cannot build a task from."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a rollout stands, judged by the environment itself. Read it at any time; it changes until the
    ticket closes."""

    success: bool
    """The right thing was done, once, to the right object."""
    risk: float
    """Harm done, 0.0 to 1.0: here 1.0 for a refund that the policy forbids."""
    tool_calls: int
    """Tool calls that reached the environment, malformed ones included."""
    malformed: int
    """Tool calls that named no tool, or whose arguments were not the tool's."""
    answer_kind: str | None
    """What closed the task (`refund`, `escalate`, ...); None while it is open."""

    def signals(self) -> dict[str, float | bool | None]:
        """The outcome under the signal names that production feedback uses, ready for a reward spec."""
        return {"resolved": self.success, "risk": self.risk}


class ToolEnvironment(Protocol):
    """The shape that TRL's `environment_factory` expects, plus an outcome. Instances are reused: `reset`
    clears everything."""

    def reset(self, *, task_id: str, **row: object) -> str | None: ...

    @property
    def outcome(self) -> Outcome: ...


class Rollout:
    """One task in progress, for callers who speak OpenAI's tool format.

    >>> rollout = get_environment("support_desk").rollout("heldout-0017")
    >>> answer = client.chat.completions.create(model=..., messages=rollout.messages, tools=rollout.tools)
    >>> rollout.call("lookup_order", '{"order_id": "4817"}')
    """

    def __init__(self, environment: Environment, task_id: str) -> None:
        self._instance = environment.factory()
        ticket = self._instance.reset(task_id=task_id)
        self._malformed = 0
        self.task_id = task_id
        self.tools: list[dict[str, Any]] = environment.tools
        self.messages: list[dict[str, Any]] = [
            *environment.prompt()[:-1],
            {"role": "user", "content": ticket or ""},
        ]
        """The opening messages; callers append the model's answers and the tools' results."""

    def call(self, name: str, arguments_json: str) -> str:
        """Run one tool. A bad call is answered with `{"error": ...}` and counted, as a model should see its
        mistake."""
        schema = next((tool["function"] for tool in self.tools if tool["function"]["name"] == name), None)
        if schema is None:
            return self._refuse(f"unknown tool {name!r}")
        try:
            arguments = json.loads(arguments_json)
        except ValueError:
            return self._refuse("arguments are not JSON")
        problem = argument_problem(schema["parameters"], arguments)
        if problem is not None:
            return self._refuse(problem)
        result: str = getattr(self._instance, name)(**arguments)
        return result

    @property
    def outcome(self) -> Outcome:
        """The environment's own outcome, with the calls counted that never reached a tool."""
        seen = self._instance.outcome
        return Outcome(
            success=seen.success,
            risk=seen.risk,
            tool_calls=seen.tool_calls + self._malformed,
            malformed=seen.malformed + self._malformed,
            answer_kind=seen.answer_kind,
        )

    def _refuse(self, why: str) -> str:
        self._malformed += 1
        return json.dumps({"error": why})


@dataclass(frozen=True)
class Environment:
    """One environment as the rest of the product sees it."""

    name: str
    factory: Callable[[], ToolEnvironment]
    """Makes a fresh instance; hand this to TRL's `environment_factory`."""
    instructions: str
    """The system message that production agents of this environment use too."""
    splits: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """sha256 over the source of the environment's module and of this one: equal digest, equal tasks and
        grading."""
        hasher = hashlib.sha256()
        for source in (sys.modules[self.factory.__module__].__file__, __file__):
            assert source is not None
            hasher.update(Path(source).read_bytes())
        return hasher.hexdigest()

    @cached_property
    def tools(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's `tools` format, in the order of their definition."""
        return [tool_schema(method) for method in tool_methods(self.factory)]

    def prompt(self) -> list[dict[str, str]]:
        """System message and an empty user message: TRL appends what `reset` returns to the last message."""
        return [{"role": "system", "content": self.instructions}, {"role": "user", "content": ""}]

    def task_ids(self, split: str, count: int, *, start: int = 0) -> list[str]:
        """`count` task ids of a split, from number `start` on: `heldout-0000`, `heldout-0001`, ...

        Raises:
            UnknownTask: the split does not exist, or its numbers run out.
        """
        if split not in self.splits:
            raise UnknownTask(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        if count < 0 or start < 0 or start + count > MAX_TASK_NUMBER + 1:
            raise UnknownTask(f"task numbers run from 0 to {MAX_TASK_NUMBER}")
        return [f"{split}-{number:04d}" for number in range(start, start + count)]

    def rollout(self, task_id: str) -> Rollout:
        """Start one task.

        Raises:
            UnknownTask: the id is not one of this environment's.
        """
        return Rollout(self, task_id)


def parse_task_id(task_id: str, splits: Sequence[str]) -> tuple[str, int]:
    """`heldout-0017` -> ("heldout", 17).

    Raises:
        UnknownTask: no such split, or not of that form.
    """
    match = _TASK_ID.fullmatch(task_id)
    if match is None or match[1] not in splits:
        raise UnknownTask(
            f"task id {task_id!r} is not one of {', '.join(f'{split}-NNNN' for split in splits)}"
        )
    return match[1], int(match[2])


def tool_methods(factory: Callable[..., object]) -> list[Callable[..., str]]:
    """The public methods of an environment class other than `reset`, which are its tools."""
    members = vars(factory).items()
    return [
        m for name, m in members if inspect.isfunction(m) and not name.startswith("_") and name != "reset"
    ]


def tool_schema(method: Callable[..., str]) -> dict[str, Any]:
    """A method with type hints and a Google docstring -> one entry of OpenAI's `tools`."""
    hints = typing.get_type_hints(method)
    summary, _, arguments = inspect.cleandoc(method.__doc__ or "").partition("Args:")
    described = dict(re.findall(r"^\s+(\w+): (.+)$", arguments, flags=re.MULTILINE))
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    return {
        "type": "function",
        "function": {
            "name": method.__name__,
            "description": " ".join(summary.split()),
            "parameters": {
                "type": "object",
                "properties": {
                    n: {"type": _JSON_TYPES[hints[n]], "description": described[n]} for n in names
                },
                "required": names,
                "additionalProperties": False,
            },
        },
    }


def argument_problem(parameters: Mapping[str, Any], arguments: object) -> str | None:
    """Why these arguments do not fit the tool's schema, in one phrase; None if they do."""
    if not isinstance(arguments, dict):
        return "arguments are not an object"
    for name in parameters["required"]:
        if name not in arguments:
            return f"argument {name!r} is missing"
    for name, value in arguments.items():
        if name not in parameters["properties"]:
            return f"unknown argument {name!r}"
        expected = parameters["properties"][name]["type"]
        # bool is an int to Python, and is neither an integer nor a number to JSON Schema.
        kinds: dict[str, tuple[type, ...]] = {
            "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
        }  # fmt: skip
        if not isinstance(value, kinds[expected]) or (isinstance(value, bool) and expected != "boolean"):
            return f"argument {name!r} is not of type {expected}"
    return None
