"""Circuit breakers: which destinations are ill at the moment, so that calls go to others first.

Pure state, the time is passed in. Counts what `gateway.relay` reports (what is a failure is its decision) and orders
a plan of `gateway.routing`; never takes a destination out of it, so a call is not refused because of a breaker. Each
gateway process learns for itself: an upstream may be out of reach of one machine only."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from gateway.routing import Destination

FAILURES_TO_OPEN = 5
"""In a row. A run of failures needs no window and no minimum of traffic: an upstream that is down opens its breaker
with its fifth call whether calls come by the second or by the hour, one that fails half of its calls within some
sixty, and one that fails one in ten practically never; retries and fallbacks carry those."""
COOL_DOWN_S = 10.0
"""Between opening and the first probe, and from a probe to the next."""


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    """A probe is due, or under way."""


@dataclass(slots=True)
class _Circuit:
    name: str
    failures: int = 0
    """In a row."""
    probe_due_s: float | None = None
    """When one call may try again; None while closed."""
    is_probing: bool = False

    def state(self, now_s: float) -> State:
        if self.probe_due_s is None:
            return State.CLOSED
        return State.HALF_OPEN if self.is_probing or now_s >= self.probe_due_s else State.OPEN


class Breakers:
    """One breaker for each destination that has ever failed. Times are seconds of one monotonic clock."""

    def __init__(self, *, failures_to_open: int = FAILURES_TO_OPEN, cool_down_s: float = COOL_DOWN_S) -> None:
        self._failures_to_open = failures_to_open
        self._cool_down_s = cool_down_s
        self._circuits: dict[UUID | str, _Circuit] = {}

    def order(self, plan: Sequence[Destination], now_s: float) -> list[Destination]:
        """The plan with those at its end whose breaker is open; among them, the one due first goes first."""
        if not self._circuits:
            return list(plan)
        return sorted(plan, key=lambda destination: self._wait_s(destination, now_s))

    def begin(self, destination: Destination, now_s: float) -> None:
        """A call is being sent there. While the breaker is open, this is its probe: others stay away until it has
        ended, or for one more cool-down if nobody says how it ended."""
        circuit = self._circuits.get(destination.key)
        if circuit is not None and circuit.probe_due_s is not None:
            circuit.is_probing = True
            circuit.probe_due_s = now_s + self._cool_down_s

    def succeeded(self, destination: Destination) -> None:
        """It answered: the breaker closes."""
        circuit = self._circuits.get(destination.key)
        if circuit is not None:
            circuit.failures, circuit.probe_due_s, circuit.is_probing = 0, None, False

    def failed(self, destination: Destination, now_s: float) -> None:
        """It did not answer as an upstream in health would."""
        circuit = self._circuits.setdefault(destination.key, _Circuit(destination.name))
        circuit.failures += 1
        # While it is open, only the probe's failure puts the next one off: calls that began before it opened may take
        # minutes to time out, one by one, and would put it off for ever.
        opens = circuit.probe_due_s is None and circuit.failures >= self._failures_to_open
        if opens or circuit.is_probing:
            circuit.probe_due_s = now_s + self._cool_down_s
            circuit.is_probing = False

    def states(self, now_s: float) -> list[tuple[UUID | str, str, State]]:
        """Key, name and state of every destination that has ever failed, for /metrics."""
        return [(key, circuit.name, circuit.state(now_s)) for key, circuit in self._circuits.items()]

    def _wait_s(self, destination: Destination, now_s: float) -> float:
        circuit = self._circuits.get(destination.key)
        if circuit is None or circuit.probe_due_s is None:
            return 0.0
        return max(0.0, circuit.probe_due_s - now_s)
