"""From what was measured to what is published: the targets of the gateway, and how far it is ahead of whom.

Pure: no process, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.load import Outcome
from tests.benchmarks.publish import Grid, Line, Row

CONNECTIONS = (1, 8, 32)
INTERPRETED = ("Python", "Node")
MODES = {False: "whole answers", True: "streams"}
OPEN_RATE = 500.0
"""Requests per second at which added latency is measured."""

Load = tuple[bool, int]
"""Whether the answers are streams, and over how many connections."""


@dataclass(kw_only=True)
class Figures:
    """What was measured of one gateway; None where it could not be."""

    name: str
    language: str = ""
    closed: dict[Load, Outcome] = field(default_factory=dict)
    added_p50_ms: float | None = None
    added_p99_ms: float | None = None
    kept_per_second: float | None = None
    """Answers per second when OPEN_RATE were asked for."""
    added_first_byte_ms: float | None = None
    cpu_per_request_us: float | None = None
    """Over eight connections, whole answers."""
    cpu_per_chunk_us: float | None = None
    memory_mb: float | None = None
    """Resident, after the closed loops."""
    sent: int = 0
    sampled: int = 0
    sampled_exact: int = 0
    errors: int = 0
    problem: str = ""
    """Why figures are missing or do not count."""

    def count(self, outcome: Outcome) -> Outcome:
        """Add what every outcome brings; returns it."""
        self.sent += outcome.sent
        self.sampled += outcome.sampled
        self.sampled_exact += outcome.sampled_exact
        self.errors += outcome.errors
        if outcome.errors and not self.problem:
            self.problem = f"wrong answers: {outcome.first_error}"[:160].replace("|", "/").replace("\n", " ")
        return outcome


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the spool held after requests of ours, and how fast ingest emptied it."""

    sent: int
    incomplete: int
    """Requests without a begin and an end record, or records without a request."""
    gaps: int
    bytes_per_call: float
    drained_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class Soak:
    """A long run of one process."""

    requests: int
    errors: int
    early_requests: int
    early_memory_mb: float
    late_memory_mb: float
    per_second: float
    kept: Kept


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """One and two processes, with everything free to use both cores."""

    one_per_second: float
    two_per_second: float
    ceiling: float
    """The gain that these cores allow: load and upstream take their share of them."""
    kept: Kept


def rows(
    ours: Figures, peers: Sequence[Figures], kept: Kept, scaling: Scaling | None, soak: Soak | None
) -> list[Row]:
    """Every figure that has a target. Without `scaling` a row says that it failed; `soak` may have been left out.

    Raises KeyError when `ours` was not measured under every load."""
    table = [
        _at_least(
            "captured requests on one core, 32 connections",
            round(ours.closed[False, 32].per_second),
            "/s",
            4000,
        ),
        _at_most(f"added p50 at {OPEN_RATE:.0f} requests/s", ours.added_p50_ms, "ms", 0.35),
        _at_most(f"added p99 at {OPEN_RATE:.0f} requests/s", ours.added_p99_ms, "ms", 3),
        _at_most("added time to first byte of a stream, p50", ours.added_first_byte_ms, "ms", 0.5),
        _at_most("processor time for one chunk of a stream", ours.cpu_per_chunk_us, "us", 50),
        _at_most("memory after the closed loops", ours.memory_mb, "MB", 150),
        _at_most(f"wrong answers among {ours.sent:,}", ours.errors, "", 0),
        _at_most(
            f"bodies that differ from the upstream's by a byte, in a sample of {ours.sampled:,}",
            ours.sampled - ours.sampled_exact,
            "",
            0,
        ),
    ]
    for peer in peers:
        if peer.language != "C":
            table += _leads(ours, peer)
    table += _kept_rows("", kept)
    table.append(Row("spool, for one call", round(kept.bytes_per_call), "bytes", "", True))
    captured = round(ours.closed[False, 32].per_second)
    table.append(_at_least("ingest on one core, calls", kept.drained_per_second, "/s", 2 * captured))
    if scaling:
        table += _scaling_rows(scaling)
    else:
        table.append(Row("2 processes on one port: could not be measured", None, "/s", "measured", False))
    if soak:
        table += _soak_rows(soak)
    return table


