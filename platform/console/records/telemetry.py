"""Pages of what was observed: runs as conversations, calls, signals, captures that were lost."""

from dataclasses import dataclass
from typing import Any

from django.contrib.admin import SimpleListFilter
from django.db.models import OuterRef, Prefetch, QuerySet, Subquery
from django.http import HttpRequest

from console import scope
from console.conversation import Message, answer_message, request_messages, since
from console.links import url_of
from console.records.base import (
    STATE_LABELS,
    Fact,
    ProjectFilter,
    RecordAdmin,
    clipped,
    column,
    is_uuid,
    moment,
    pretty,
    seconds,
    short,
    when,
)
from learning.models import Episode
from release.models import ModelVersion
from telemetry.bodies import bodies_of
from telemetry.models import Call, CallOutcome, CaptureLoss, Run, Signal, Step
from telemetry.shedding import Shed

LINK_REASONS = {
    "named": "the caller named the run",
    "opening": "no earlier answer is in the request, so it opens a run",
    "echo": "the request repeats the previous answer",
    "echo_ambiguous": "the request repeats an answer that several runs share",
    "continued": "the request names the response that it continues",
    "repeat": "the history was cut or rewritten, and still ends with this run's last answer",
    "trace": "nothing but the caller's trace joins it",
    "retry": "the SDK sent the same request again",
    "single": "a call without messages, which nothing continues",
    "orphan": "the request holds answers that did not come through here",
}
"""Why a step stands where it does, in words; unknown reasons are shown as they are."""

LOSS_REASONS = {
    Shed.BODY: "the spool was nearly full, so bodies were left out",
    Shed.PASS_THROUGH: "the spool was nearly full, so calls that no dialect reads were left out",
    Shed.FULL: "the spool was full",
    Shed.WRITE_FAILED: "the disk refused the write",
    "missing": "not in the spool, and nothing says why",
    "damaged": "unreadable bytes in the spool",
    "torn": "cut off at the end of the spool",
    "unknown_project": "its key is not in this database",
    "malformed": "values that no gateway writes",
    "refused": "the database refused it",
}
"""Why something could not be kept, in words; unknown reasons are shown as they are."""


@dataclass(frozen=True)
class Turn:
    """One step of a run, ready to be read."""

    step: Step
    why: str
    said: list[Message]
    """What is new in this request: the parent step has shown the rest."""
    answer: Message | None
    call: Call | None
    """The call whose answer the agent went on with."""
    attempts: int
    model: str
    took: str
    signals: list[Signal]


def turns_of(run: Run) -> list[Turn]:
    """A run as a conversation, in six queries."""
    steps = list(
        run.steps.order_by("index").prefetch_related(Prefetch("calls", Call.objects.order_by("started_at")))
    )
    shown = {step.pk: _answering(list(step.calls.all())) for step in steps}
    bodies = bodies_of(run.project_id, [call.pk for call in shown.values() if call])
    signals = list(run.signals.exclude(step=None).order_by("observed_at"))
    versions = version_names([call for step in steps for call in step.calls.all()])
    seen: dict[Any, int] = {}
    turns = []
    for step in steps:
        call = shown[step.pk]
        body = bodies.get(call.pk) if call else None
        messages = request_messages(body.request, call.dialect) if call and body else []
        answer = answer_message(body.response, call.dialect) if call and body else None
        turns.append(
            Turn(
                step=step,
                why=LINK_REASONS.get(step.reason, step.reason),
                said=since(messages, seen[step.parent_id]) if step.parent_id in seen else messages,
                answer=answer,
                call=call,
                attempts=len(step.calls.all()),
                model=served_by(call, versions) if call else "",
                took=seconds(call.started_at, call.ended_at) if call else "",
                signals=[signal for signal in signals if signal.step == step.index],
            )
        )
        seen[step.pk] = len(messages) + 1
    return turns


def _answering(calls: list[Call]) -> Call | None:
    """Of the attempts at one step, the last whole one, or the last."""
    complete = [call for call in calls if call.outcome == CallOutcome.COMPLETE]
    return next(iter([*reversed(complete), *reversed(calls)]), None)


def version_names(calls: list[Call]) -> dict[Any, str]:
    """Names of the model versions that answered these calls, in one query."""
    wanted = {call.model_version_id for call in calls if call.model_version_id}
    return {row.pk: str(row) for row in ModelVersion.objects.filter(pk__in=wanted)} if wanted else {}


def served_by(call: Call, versions: dict[Any, str]) -> str:
    """Who answered, as a person says it: `support-desk v2 (canary)` or the upstream's own model name."""
    name = versions.get(call.model_version_id) or call.model_served or call.model_requested or "unknown model"
    return f"{name} (canary)" if call.is_canary else name


