"""Limits on what a project or an API key may use in a window of time: pure counting, the time is passed in.

A window begins at a multiple of its length since 1970, so all gateways agree on it without asking each other. Knows
what this process has counted and what it last heard of the others; talking to them is `gateway.limiter`'s business."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Measure(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    """Of prompts and answers, as upstreams report them."""
    MICROUSD = "microusd"
    """Millionths of a US dollar, by the upstream's prices; calls without a price cost nothing here."""
    SIGNALS = "signals"
    """Of feedback; the other three are of calls."""


def in_words(measure: Measure, amount: int, window_s: int) -> str:
    """`100 requests in 60 s`; money in dollars."""
    if measure is Measure.MICROUSD:
        dollars = f"{amount / 1_000_000:.6f}".rstrip("0").rstrip(".")
        return f"{dollars} USD in {window_s} s"
    return f"{amount} {measure} in {window_s} s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """At most `amount` of `measure` in each window."""

    id: UUID
    subject: str
    """`project` or `API key`: whose limit it is, for messages."""
    measure: Measure
    amount: int
    window_s: int

    def __str__(self) -> str:
        """For people and for the header that names a limit: `project: 100 requests in 60 s`."""
        return f"{self.subject}: {in_words(self.measure, self.amount, self.window_s)}"


@dataclass(frozen=True, slots=True)
class Exceeded:
    """Why a call is refused."""

    limit: Limit
    retry_after_s: int
    """Until the window ends, in whole seconds, at least 1."""


@dataclass(slots=True)
class Window:
    """What is known about one limit's current window."""

    number: int
    own: int = 0
    """Counted by this process."""
    others: int = 0
    """The most that was ever heard of all others. Within a window counts only grow, so a smaller number means that
    the store has forgotten, not that less was used."""

    @property
    def used(self) -> int:
        return self.own + self.others


class Counters:
    """The windows of all limits that were ever met here: one small entry for each."""

    def __init__(self) -> None:
        self._windows: dict[UUID, Window] = {}
        self._touched: dict[UUID, Limit] = {}
        """Asked about since they were last exchanged, the longest waiting first."""

    def refuse(
        self, limits: Sequence[Limit], now_s: float, *, counts_as: Measure = Measure.REQUESTS
    ) -> Exceeded | None:
        """The limit that stands in the way for longest; or None, and what asks counts as one request, or one signal.

        Tokens and money are checked against what is spent already: nobody knows what the call will use."""
        exceeded = [limit for limit in limits if self._window(limit, now_s).used >= limit.amount]
        if exceeded:
            worst = max(exceeded, key=lambda limit: _remaining_s(limit, now_s))
            return Exceeded(worst, max(1, math.ceil(_remaining_s(worst, now_s))))
        self._add(limits, counts_as, 1, now_s)
        return None

    def count(self, limits: Sequence[Limit], measure: Measure, amount: int, now_s: float) -> None:
        """Count what came along with something that was let through."""
        self._add(limits, measure, amount, now_s)

    def charge(self, limits: Sequence[Limit], *, tokens: int, microusd: int, now_s: float) -> None:
        """Count what a call has used; it falls into the window in which that became known."""
        self._add(limits, Measure.TOKENS, tokens, now_s)
        self._add(limits, Measure.MICROUSD, microusd, now_s)

    def due(self, now_s: float) -> list[tuple[Limit, Window]]:
        """What is worth telling the others, and asking them about. Windows that are over concern nobody."""
        for limit in list(self._touched.values()):
            if self._windows[limit.id].number != _number(limit, now_s):
                del self._touched[limit.id]
        return [(limit, self._windows[limit.id]) for limit in self._touched.values()]

    def heard(self, limit: Limit, window: Window, *, own: int, others: int) -> None:
        """The others have counted `others` in this window, and know that `own` were counted here."""
        window.others = max(window.others, others)
        if window.own == own and self._windows.get(limit.id) is window:
            self._touched.pop(limit.id, None)

    def _add(self, limits: Iterable[Limit], measure: Measure, amount: int, now_s: float) -> None:
        for limit in limits:
            if limit.measure is measure:
                self._window(limit, now_s).own += amount

    def _window(self, limit: Limit, now_s: float) -> Window:
        number = _number(limit, now_s)
        window = self._windows.get(limit.id)
        if window is None or window.number != number:
            window = self._windows[limit.id] = Window(number)
        self._touched[limit.id] = limit
        return window


def _number(limit: Limit, now_s: float) -> int:
    return int(now_s // limit.window_s)


def _remaining_s(limit: Limit, now_s: float) -> float:
    return limit.window_s - now_s % limit.window_s
