"""Spans of the customer's instrumentation: each finds the run of the calls it belongs to, and is read here.

They arrive through the spool (`telemetry.ingest`), in any order, before or after the calls, and mostly the innermost
first. The rule is `telemetry.span_linking.decide`; this module brings it what the spans themselves prove, and writes
what it says. A run's episodes do not rest on spans, so a span that joins is no new revision of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Q

from telemetry.locks import lock_project
from telemetry.models import Call, Run, Span, SpanLink
from telemetry.otlp_conventions import SpanKind
from telemetry.span_linking import Node, Place, decide

BATCH = 1000
MAX_RELATIVES = 20_000
"""Other spans of a batch's traces that are looked at; of longer traces the latest."""
MAX_EQUALS = 1000
"""Calls that are looked at because they hold one of a batch's tool call ids: some models count from 0 each time."""
FIRST_PAUSE = timedelta(seconds=2)
LONGEST_PAUSE = timedelta(hours=6)
PATIENCE = timedelta(days=7)
"""How long a span waits for its run; after that it stays listed as unjoined."""


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One span, as the others read it."""

    id: UUID
    trace_id: str
    span_id: str
    parent_span_id: str
    run_id: UUID | None
    step_index: int | None
    link: str
    """A `telemetry.models.SpanLink`: why it stands there, or why in no run."""
    kind: str
    name: str
    service: str
    agent_name: str
    tool_name: str
    tool_call_id: str
    arguments: str
    result: str
    conversation_id: str
    response_id: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    error: str
    attributes: dict[str, Any]
    started_at: datetime
    ended_at: datetime
    received_at: datetime


_COLUMNS = (
    "id", "trace_id", "span_id", "parent_span_id", "run_id", "step__index", "link", "kind", "name", "service",
    "agent_name", "tool_name", "tool_call_id", "arguments", "result", "conversation_id", "response_id", "model",
    "prompt_tokens", "completion_tokens", "error", "attributes", "started_at", "ended_at", "received_at",
)  # fmt: skip


def due_projects(*, now: datetime) -> list[UUID]:
    """Projects with spans whose run is to be looked for."""
    due = Span.objects.filter(next_try_at__lte=now)
    return list(due.order_by("project_id").values_list("project_id", flat=True).distinct())


def join_pending(*, project_id: UUID, now: datetime) -> int:
    """Join the project's spans that are due to the runs that exist by now; return how many found theirs.

    What is not found is looked for again after a pause as long as it has waited already: a span of a system that
    never calls a model costs a dozen looks, and not one with every call that arrives."""
    joined = 0
    while True:
        with transaction.atomic():
            lock_project(project_id)
            due = Span.objects.filter(project_id=project_id, next_try_at__lte=now)
            ids = list(due.order_by("next_try_at", "id").values_list("id", flat=True)[:BATCH])
            joined += _join(project_id, ids, now)
        if len(ids) < BATCH:
            return joined


def spans_of(project_id: UUID, run_id: UUID) -> list[SpanRow]:
    """The spans of a run of the project, in the order in which they began by their senders' clocks."""
    rows = Span.objects.filter(project_id=project_id, run_id=run_id).order_by("started_at", "id")
    return [SpanRow(*row) for row in rows.values_list(*_COLUMNS)]


def unjoined(project_id: UUID, *, limit: int = 100) -> list[SpanRow]:
    """Spans that stand in no run, newest first; each says why."""
    rows = Span.objects.filter(project_id=project_id, run=None).order_by("-received_at", "-id")
    return [SpanRow(*row) for row in rows.values_list(*_COLUMNS)[:limit]]


@dataclass(frozen=True, slots=True)
class _Loose:
    """A span that stands in no run yet, with what it says of where it belongs."""

    node: Node
    stored_at: datetime
    api_key_id: UUID
    run_name: str
    response_id: str
    tool_call_id: str
    tool_name: str


def _join(project_id: UUID, due: Sequence[UUID], now: datetime) -> int:
    if not due:
        return 0
    placed, loose = _relatives(project_id, due)
    proofs = _proofs(project_id, loose)
    traces = {span.node.trace_id for span in loose}
    proven = [replace(span.node, place=proofs.get(span.node.id)) for span in loose]
    places = proofs | decide([*placed, *proven], _runs_of_traces(project_id, traces))
    asked = set(due)
    found = [span for span in loose if places[span.node.id].run_id]
    _write(
        found + [span for span in loose if not places[span.node.id].run_id and span.node.id in asked],
        places,
        now,
    )
    return len(found)


def _relatives(project_id: UUID, due: Sequence[UUID]) -> tuple[list[Node], list[_Loose]]:
    """All spans of the traces of those that are due: the ones that have their run, and the ones that have not."""
    traces = Span.objects.filter(id__in=due).values("trace_id")
    related = (
        Span.objects.filter(project_id=project_id, trace_id__in=traces).exclude(id__in=due).order_by("-id")
    )
    columns = (
        "id", "trace_id", "span_id", "parent_span_id", "kind", "run_id", "step_id", "link", "stored_at",
        "api_key_id", "run_name", "response_id", "tool_call_id", "tool_name",
    )  # fmt: skip
    rows = [
        *Span.objects.filter(id__in=due).values_list(*columns),
        *related.values_list(*columns)[:MAX_RELATIVES],
    ]
    placed, loose = [], []
    for span_id, trace, span, parent, kind, run_id, step_id, link, *rest in rows:
        place = Place(SpanLink(link), run_id, step_id) if run_id else None
        node = Node(span_id, trace, span, parent, SpanKind(kind), place)
        if place:
            placed.append(node)
        else:
            loose.append(_Loose(node, *rest))
    return placed, loose


