"""The gateway's own numbers, and their form for Prometheus (text format 0.0.4). Counts only; nothing about
content."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from telemetry.models import CallOutcome

Sample = tuple[Mapping[str, str], float]
"""Labels and value."""


class Metrics:
    """Counters since the start of the process; only the event loop writes them."""

    def __init__(self) -> None:
        self.calls = Counter[str](
            {outcome.value: 0 for outcome in CallOutcome if outcome != CallOutcome.GATEWAY_DIED}
        )
        self.refused = Counter[int]()
        self.in_flight = 0
        self.feedback = 0
        self.spans = 0
        self.capture_errors = 0
        """Calls of which something was not captured, for another reason than a full spool."""

    def families(self) -> "list[Family]":
        return [
            Family("calls_total", "Calls relayed, by outcome.", by("outcome", self.calls)),
            Family(
                "refused_total",
                "Requests that the gateway answered with an error itself.",
                by("status", {str(status): count for status, count in self.refused.items()}),
            ),
            Family("feedback_total", "Feedback accepted.", [({}, self.feedback)]),
            Family("spans_total", "Spans of agents' own instrumentation accepted.", [({}, self.spans)]),
            Family(
                "capture_errors_total",
                "Calls of which something could not be captured.",
                [({}, self.capture_errors)],
            ),
            Family("in_flight", "Calls under way.", [({}, self.in_flight)]),
        ]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with its samples; a name that ends in `_total` is a counter, any other a gauge."""

    name: str
    help: str
    samples: Sequence[Sample]


def by(label: str, values: Mapping[str, float]) -> list[Sample]:
    """A sample for each value of one label."""
    return [({label: value}, number) for value, number in sorted(values.items())]


def exposition(families: Iterable[Family]) -> bytes:
    """The text that Prometheus scrapes."""
    return "".join(line for family in families for line in _lines(family)).encode()


def _lines(family: Family) -> Iterator[str]:
    name = f"ratchet_gateway_{family.name}"
    kind = "counter" if name.endswith("_total") else "gauge"
    yield f"# HELP {name} {family.help}\n# TYPE {name} {kind}\n"
    for labels, number in family.samples:
        said = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items())
        yield f"{name}{{{said}}} {number:.12g}\n" if said else f"{name} {number:.12g}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
