"""A support desk: a customer's ticket, a small order database, a policy that must be read, and one decision.

Every task is built from its id alone. The policy of a topic is drawn anew for each task (how much may be
settled at the desk, what to do up to that amount and what above it), so that it can only be read, never
remembered. Some tickets name an order that does not exist, or a topic without a policy: those go to a person.
Held-out tasks use order numbers and policies that no training task uses; shifted tasks go further, with
amounts as limits and wordings that training never shows."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from itertools import product

from learning.environments.base import Environment, Outcome, UnknownTask, parse_task_id

SPLITS = ("train", "heldout", "shifted")
TOPICS = ("broken", "late", "wrong", "missing", "unwanted")
ITEMS = ("lamp", "chair", "kettle", "radio", "jacket", "tent", "clock", "mirror", "drill", "scarf")
AMOUNTS = tuple(range(5, 100, 5))
LIMITS = tuple(range(20, 90, 10))
SHIFTED_LIMITS = (25, 45, 65)
WITHIN = ("refund", "credit")
OVER = ("deny", "escalate")

WORDINGS = {
    "broken": ("the {item} arrived broken.", "my {item} is broken."),
    "late": ("the {item} came too late.", "my {item} was late."),
    "wrong": ("you sent the wrong {item}.", "this is the wrong {item}."),
    "missing": ("the {item} is missing.", "my {item} is missing from the box."),
    "unwanted": ("I no longer want the {item}.", "the {item} is unwanted."),
}
SHIFTED_WORDINGS = {
    "broken": ("broken {item} again.",),
    "late": ("such a late {item}.",),
    "wrong": ("wrong {item} here.",),
    "missing": ("one {item} missing.",),
    "unwanted": ("unwanted {item} back to you.",),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One ticket with everything behind it. `answer` is the one right decision."""

    order_id: str
    topic: str
    item: str
    amount: int
    limit: int
    within: str
    over: str
    wording: str
    order_exists: bool
    policy_exists: bool

    @property
    def answer(self) -> str:
        """What the policy asks for: its action up to the limit or above it; escalate where there is nothing
        to read."""
        if not (self.order_exists and self.policy_exists):
            return "escalate"
        return self.within if self.amount <= self.limit else self.over

    @property
    def ticket(self) -> str:
        """The customer's words."""
        return f"Order {self.order_id}: {self.wording.format(item=self.item)}"


def build_task(task_id: str) -> Task:
    """The task of an id; the same id gives the same task on every machine.

    Raises:
        UnknownTask: not an id of this environment.
    """
    split, _ = parse_task_id(task_id, SPLITS)
    # A string seed is hashed with SHA-512 by `random`, the same everywhere, unlike hash().
    rng = random.Random(f"support_desk:{task_id}")
    topic, item, amount = rng.choice(TOPICS), rng.choice(ITEMS), rng.choice(AMOUNTS)
    limit, within, over = rng.choice(_POLICIES[split][topic])
    trouble = rng.random()
    wordings = SHIFTED_WORDINGS if split == "shifted" else WORDINGS
    return Task(
        order_id=rng.choice(_ORDER_IDS["heldout" if split == "shifted" else split]),
        topic=topic,
        item=item,
        amount=amount,
        limit=limit,
        within=within,
        over=over,
        wording=rng.choice(wordings[topic]),
        order_exists=trouble >= 0.06,
        policy_exists=not 0.06 <= trouble < 0.12,
    )