class RunAdmin(RecordAdmin):
    """Runs: one execution of the customer's agent each."""

    detail_template = "console/run.html"
    started = when("started_at", "Started")
    list_display = (
        "started",
        "task",
        "model_alias",
        "step_count",
        "call_count",
        "reward",
        "certainty",
        "state_label",
        "named",
    )
    list_filter = (ProjectFilter, "state", "model_alias")
    search_fields = ("name", "task_key", "id")
    search_help_text = "run id, the caller's own name, or task"
    ordering = ("-started_at",)

    def get_queryset(self, request: HttpRequest) -> Any:
        latest = Episode.objects.filter(run_id=OuterRef("pk")).order_by("-run_revision", "-created_at")
        rows = super().get_queryset(request)
        return rows.annotate(latest_reward=Subquery(latest.values("reward")[:1]))

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> Any:
        if is_uuid(search_term):
            return queryset.filter(pk=search_term), False
        return super().get_search_results(request, queryset, search_term)

    @column("Task")
    def task(self, row: Run) -> str:
        return clipped(row.task_key) or "-"

    @column("Reward", ordering="latest_reward")
    def reward(self, row: Any) -> str:
        return "-" if row.latest_reward is None else f"{row.latest_reward:+.2f}"

    @column("Confidence", ordering="confidence")
    def certainty(self, row: Run) -> str:
        return f"{row.confidence:.0%}"

    @column("State", label=STATE_LABELS, ordering="state")
    def state_label(self, row: Run) -> str:
        return row.state

    @column("Name")
    def named(self, row: Run) -> str:
        return clipped(row.name) or short(row.pk)

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("State", row.state),
            Fact("Reopened by a late call", moment(row.reopened_at) if row.reopened_at else ""),
            Fact("Signals may change until", moment(row.matures_at) if row.matures_at else ""),
            *_parent(row),
            Fact("Started", moment(row.started_at)),
            Fact("Duration", seconds(row.started_at, row.latest_call_at)),
            Fact("Project", row.project.name),
            Fact("Model asked for", row.model_alias),
            Fact("Task", row.task_key),
            Fact("Steps", f"{row.step_count} in {row.call_count} calls"),
            Fact("Confidence", f"{row.confidence:.0%} (the lowest of its links)"),
            Fact("Caller's name", row.name),
            Fact("Run id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        episodes = (
            Episode.objects.filter(run_id=row.pk).select_related("reward_spec").order_by("-run_revision")
        )
        return {
            "title": f"Run {clipped(row.name) or short(row.pk)}",
            "turns": turns_of(row),
            "children": [
                (child, url_of(Run, child.pk))
                for child in Run.objects.filter(parent_step__run=row).order_by("started_at")
            ],
            "signals": row.signals.select_related("api_key").order_by("observed_at"),
            "episodes": [(episode, url_of(Episode, episode.pk)) for episode in episodes],
            "reward": row.latest_reward,
        }


def _parent(run: Run) -> list[Fact]:
    step = run.parent_step
    if step is None:
        return []
    return [
        Fact("Sub-agent of", f"run {short(step.run_id)}, step {step.index}", href=url_of(Run, step.run_id))
    ]


