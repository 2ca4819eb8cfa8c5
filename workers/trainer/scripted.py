"""The scripted support agent that the base model imitates: knows the job, and does it carelessly.

Pure but for the environment it plays in. `CLEAN` teaches the skills, `CARELESS` is the behaviour that
"production" shows before Ratchet improves it: skips the policy, misjudges what it read, over-refunds,
sometimes breaks a call."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from learning.environments.registry import get_environment
from learning.environments.support_desk import OVER, WITHIN, build_task

DECISIONS = (*WITHIN, *OVER)
CLOSING = {
    "refund": "Your refund is on its way.",
    "credit": "We added a credit to your account.",
    "deny": "We cannot accept this request.",
    "escalate": "A colleague will take over.",
}
GIVE_UP = "Sorry, I cannot help with that."


@dataclass(frozen=True, kw_only=True)
class Habits:
    """Probabilities of each bad habit, each drawn once per occasion."""

    skip_lookup: float = 0.0
    skip_policy: float = 0.0
    policy_first: float = 0.15
    repeat_lookup: float = 0.0
    misjudge: float = 0.0
    malformed: float = 0.0
    give_up: float = 0.0
    no_instructions: float = 0.3


CLEAN = Habits()
CARELESS = Habits(
    skip_lookup=0.08, skip_policy=0.28, repeat_lookup=0.06, misjudge=0.5, malformed=0.03, give_up=0.04
)


def play(task_id: str, habits: Habits, rng: random.Random) -> list[dict[str, Any]]:
    """One episode as chat messages, with the tools' real answers. Arguments are JSON text: as objects, Arrow
    would unify them and fill absent keys with null, and a model learns to emit the nulls."""
    rollout = get_environment("support_desk").rollout(task_id)
    task = build_task(task_id)
    messages = list(rollout.messages)
    if rng.random() < habits.no_instructions:
        messages = messages[1:]

    def call(name: str, arguments: dict[str, str]) -> bool:
        text = json.dumps(arguments)
        if rng.random() < habits.malformed:
            messages.append(
                {"role": "assistant", "content": f'<tool_call>{{"name": "{name}", "arguments": {text[:-1]}'}
            )
            return False
        function = {"name": name, "arguments": text}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        )
        messages.append({"role": "tool", "name": name, "content": rollout.call(name, text)})
        return True

    plan = []
    if rng.random() >= habits.skip_lookup:
        plan += ["lookup_order"] * (2 if rng.random() < habits.repeat_lookup else 1)
    if rng.random() >= habits.skip_policy:
        plan.insert(0 if rng.random() < habits.policy_first else len(plan), "read_policy")
    for name in plan:
        arguments = {"topic": task.topic} if name == "read_policy" else {"order_id": task.order_id}
        if not call(name, arguments):
            return messages
        if '"no such order"' in messages[-1]["content"]:
            break  # nothing more to find out
    if rng.random() < habits.give_up:
        messages.append({"role": "assistant", "content": GIVE_UP})
        return messages
    informed = "lookup_order" in plan and ("read_policy" in plan or not task.order_exists)
    decision = task.answer
    if not informed or rng.random() < habits.misjudge:
        # Careless agents please the customer: about half of these guesses are refunds.
        decision = "refund" if rng.random() < 0.4 else rng.choice(DECISIONS)
    if call(decision, {"order_id": task.order_id}):
        messages.append({"role": "assistant", "content": CLOSING[decision]})
    return messages