def grids(figures: Sequence[Figures]) -> list[Grid]:
    """Everything that was measured of every gateway, without judgement."""
    closed = [
        Grid(
            f"{mode}, closed loop",
            [
                (f"{connections} conn.: {what}", unit)
                for connections in CONNECTIONS
                for what, unit in (("rate", "/s"), ("p50", "ms"), ("p99", "ms"))
            ],
            [Line(each.name, _closed_values(each, is_stream), each.problem) for each in figures],
        )
        for is_stream, mode in MODES.items()
    ]
    added = Grid(
        "what a gateway adds, and what it takes",
        [
            (f"kept of {OPEN_RATE:.0f}/s", "/s"),
            ("added p50", "ms"),
            ("added p99", "ms"),
            ("added time to first byte", "ms"),
            ("processor time for a request", "us"),
            ("processor time for a chunk", "us"),
            ("memory", "MB"),
            ("wrong answers", ""),
        ],
        [
            Line(
                each.name,
                [
                    each.kept_per_second,
                    each.added_p50_ms,
                    each.added_p99_ms,
                    each.added_first_byte_ms,
                    each.cpu_per_request_us,
                    each.cpu_per_chunk_us,
                    each.memory_mb,
                    each.errors if each.sent else None,
                ],
                each.problem,
            )
            for each in figures
        ],
    )
    return [*closed, added]


def lead(ours: Outcome, theirs: Outcome) -> dict[str, float]:
    """How many times better ours is, by each figure."""
    return {
        "rate": ours.per_second / theirs.per_second if theirs.per_second else float("inf"),
        "p50": theirs.p50_ms / ours.p50_ms,
        "p99": theirs.p99_ms / ours.p99_ms,
    }


def _leads(ours: Figures, peer: Figures) -> list[Row]:
    table = []
    for is_stream, mode in MODES.items():
        what = f"times ahead of {peer.name} ({peer.language}), {mode}"
        if not all((is_stream, connections) in peer.closed for connections in CONNECTIONS):
            table.append(Row(f"{what}: {peer.problem}", None, "", "measured", False))
            continue
        by_figure = {
            (figure, connections): times
            for connections in CONNECTIONS
            for figure, times in lead(
                ours.closed[is_stream, connections], peer.closed[is_stream, connections]
            ).items()
        }
        if peer.language in INTERPRETED:
            table.append(_least(what, by_figure, 4))
        else:
            rates = {key: times for key, times in by_figure.items() if key[0] == "rate"}
            table.append(_least(what, rates, 1 if is_stream else None))
    return table


def _least(what: str, by_figure: Mapping[tuple[str, int], float], target: float | None) -> Row:
    (figure, connections), times = min(by_figure.items(), key=lambda item: item[1])
    name = f"{what}; the least, {figure} at {connections} conn."
    if target is None:
        return Row(name, round(times, 2), "", "", True)
    return _at_least(name, round(times, 2), "", target)


def _kept_rows(when: str, kept: Kept) -> list[Row]:
    return [
        _at_most(
            f"requests{when} without begin and end in the spool, of {kept.sent:,}", kept.incomplete, "", 0
        ),
        _at_most(f"gaps in the spool's sequence numbers{when}", kept.gaps, "", 0),
    ]


def _soak_rows(soak: Soak) -> list[Row]:
    growth = 100 * (soak.late_memory_mb / soak.early_memory_mb - 1)
    when = f" of {soak.requests:,}"
    return [
        Row(f"memory after {soak.early_requests:,} requests", round(soak.early_memory_mb, 1), "MB", "", True),
        Row(
            f"memory after {soak.requests:,} requests",
            round(soak.late_memory_mb, 1),
            "MB",
            "< 150",
            soak.late_memory_mb < 150,
        ),
        _at_most("growth of memory between these", round(growth, 1), "%", 10),
        Row("rate over all of them", round(soak.per_second), "/s", "", True),
        _at_most(f"wrong answers{when}", soak.errors, "", 0),
        *_kept_rows(" of the long run", soak.kept),
    ]


def _scaling_rows(scaling: Scaling) -> list[Row]:
    gain = scaling.two_per_second / scaling.one_per_second
    return [
        Row("1 process, all on both cores", round(scaling.one_per_second), "/s", "", True),
        Row("2 processes on one port, all on both cores", round(scaling.two_per_second), "/s", "", True),
        _at_least("gain of the second process, times", round(gain, 2), "", 1.1),
        Row("gain that is left beside load and upstream, times", round(scaling.ceiling, 2), "", "", True),
        *_kept_rows(" of both processes", scaling.kept),
    ]


def _closed_values(figures: Figures, is_stream: bool) -> list[float | None]:
    values: list[float | None] = []
    for connections in CONNECTIONS:
        outcome = figures.closed.get((is_stream, connections))
        if outcome is None:
            values += [None, None, None]
        else:
            values += [round(outcome.per_second, 1), round(outcome.p50_ms, 3), round(outcome.p99_ms, 3)]
    return values


def _at_least(name: str, value: float | None, unit: str, target: float) -> Row:
    return Row(name, value, unit, f">= {target:,g}", value is not None and value >= target)


def _at_most(name: str, value: float | None, unit: str, target: float) -> Row:
    rounded = None if value is None else round(value, 3)
    return Row(
        name, rounded, unit, f"<= {target:g}" if target else "0", value is not None and value <= target
    )
