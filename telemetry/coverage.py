"""Who gives feedback, and on which runs: coverage by metric and day, and the bias that follows.

Feedback that only some runs get says little about the others. For each feature of a run that is known without feedback,
the share of runs with feedback is compared between those that have the feature and those that have not; where
the difference cannot be chance, a sentence says so. A label of the review stream is no feedback: nobody chose to give
it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from django.db.models import Case, CharField, Count, Exists, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import ExtractHour, TruncDate

from telemetry.metrics import JUDGE_PREFIX, RESERVED
from telemetry.models import Call, CallOutcome, Run, Signal
from telemetry.review import SOURCE

Z = 1.96
"""Of a 95 % interval."""
MIN_RUNS = 20
"""A bucket with fewer runs is shown and not judged."""
MAX_DIFFERENCES = 5
LENGTHS = ((1, "1 step"), (3, "2 to 3 steps"), (7, "4 to 7 steps"), (15, "8 to 15 steps"))
LONGEST = "16 steps or more"


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of some runs have feedback, with the 95 % interval of the share (Wilson)."""

    runs: int
    with_feedback: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.with_feedback / self.runs if self.runs else 0.0

    def __str__(self) -> str:
        return f"{self.share:.0%} ({self.low:.0%} to {self.high:.0%})"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One name of signals on one day, or (no day) in the whole time."""

    name: str
    day: date | None
    rate: Rate


@dataclass(frozen=True, slots=True)
class BucketRow:
    """The runs with one value of one feature, and all others."""

    feature: str
    """`model`, `length`, `error`, `hour` or `canary`."""
    value: str
    rate: Rate
    others: Rate

    @property
    def difference(self) -> float:
        return self.rate.share - self.others.share

    @property
    def is_clear(self) -> bool:
        """Both sides have enough runs, and their intervals do not meet."""
        return (
            min(self.rate.runs, self.others.runs) >= MIN_RUNS
            and not (self.rate.low <= self.others.high and self.others.low <= self.rate.high)
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Coverage:
    """What feedback covers."""

    overall: Rate
    metrics: tuple[MetricRow, ...]
    buckets: tuple[BucketRow, ...]
    sentences: tuple[str, ...]
    """For a person: coverage, then the largest clear differences."""


def coverage(project_id: UUID, since: datetime, until: datetime, *, name: str = "") -> Coverage:
    """Of the project's runs that began in that time; with a `name`, the buckets and sentences are about that metric's
    feedback alone. Three queries."""
    runs = Run.objects.filter(project_id=project_id, started_at__gte=since, started_at__lt=until)
    asked = Q(source__startswith=SOURCE) | Q(source__startswith=JUDGE_PREFIX)
    feedback = Signal.objects.filter(misfit="").exclude(Q(name__in=RESERVED) | asked)
    groups = list(_groups(runs, feedback.filter(name=name) if name else feedback))
    overall = _rate((runs, with_feedback) for _, runs, with_feedback in groups)
    buckets = tuple(_buckets(groups))
    return Coverage(
        overall=overall,
        metrics=tuple(_metrics(runs, feedback)),
        buckets=buckets,
        sentences=tuple(_sentences(overall, buckets, name)),
    )


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, which keeps its word for small counts; (0, 1) for none."""
    if not count:
        return 0.0, 1.0
    share, z2 = hits / count, Z * Z
    middle = share + z2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    scale = 1 + z2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


_Group = tuple[Mapping[str, str], int, int]
"""The features of some runs, how many they are, how many of them have feedback."""


def _groups(runs: "QuerySet[Run]", feedback: "QuerySet[Signal]") -> Iterator[_Group]:
    calls = Call.objects.filter(step__run_id=OuterRef("id"))
    length = Case(
        *(When(step_count__lte=most, then=Value(words)) for most, words in LENGTHS),
        default=Value(LONGEST),
        output_field=CharField(),
    )
    features = ("model_alias", "length", "has_error", "hour", "has_canary")
    rows = (
        runs.annotate(
            length=length,
            hour=ExtractHour("started_at") / 6,
            has_error=Exists(calls.exclude(outcome=CallOutcome.COMPLETE)),
            has_canary=Exists(calls.filter(is_canary=True)),
            has_feedback=Exists(feedback.filter(run_id=OuterRef("id"))),
        )
        .order_by()
        .values(*features)
        .annotate(runs=Count("id"), with_feedback=Count("id", filter=Q(has_feedback=True)))
    )
    for row in rows:
        yield (
            {
                "model": row["model_alias"] or "no model",
                "length": row["length"],
                "error": "a failed call" if row["has_error"] else "no failed call",
                "hour": f"{row['hour'] * 6:02d} to {row['hour'] * 6 + 6:02d} h UTC",
                "canary": "a canary's answer" if row["has_canary"] else "no canary",
            },
            row["runs"],
            row["with_feedback"],
        )


def _metrics(runs: "QuerySet[Run]", feedback: "QuerySet[Signal]") -> Iterator[MetricRow]:
    per_day = dict(
        runs.annotate(day=TruncDate("started_at")).order_by().values_list("day").annotate(Count("id"))
    )
    given = (
        feedback.filter(run__in=runs)
        .annotate(day=TruncDate("run__started_at"))
        .order_by("name", "day")
        .values_list("name", "day")
        .annotate(Count("run_id", distinct=True))
    )
    by_name: dict[str, dict[date, int]] = {}
    for name, day, count in given:
        by_name.setdefault(name, {})[day] = count
    for name, days in by_name.items():
        yield MetricRow(name, None, _rate([(sum(per_day.values()), sum(days.values()))]))
        for day, count in sorted(per_day.items()):
            yield MetricRow(name, day, _rate([(count, days.get(day, 0))]))


def _buckets(groups: Iterable[_Group]) -> Iterator[BucketRow]:
    groups = list(groups)
    seen = {(feature, value) for features, _, _ in groups for feature, value in features.items()}
    for feature, value in sorted(seen):
        inside = [(runs, hits) for features, runs, hits in groups if features[feature] == value]
        outside = [(runs, hits) for features, runs, hits in groups if features[feature] != value]
        yield BucketRow(feature, value, _rate(inside), _rate(outside))


def _rate(counts: Iterable[tuple[int, int]]) -> Rate:
    counted = list(counts)
    runs, hits = sum(runs for runs, _ in counted), sum(hits for _, hits in counted)
    return Rate(runs, hits, *wilson(hits, runs))


def _sentences(overall: Rate, buckets: Iterable[BucketRow], name: str) -> Iterator[str]:
    what = f"feedback on {name}" if name else "feedback"
    if not overall.runs:
        yield "There are no runs in this time."
        return
    yield f"{overall.with_feedback} of {overall.runs} runs have {what}: {overall}."
    clear = [row for row in buckets if row.is_clear]
    if not clear and overall.with_feedback:
        yield "No feature of a run shows that some kinds of runs get more of it than others."
    told: set[str] = set()
    for row in sorted(clear, key=lambda row: -abs(row.difference)):
        if row.feature in told or len(told) == MAX_DIFFERENCES:
            continue
        told.add(row.feature)
        more = "more" if row.difference > 0 else "less"
        yield (
            f"Runs with {row.feature} \u201c{row.value}\u201d get {what} {more} often than others: {row.rate} against"
            f" {row.others}. What feedback says is said {'mostly' if row.difference > 0 else 'hardly'} of them."
        )