def _proofs(project_id: UUID, loose: Sequence[_Loose]) -> dict[UUID, Place]:
    """Where spans stand by what they say themselves: the most exact of it counts."""
    named = _named(project_id, {span.run_name for span in loose} - {""})
    responses = _responses(project_id, {span.response_id for span in loose} - {""})
    asked = _asked(project_id, loose)
    proofs = {}
    for span in loose:
        place = (
            responses.get(span.response_id)
            or asked.place_of(span)
            or named.get((span.api_key_id, span.run_name))
            or named.get((None, span.run_name))
        )
        if place:
            proofs[span.node.id] = place
    return proofs


def _named(project_id: UUID, names: set[str]) -> dict[tuple[UUID | None, str], Place]:
    """By API key and name; by None and id, because a caller may send back the id that an answer told it."""
    if not names:
        return {}
    ids = {name for name in names if _is_run_id(name)}
    runs = Run.objects.filter(Q(name__in=names) | Q(id__in=ids), project_id=project_id)
    found: dict[tuple[UUID | None, str], Place] = {}
    for run_id, key_id, name in runs.values_list("id", "api_key_id", "name"):
        place = Place(SpanLink.NAMED, run_id)
        found |= {(key_id, name): place, (None, str(run_id)): place}
    return found


def _responses(project_id: UUID, response_ids: set[str]) -> dict[str, Place]:
    if not response_ids:
        return {}
    calls = Call.objects.filter(project_id=project_id, response_id__in=response_ids, step__isnull=False)
    latest_first = calls.order_by("-started_at", "-id")  # so that the first one stays
    return {
        response_id: Place(SpanLink.RESPONSE, run_id, step_id)
        for response_id, run_id, step_id in latest_first.values_list("response_id", "step__run_id", "step_id")
    }


@dataclass(frozen=True, slots=True)
class _Asked:
    """The calls that asked for tool calls: by the tool call's id, the trace of the call and where it stands."""

    calls: Mapping[str, Sequence[tuple[str, str, Place]]]
    """Trace, tool and place."""
    is_all: bool
    """There are no others with these ids."""

    def place_of(self, span: _Loose) -> Place | None:
        """The only place that asked for it; where there are several, the only one that asked for the span's tool, and
        if need be within its trace. Several steps of one run leave the step open."""
        calls = self.calls.get(span.tool_call_id, ())
        if not self.is_all:
            calls = [call for call in calls if call[0] == span.node.trace_id]
        if len(calls) > 1 and span.tool_name:
            calls = [call for call in calls if call[1] == span.tool_name]
        if len({place.run_id for *_, place in calls}) > 1:
            calls = [call for call in calls if call[0] == span.node.trace_id]
        places = {place for *_, place in calls}
        runs = {place.run_id for place in places}
        if len(runs) != 1:
            return None
        return next(iter(places)) if len(places) == 1 else Place(SpanLink.TOOL_CALL, next(iter(runs)))


def _asked(project_id: UUID, loose: Sequence[_Loose]) -> _Asked:
    wanted = {span.tool_call_id for span in loose} - {""}
    if not wanted:
        return _Asked({}, is_all=True)
    calls = Call.objects.filter(
        project_id=project_id, tool_call_count__gt=0, tool_call_ids__overlap=list(wanted), step__isnull=False
    ).values_list("tool_call_ids", "tool_names", "trace_id", "step__run_id", "step_id")
    rows = list(calls[: MAX_EQUALS + 1])
    is_all = len(rows) <= MAX_EQUALS
    if not is_all:
        rows = list(calls.filter(trace_id__in={span.node.trace_id for span in loose}))
    found: dict[str, list[tuple[str, str, Place]]] = {}
    for ids, tools, trace_id, run_id, step_id in rows:
        place = Place(SpanLink.TOOL_CALL, run_id, step_id)
        for tool_call_id, tool in zip(ids, tools, strict=True):
            if tool_call_id in wanted:
                found.setdefault(tool_call_id, []).append((trace_id, tool, place))
    return _Asked(found, is_all)


def _runs_of_traces(project_id: UUID, traces: set[str]) -> dict[str, set[UUID]]:
    calls = Call.objects.filter(project_id=project_id, trace_id__in=traces, step__isnull=False)
    found: dict[str, set[UUID]] = {}
    for trace_id, run_id in calls.order_by().values_list("trace_id", "step__run_id").distinct():
        found.setdefault(trace_id, set()).add(run_id)
    return found


def _write(spans: Sequence[_Loose], places: Mapping[UUID, Place], now: datetime) -> None:
    written = [places[span.node.id] for span in spans]
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE telemetry_span AS span SET run_id = new.run_id, step_id = new.step_id, link = new.link,"
            " next_try_at = new.next_try_at"
            " FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::timestamptz[])"
            " AS new (id, run_id, step_id, link, next_try_at) WHERE span.id = new.id",
            [
                [span.node.id for span in spans],
                [place.run_id for place in written],
                [place.step_id for place in written],
                [str(place.link) for place in written],
                [
                    None if place.run_id else _next_try_at(span.stored_at, now)
                    for span, place in zip(spans, written, strict=True)
                ],
            ],
        )


def _next_try_at(stored_at: datetime, now: datetime) -> datetime | None:
    waited = now - stored_at
    return None if waited > PATIENCE else now + min(max(waited, FIRST_PAUSE), LONGEST_PAUSE)


def _is_run_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
