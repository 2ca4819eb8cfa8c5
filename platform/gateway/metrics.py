"""The gateway's own numbers, and their form for Prometheus (text format 0.0.4). Counts only; nothing about
content."""

from collections import Counter
from collections.abc import Iterator

from telemetry.models import CallOutcome


class Metrics:
    """Counters since the start of the process; only the event loop writes them."""

    def __init__(self) -> None:
        self.calls = Counter[str](
            {outcome.value: 0 for outcome in CallOutcome if outcome != CallOutcome.GATEWAY_DIED}
        )
        self.refused = Counter[int]()
        self.in_flight = 0
        self.feedback = 0
        self.capture_errors = 0
        """Calls of which something was not captured, for another reason than a full spool."""


def exposition(metrics: Metrics, gauges: dict[str, tuple[str, float]]) -> bytes:
    """The text that Prometheus scrapes; `gauges` maps further names to their help and value."""
    return "".join(_lines(metrics, gauges)).encode()


def _lines(metrics: Metrics, gauges: dict[str, tuple[str, float]]) -> Iterator[str]:
    yield from _family("calls_total", "counter", "Calls relayed, by outcome.")
    for outcome, count in sorted(metrics.calls.items()):
        yield f'ratchet_gateway_calls_total{{outcome="{outcome}"}} {count}\n'
    yield from _family("refused_total", "counter", "Requests that the gateway answered with an error itself.")
    for status, count in sorted(metrics.refused.items()):
        yield f'ratchet_gateway_refused_total{{status="{status}"}} {count}\n'
    counters = {
        "feedback_total": ("Feedback accepted.", metrics.feedback),
        "capture_errors_total": ("Calls of which something could not be captured.", metrics.capture_errors),
    }
    for name, (help_text, value) in counters.items():
        yield from _family(name, "counter", help_text)
        yield f"ratchet_gateway_{name} {value}\n"
    for name, (help_text, number) in {"in_flight": ("Calls under way.", metrics.in_flight), **gauges}.items():
        yield from _family(name, "counter" if name.endswith("_total") else "gauge", help_text)
        yield f"ratchet_gateway_{name} {number:.12g}\n"


def _family(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP ratchet_gateway_{name} {help_text}\n# TYPE ratchet_gateway_{name} {kind}\n"
