"""The rule that finds the run of a span: proof first, then what happened within it, then what it happened within, then
the only run of its trace. Pure; `telemetry.spans` brings the spans and writes what is said here.

One trace may hold several runs, as when a job works off a list or an agent calls others, so a shared trace alone
decides only where there is nothing to decide."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from telemetry.models import SpanLink
from telemetry.otlp_conventions import SpanKind

MAX_HOPS = 64
"""How far from a span its ancestors are asked; traces come from strangers and may run in circles."""
PROOFS = frozenset({SpanLink.NAMED, SpanLink.RESPONSE, SpanLink.TOOL_CALL})
"""Links that rest on what the span itself says."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a span stands, and why."""

    link: SpanLink
    run_id: UUID | None = None
    step_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A span as one of its trace."""

    id: UUID
    trace_id: str
    span_id: str
    parent_span_id: str
    kind: SpanKind
    place: Place | None
    """Where it has been found to stand, by a proof at last; None while nobody knows."""


def decide(nodes: Sequence[Node], runs_of_trace: Mapping[str, set[UUID]]) -> dict[UUID, Place]:
    """Where the nodes without a place stand, by id. `runs_of_trace` are the runs whose calls share a trace."""
    by_span = {(node.trace_id, node.span_id): node for node in nodes}
    runs_within = _runs_within(nodes, by_span)
    runs = {trace_id: set(found) for trace_id, found in runs_of_trace.items()}
    for node in nodes:
        if node.place and node.place.run_id:
            runs.setdefault(node.trace_id, set()).add(node.place.run_id)
    return {
        node.id: _place(node, by_span, runs_within, runs.get(node.trace_id, set()))
        for node in nodes
        if node.place is None
    }


def _runs_within(nodes: Sequence[Node], by_span: Mapping[tuple[str, str], Node]) -> dict[UUID, set[UUID]]:
    """For each span without a place the runs that are proven within it. An agent answers for what is within it: the
    run of an agent that a tool calls is not the run of the tool."""
    within: dict[UUID, set[UUID]] = {}
    for node in nodes:
        if node.place is None or node.place.run_id is None or node.place.link not in PROOFS:
            continue
        for ancestor in _ancestors(node, by_span):
            if ancestor.place is not None:
                break
            within.setdefault(ancestor.id, set()).add(node.place.run_id)
            if ancestor.kind is SpanKind.AGENT:
                break
    return within


def _place(
    node: Node,
    by_span: Mapping[tuple[str, str], Node],
    runs_within: Mapping[UUID, set[UUID]],
    runs_of_trace: set[UUID],
) -> Place:
    if run_id := _only(runs_within.get(node.id)):
        return Place(SpanLink.CHILDREN, run_id)
    for ancestor in _ancestors(node, by_span):
        if ancestor.place is not None and ancestor.place.run_id is not None:
            return Place(SpanLink.PARENT, ancestor.place.run_id, ancestor.place.step_id)
        if run_id := _only(runs_within.get(ancestor.id)):
            return Place(SpanLink.PARENT, run_id)
    if run_id := _only(runs_of_trace):
        return Place(SpanLink.TRACE, run_id)
    return Place(SpanLink.SEVERAL_RUNS if runs_of_trace else SpanLink.WAITING)


def _ancestors(node: Node, by_span: Mapping[tuple[str, str], Node]) -> Iterator[Node]:
    """Its parent, that one's parent and so on, as far as they are known."""
    at = node
    for _ in range(MAX_HOPS):
        parent = by_span.get((at.trace_id, at.parent_span_id))
        if parent is None:
            return
        yield parent
        at = parent


def _only(runs: set[UUID] | None) -> UUID | None:
    return next(iter(runs)) if runs and len(runs) == 1 else None