class SupportDesk:
    """The tools of the desk, and the state of one ticket. Every public method but `reset` is a tool."""

    def __init__(self) -> None:
        self._task: Task | None = None
        self._decision: tuple[str, str] | None = None
        self._tool_calls = 0

    def reset(self, *, task_id: str, **_row: object) -> str:
        """Start a ticket, forgetting everything about the one before.

        Returns:
            The ticket as the customer wrote it.

        Raises:
            UnknownTask: not an id of this environment.
        """
        self._task = build_task(task_id)
        self._decision = None
        self._tool_calls = 0
        return self._task.ticket

    def lookup_order(self, order_id: str) -> str:
        """Look up an order.

        Args:
            order_id: The order's number.
        """
        task = self._count()
        if order_id != task.order_id or not task.order_exists:
            return json.dumps({"error": "no such order"})
        return json.dumps({"item": task.item, "amount": task.amount})

    def read_policy(self, topic: str) -> str:
        """Read the policy on a topic.

        Args:
            topic: broken, late, wrong, missing or unwanted.
        """
        task = self._count()
        if topic not in TOPICS:
            return json.dumps({"error": "no such topic"})
        if topic != task.topic:
            # Other topics have their own policies, fixed for the task: reading the wrong one misleads, as at
            # a real desk.
            other = random.Random(f"{task.order_id}:{topic}")
            return _policy_text(*other.choice(_POLICIES["train"][topic]))
        if not task.policy_exists:
            return json.dumps({"error": "no policy"})
        return _policy_text(task.limit, task.within, task.over)

    def refund(self, order_id: str) -> str:
        """Pay the order's amount back and close the ticket.

        Args:
            order_id: The order's number.
        """
        return self._decide("refund", order_id)

    def credit(self, order_id: str) -> str:
        """Give the order's amount as shop credit and close the ticket.

        Args:
            order_id: The order's number.
        """
        return self._decide("credit", order_id)

    def deny(self, order_id: str) -> str:
        """Decline the request and close the ticket.

        Args:
            order_id: The order's number.
        """
        return self._decide("deny", order_id)

    def escalate(self, order_id: str) -> str:
        """Hand the ticket to a person and close it.

        Args:
            order_id: The order's number.
        """
        return self._decide("escalate", order_id)

    @property
    def outcome(self) -> Outcome:
        """Success: the first decision was the right one, on the ticket's order. Risk: a refund that was not
        the right one."""
        decision, order_id = self._decision or (None, "")
        task = self._task
        right = task is not None and decision == task.answer and order_id == task.order_id
        return Outcome(
            success=right,
            risk=1.0 if decision == "refund" and not right else 0.0,
            tool_calls=self._tool_calls,
            malformed=0,
            answer_kind=decision,
        )

    def _count(self) -> Task:
        if self._task is None:
            raise UnknownTask("reset the environment before calling a tool")
        self._tool_calls += 1
        return self._task

    def _decide(self, decision: str, order_id: str) -> str:
        self._count()
        if self._decision is not None:
            return json.dumps({"error": "ticket is closed"})
        self._decision = (decision, order_id)
        return json.dumps({"status": "closed"})


def _policy_text(limit: int, within: str, over: str) -> str:
    return f"up to {limit}: {within}, above: {over}"


def _is_heldout_order(order_id: str) -> bool:
    return hashlib.sha256(order_id.encode()).digest()[0] < 64  # a quarter of them


def _is_heldout_policy(topic: str, limit: int, within: str, over: str) -> bool:
    # A Latin square: of the four pairs of actions, each topic withholds one for each limit. So training sees
    # every word and every limit, and a held-out policy is a combination that it never saw.
    pair = 2 * WITHIN.index(within) + OVER.index(over)
    return (TOPICS.index(topic) + LIMITS.index(limit)) % 4 == pair


_ORDER_IDS: dict[str, list[str]] = {"train": [], "heldout": []}
for _number in range(10_000):
    _ORDER_IDS["heldout" if _is_heldout_order(f"{_number:04d}") else "train"].append(f"{_number:04d}")

_POLICIES: dict[str, dict[str, list[tuple[int, str, str]]]] = {
    "train": {t: [p for p in product(LIMITS, WITHIN, OVER) if not _is_heldout_policy(t, *p)] for t in TOPICS},
    "heldout": {t: [p for p in product(LIMITS, WITHIN, OVER) if _is_heldout_policy(t, *p)] for t in TOPICS},
    "shifted": {t: list(product(SHIFTED_LIMITS, WITHIN, OVER)) for t in TOPICS},
}

ENVIRONMENT = Environment(
    name="support_desk",
    factory=SupportDesk,
    instructions="You are the support desk. Look up the order, read the policy, then decide once.",
    splits=SPLITS,
)
