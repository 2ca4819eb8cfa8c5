"""What goes wrong and when: a schedule that follows from a seed, as data. Doing it is `tests.chaos.experiment`'s.

Kills are spread over the whole time at random; stores, disk and clocks fail one after the other, while the kills go
on. One thing is kept apart, because it loses what no design can keep: a gateway is not killed while its disk is full
(its count of losses has nowhere to go)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

GATEWAYS = 2
WARM_UP_S = 1.0
MARGIN_S = 0.5
"""Between two faults that follow each other, and around those that shelter the gateways."""
VICTIMS = ("gateway 0", "gateway 1", "ingest", "gateway 0", "gateway 1", "worker", "ingest")
"""Who is killed, in turn: gateways most, they hold what is not stored yet."""


@dataclass(frozen=True, slots=True)
class Kill:
    """kill -9, and started again at once."""

    target: str
    """`gateway 0`, `gateway 1`, `ingest` or `worker`."""


@dataclass(frozen=True, slots=True)
class Pause:
    """SIGSTOP, and SIGCONT later."""

    target: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Outage:
    """Servers that are stopped for a while."""

    servers: tuple[str, ...]
    """`postgres`, `redis`."""
    seconds: float
    is_crash: bool = False
    """PostgreSQL ends without a checkpoint."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Redis FLUSHALL."""


@dataclass(frozen=True, slots=True)
class DiskFull:
    """The spool's disk has no room for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ClockJump:
    """The wall clock of gateways and ingest jumps, and jumps back later."""

    offset_s: int
    seconds: float


Fault = Kill | Pause | Outage | Flush | DiskFull | ClockJump


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault and its time, in seconds from the start of the traffic."""

    at_s: float
    fault: Fault


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large an experiment is."""

    requests: int
    """At least so many; the traffic goes on until they are reached and the schedule is through."""
    kills: int
    fault_s: float
    """Time over which the kills are spread."""
    clients: int = 48
    think_s: float = 0.15
    spool_disk_bytes: int = 512 << 20
    """Holds what the gateways record while PostgreSQL is away, with room to spare."""
    steps: Sequence[Fault] = field(default_factory=tuple)
    """What fails one after the other beside the kills, in random order."""


HOUR_S = 3600
LONG = Shape(
    requests=100_000,
    kills=110,
    fault_s=540.0,
    steps=(
        Outage(("postgres",), 60.0),
        Outage(("redis",), 60.0),
        Outage(("postgres", "redis"), 10.0),
        Outage(("postgres",), 2.0, is_crash=True),
        Outage(("postgres",), 5.0, is_crash=True),
        *(Flush() for _ in range(5)),
        *(DiskFull(seconds) for seconds in (4.0, 8.0)),
        *(ClockJump(offset, 6.0) for offset in (-HOUR_S, HOUR_S, -40, -3 * 24 * HOUR_S, 35 * 24 * HOUR_S)),
        *(Pause(f"gateway {n}", seconds) for n in range(GATEWAYS) for seconds in (0.5, 3.0)),
        *(Pause(target, 5.0) for target in ("ingest", "worker")),
    ),
)
SHORT = Shape(
    requests=2_000,
    kills=7,
    fault_s=14.0,
    clients=24,
    spool_disk_bytes=96 << 20,
    steps=(
        Outage(("postgres",), 3.0),
        Outage(("redis",), 2.0),
        Flush(),
        DiskFull(1.0),
        ClockJump(HOUR_S, 1.0),
        Pause("gateway 0", 0.5),
        Pause("ingest", 0.5),
    ),
)


def schedule(shape: Shape, seed: int, *, with_clock: bool) -> list[Planned]:
    """Every fault of the experiment, in order of time; the same for the same seed."""
    chance = random.Random(seed)
    steps = [step for step in shape.steps if with_clock or not isinstance(step, ClockJump)]
    chance.shuffle(steps)
    spare_s = shape.fault_s - WARM_UP_S - sum(_duration_s(step) for step in steps)
    gaps = [chance.random() + 0.2 for _ in steps]
    planned: list[Planned] = []
    at_s = WARM_UP_S
    for step, gap in zip(steps, gaps, strict=True):
        at_s += max(0.0, spare_s) * gap / sum(gaps)
        planned.append(Planned(at_s, step))
        at_s += _duration_s(step)
    end_s = max(at_s, shape.fault_s)
    sheltered = [_shelter(one) for one in planned if shelters_gateways(one.fault)]
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(shape.kills)]
    for is_gateway, times in ((True, _outside(sheltered, end_s)), (False, [(WARM_UP_S, end_s)])):
        chosen = [victim for victim in victims if victim.startswith("gateway") == is_gateway]
        planned += [
            Planned(at_s, Kill(victim))
            for victim, at_s in zip(chosen, _spread(len(chosen), times, chance), strict=True)
        ]
    return sorted(planned, key=lambda one: one.at_s)


def _spread(count: int, times: Sequence[tuple[float, float]], chance: random.Random) -> list[float]:
    """One moment in each of `count` equal parts of the times, at random within its part."""
    total_s = sum(end - begin for begin, end in times)
    moments = []
    for number in range(count):
        left_s = (number + chance.random()) * total_s / count
        for begin, end in times:
            if left_s <= end - begin:
                moments.append(begin + left_s)
                break
            left_s -= end - begin
    return moments


def _outside(sheltered: Sequence[tuple[float, float]], end_s: float) -> list[tuple[float, float]]:
    """The times between the shelters, which come in order."""
    times, at_s = [], WARM_UP_S
    for begin, end in sheltered:
        if begin > at_s:
            times.append((at_s, begin))
        at_s = max(at_s, end)
    return [*times, (at_s, max(at_s, end_s))]


def _duration_s(fault: Fault) -> float:
    return getattr(fault, "seconds", 0.0) + MARGIN_S


def shelters_gateways(fault: Fault) -> bool:
    """Whether no gateway may be killed while it lasts."""
    return isinstance(fault, DiskFull)


def _shelter(planned: Planned) -> tuple[float, float]:
    return planned.at_s - MARGIN_S, planned.at_s + _duration_s(planned.fault)