class CallAdmin(RecordAdmin):
    """Calls: one exchange through the gateway each."""

    detail_template = "console/call.html"
    started = when("started_at", "Started")
    list_display = (
        "started",
        "path",
        "model_requested",
        "model_served",
        "outcome_label",
        "status_code",
        "tokens",
        "took",
        "streamed",
    )
    list_filter = (ProjectFilter, "outcome", "is_canary", "stream")
    search_fields = ("id",)
    search_help_text = "call id, response id or run id"
    ordering = ("-started_at",)

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> Any:
        if is_uuid(search_term):
            return queryset.filter(pk=search_term) | queryset.filter(step__run=search_term), False
        return (queryset.filter(response_id=search_term) if search_term else queryset), False

    @column("Outcome", label=STATE_LABELS, ordering="outcome")
    def outcome_label(self, row: Call) -> str:
        return row.outcome

    @column("Tokens in / out")
    def tokens(self, row: Call) -> str:
        return "-" if row.prompt_tokens is None else f"{row.prompt_tokens:,} / {row.completion_tokens or 0:,}"

    @column("Took")
    def took(self, row: Call) -> str:
        return seconds(row.started_at, row.ended_at) or "-"

    @column("Stream", ordering="stream")
    def streamed(self, row: Call) -> str:
        return "stream" if row.stream else "whole"

    def facts(self, row: Any) -> list[Fact]:
        run = row.step.run_id if row.step else None
        return [
            Fact("Outcome", row.outcome),
            Fact("HTTP status", row.status_code),
            Fact("Started", moment(row.started_at)),
            Fact("First byte after", seconds(row.started_at, row.first_byte_at)),
            Fact("Took", seconds(row.started_at, row.ended_at)),
            Fact("Run", run or "not stitched yet", href=url_of(Run, run) if run else "", mono=bool(run)),
            Fact("Step", row.step.index if row.step else ""),
            Fact("Answered by", served_by(row, version_names([row]))),
            Fact("Asked for", row.model_requested),
            Fact("Tokens in / out", self.tokens(row)),
            Fact("Cost", "" if row.cost_microusd is None else f"{row.cost_microusd / 1e6:.6f} USD"),
            Fact("Sent on", f"{row.attempts} times" if row.attempts > 1 else ""),
            Fact("Content", "left out: the spool was nearly full" if row.is_shed else ""),
            Fact("Finish reason", row.finish_reason),
            Fact("Endpoint", f"{row.method} {row.path}", mono=True),
            Fact("Retry number", row.retry_count),
            Fact("API key", row.api_key),
            Fact("Response id", row.response_id, mono=True),
            Fact("Capture position", f"{row.process} / {row.boot} / {row.sequence}", mono=True),
            Fact("Call id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        body = bodies_of(row.project_id, [row.pk]).get(row.pk)
        return {
            "title": f"Call {short(row.pk)}",
            "said": request_messages(body.request, row.dialect) if body else [],
            "answer": answer_message(body.response, row.dialect) if body else None,
            "has_body": body is not None,
        }


class JoinedFilter(SimpleListFilter):
    """Signals that found what they speak of, and those that never did."""

    title = "what it speaks of"
    parameter_name = "joined"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("no", "Never found its call"), ("yes", "Found its run")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() in {"yes", "no"}:
            return queryset.filter(run__isnull=self.value() == "no")
        return queryset


class SignalAdmin(RecordAdmin):
    """Signals: what was observed about a run, from whom and when."""

    observed, received = when("observed_at", "Observed"), when("received_at", "Received")
    list_display = ("received", "name", "shown_value", "source", "found", "about", "observed")
    list_filter = (JoinedFilter, ProjectFilter, "name", "source")
    search_fields = ("target", "name")
    search_help_text = "run, call or response id it was sent for, or the signal's name"
    ordering = ("-received_at",)

    @column("Value")
    def shown_value(self, row: Signal) -> str:
        return clipped(pretty(row.value), 60)

    @column("Speaks of", label={"a run": "success", "nothing yet": "warning"})
    def found(self, row: Signal) -> str:
        return "a run" if row.run_id else "nothing yet"

    @column("Sent for")
    def about(self, row: Signal) -> str:
        return f"{row.target_type.removesuffix('_id')} {short(row.target)}"

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Sent for", f"{row.target_type} {row.target}", mono=True),
            Fact(
                "Run",
                row.run_id or "never found: no call with this id has arrived",
                href=url_of(Run, row.run_id) if row.run_id else "",
                mono=bool(row.run_id),
            ),
            Fact("Step", "the whole run" if row.step is None else row.step),
            Fact("Source", row.source),
            Fact("Sent with", row.api_key),
            Fact("Observed", moment(row.observed_at)),
            Fact("Received", moment(row.received_at)),
            Fact("Idempotency key", row.idempotency_key, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {"title": f"Signal {row.name}", "documents": [("Value", pretty(row.value))]}


class CaptureLossAdmin(RecordAdmin):
    """Losses belong to the installation's gateways, not to a project: everybody who signs in may see the
    count."""

    recorded = when("recorded_at", "Recorded")
    list_display = ("recorded", "reason_label", "lost", "process", "boot", "first_sequence", "last_sequence")
    list_filter = ("reason",)
    ordering = ("-recorded_at",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        scope.viewer(request)
        return CaptureLoss.objects.all()

    @column("Why", ordering="reason")
    def reason_label(self, row: CaptureLoss) -> str:
        return LOSS_REASONS.get(row.reason, row.reason)

    @column("Records", ordering="count")
    def lost(self, row: CaptureLoss) -> int:
        return row.count

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Records", row.count),
            Fact("Why", self.reason_label(row)),
            Fact("Reason", row.reason, mono=True),
            Fact("Recorded", moment(row.recorded_at)),
            Fact("Gateway process", row.process, mono=True),
            Fact("Boot", row.boot, mono=True),
            Fact("Sequence numbers", f"{row.first_sequence} to {row.last_sequence}", mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        what = "kept without content" if row.reason == Shed.BODY else "lost"
        return {"title": f"{row.count} record{'s' if row.count != 1 else ''} {what}: {row.reason}"}
