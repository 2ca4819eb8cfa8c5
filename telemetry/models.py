"""Tables of what was observed: calls and their bytes, runs and steps, signals, spool positions, losses.

The bytes lie in partitions, one a month, so that old ones are dropped rather than deleted; `telemetry.periods`
makes and drops them, `telemetry.bodies` reads them."""

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from accounts.models import ApiKey, Project
from kernel.ids import uuid7
from telemetry.metrics import Better, Kind, Level
from telemetry.otlp_conventions import SpanKind


class RunState(models.TextChoices):
    OPEN = "open"
    CLOSED = "closed"


class CallOutcome(models.TextChoices):
    """How an exchange ended, as seen by the gateway."""

    COMPLETE = "complete"
    UPSTREAM_ERROR = "upstream_error"  # the upstream answered with an error status
    UPSTREAM_CUT = "upstream_cut"  # the answer ended before it was whole
    UNREACHABLE = "unreachable"
    CLIENT_GONE = "client_gone"
    GATEWAY_DIED = "gateway_died"  # a begin record with no end record


class Run(models.Model):
    """One execution of the customer's agent: a tree of steps."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="runs")
    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+")
    name = models.CharField(max_length=200, blank=True)
    """The caller's own name for the run, when it gave one."""
    state = models.CharField(max_length=20, choices=RunState, default=RunState.OPEN)
    revision = models.PositiveIntegerField(default=0)
    """Grows whenever calls or signals are added, so that an episode can say which view it froze."""
    task_key = models.CharField(max_length=200, blank=True, db_index=True)
    """What makes two runs attempts at the same task; from the signal `task`."""
    model_alias = models.CharField(max_length=200, blank=True)
    confidence = models.FloatField(default=1.0)
    """The lowest confidence of the run's links, 0 to 1."""
    parent_step = models.ForeignKey(
        "Step", null=True, blank=True, on_delete=models.PROTECT, related_name="child_runs"
    )
    """For a sub-agent's run: the step of another run whose tool call it answered, word for word."""
    step_count = models.PositiveIntegerField(default=0)
    call_count = models.PositiveIntegerField(default=0)
    started_at = models.DateTimeField()
    latest_call_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)
    reopened_at = models.DateTimeField(null=True, blank=True)
    """When a late call last opened the run again after it had been closed."""
    matures_at = models.DateTimeField(null=True, blank=True)
    """When the next of the run's attribution windows closes (`telemetry.windows`); null: all have."""
    is_mature = models.BooleanField(default=True)
    """No signal of the run has a window that is open."""
    built_revision = models.IntegerField(default=-1)
    """The revision that was last built into an episode; a closed run of another revision is due."""

    class Meta:
        indexes = [
            models.Index(fields=["project", "-started_at"]),
            models.Index(fields=["state", "latest_call_at"]),
            models.Index(fields=["matures_at"], name="run_matures", condition=Q(matures_at__isnull=False)),
            models.Index(
                fields=["project", "closed_at"], name="run_closed", condition=Q(closed_at__isnull=False)
            ),
            models.Index(
                fields=["project", "latest_call_at", "id"],
                name="run_to_build",
                condition=Q(state=RunState.CLOSED) & ~Q(revision=F("built_revision")),
            ),
        ]
        constraints = [
            models.CheckConstraint(name="run_state_known", condition=Q(state__in=RunState.values)),
            models.UniqueConstraint(
                name="run_name_unique", fields=["api_key", "name"], condition=~Q(name="")
            ),
        ]


class Step(models.Model):
    """One agent turn of a run. SDK retries of the same request are calls of one step."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="+")
    run = models.ForeignKey(Run, on_delete=models.PROTECT, related_name="steps")
    index = models.PositiveIntegerField()
    parent = models.ForeignKey("self", null=True, on_delete=models.PROTECT, related_name="children")
    confidence = models.FloatField()
    reason = models.CharField(max_length=60)
    """Why the step stands here: a `telemetry.stitching.Reason`."""

    class Meta:
        constraints = [models.UniqueConstraint(name="step_index_unique", fields=["run", "index"])]


class Call(models.Model):
    """One exchange through the gateway."""

    id = models.UUIDField(primary_key=True, editable=False)
    """Minted by the gateway (UUIDv7); answers carry it as `x-ratchet-call-id`."""
    # Indexed below, together with what they are asked for with: each index costs every call that is stored.
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="calls", db_index=False)
    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+", db_index=False)
    step = models.ForeignKey(Step, null=True, on_delete=models.PROTECT, related_name="calls")
    process = models.CharField(max_length=80)
    boot = models.CharField(max_length=40)
    sequence = models.BigIntegerField()
    """Gap-free number of the begin record within process and boot."""
    dialect = models.CharField(max_length=40, blank=True)
    method = models.CharField(max_length=10)
    path = models.CharField(max_length=500)
    model_requested = models.CharField(max_length=200, blank=True)
    model_served = models.CharField(max_length=200, blank=True)
    model_version_id = models.UUIDField(null=True)
    """A plain id: the registry lies above this package."""
    deployment_id = models.UUIDField(null=True)
    is_canary = models.BooleanField(default=False)
    upstream_id = models.UUIDField(null=True)
    """The provider that answered, a plain id as well; null for a policy node of ours, and when nobody answered."""
    attempts = models.PositiveSmallIntegerField(default=1)
    """How often the gateway sent the call on, its own retries and fallbacks counted."""
    stream = models.BooleanField(default=False)
    status_code = models.PositiveSmallIntegerField(null=True)
    outcome = models.CharField(max_length=20, choices=CallOutcome)
    retry_count = models.PositiveSmallIntegerField(default=0)
    run_hint = models.UUIDField(null=True)
    """The run the gateway told the caller; the stitcher decides, and this keeps the told id resolvable."""
    run_name = models.CharField(max_length=200, blank=True)
    """The caller's explicit run id, when it gave one."""
    external_key = models.CharField(max_length=200, blank=True, default="")
    """The project's own key for what the run is about, such as a ticket's number."""
    response_id = models.CharField(max_length=200, blank=True)
    prefix_hash = models.BinaryField(null=True)
    """Rolling hash of all the request's messages; see telemetry.stitching."""
    parent_hashes = ArrayField(models.BinaryField(), default=list)
    """Rolling hashes after each assistant message of the request, longest first: echoes of possible parents."""
    repeat_hashes = ArrayField(models.BinaryField(), default=list)
    """What the request's assistant messages say one by one, newest first."""
    result_hashes = ArrayField(models.BinaryField(), default=list)
    """What tools answered since the last of them: perhaps what a sub-agent said."""
    continues = models.CharField(max_length=200, blank=True, default="")
    """The id of the response that the request names as its past."""
    trace_id = models.CharField(max_length=32, blank=True, default="")
    """The caller's W3C trace, as 32 hexadecimal digits."""
    echo_hash = models.BinaryField(null=True)
    """Rolling hash of the request's messages plus the answer: what the run's next request must begin with."""
    said_hash = models.BinaryField(null=True)
    """What the answer says, whatever it was said to."""
    finish_reason = models.CharField(max_length=40, blank=True)
    prompt_tokens = models.PositiveIntegerField(null=True)
    completion_tokens = models.PositiveIntegerField(null=True)
    cached_tokens = models.PositiveIntegerField(null=True)
    """Of the prompt's tokens, those that the provider had cached."""
    reasoning_tokens = models.PositiveIntegerField(null=True)
    """Of the completion's tokens, those that the model thought with."""
    cost_microusd = models.BigIntegerField(null=True)
    """What the call cost by the upstream's price list, in millionths of a US dollar; null without a price."""
    hidden = ArrayField(models.CharField(max_length=20), default=list)
    """What the gateway asked for on its own account and kept from the caller: `usage`, `token_ids`, `logprobs`."""
    is_shed = models.BooleanField(default=False)
    """Whether bytes of it were left out, because the spool was nearly full."""
    is_opted_out = models.BooleanField(default=False)
    """Nothing may be learnt from it: the caller said so, or its API key did at that time."""
    tool_call_count = models.PositiveSmallIntegerField(default=0)
    tool_call_ids = ArrayField(models.CharField(max_length=200), default=list)
    """What the model called the tool calls of its answer. Unique by intent only: some models repeat themselves."""
    tool_names = ArrayField(models.CharField(max_length=200), default=list)
    """The tool of each of them."""
    started_at = models.DateTimeField()
    first_byte_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    stitched_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["project", "-started_at"]),
            models.Index(fields=["project", "response_id"]),
            models.Index(
                fields=["api_key", "echo_hash"], name="call_echo", condition=Q(echo_hash__isnull=False)
            ),
            models.Index(
                fields=["api_key", "said_hash"], name="call_said", condition=Q(said_hash__isnull=False)
            ),
            models.Index(fields=["trace_id"], name="call_trace", condition=~Q(trace_id="")),
            models.Index(
                fields=["api_key", "prefix_hash"], name="call_prefix", condition=Q(prefix_hash__isnull=False)
            ),
            models.Index(fields=["run_hint"], name="call_told", condition=Q(run_hint__isnull=False)),
            models.Index(
                fields=["project", "external_key"], name="call_external_key", condition=~Q(external_key="")
            ),
            models.Index(
                fields=["model_version_id", "-started_at"],
                name="call_version",
                condition=Q(model_version_id__isnull=False),
            ),
            GinIndex(fields=["tool_call_ids"], name="call_tool_calls", condition=Q(tool_call_count__gt=0)),
            models.Index(fields=["project", "id"], name="call_to_stitch", condition=Q(stitched_at=None)),
        ]
        constraints = [
            models.CheckConstraint(name="call_outcome_known", condition=Q(outcome__in=CallOutcome.values)),
        ]


class CallBody(models.Model):
    """The bytes of an exchange, as `telemetry.chains` writes them; a call without bytes has none.

    Refers to its call, project and base by plain ids: a foreign key would have to be checked for each row, and
    rows go with their partition."""

    pk = models.CompositePrimaryKey("period", "call_id")
    period = models.DateField()
    """First day of the month in which the call began (UTC). Everything that it is rebuilt from is of it too."""
    call_id = models.UUIDField()
    project_id = models.UUIDField()
    base_id = models.UUIDField(null=True)
    """The call whose body must be known to unpack this one."""
    request_sha256 = models.BinaryField(max_length=32)
    """Of the whole request, as the client sent it: what is rebuilt is held against it."""
    response_type = models.CharField(max_length=100, blank=True)
    data = models.BinaryField()


class Piece(models.Model):
    """A long part of requests, stored once for a project and period however often it is sent."""

    pk = models.CompositePrimaryKey("period", "project_id", "sha256")
    period = models.DateField()
    project_id = models.UUIDField()
    sha256 = models.BinaryField(max_length=32)
    data = models.BinaryField()
    """Compressed by itself."""


class Signal(models.Model):
    """One observation about a run, a call or a response: append-only; a later one supersedes, none is edited."""

    id = models.UUIDField(primary_key=True, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="signals")
    api_key = models.ForeignKey(ApiKey, null=True, on_delete=models.PROTECT, related_name="+")
    target_type = models.CharField(max_length=20)
    """`run_id`, `call_id`, `response_id` or `external_key`."""
    target = models.CharField(max_length=200)
    run = models.ForeignKey(Run, null=True, on_delete=models.PROTECT, related_name="signals")
    """Null until the call it speaks of has arrived and been stitched."""
    sought_at = models.DateTimeField(null=True, blank=True)
    """When its run was looked for in vain: until something that it may mean is stitched, nobody looks again."""
    step = models.PositiveIntegerField(null=True)
    name = models.CharField(max_length=100)
    value = models.JSONField()
    source = models.CharField(max_length=200, default="feedback")
    """`feedback`, or `review:<person>`."""
    supersedes = models.UUIDField(null=True, blank=True)
    """The signal of the same name that this one takes the place of, whenever either was observed."""
    misfit = models.CharField(max_length=300, blank=True, default="")
    """Why it does not count: it does not fit its metric, or its idempotency key was used before."""
    idempotency_key = models.CharField(max_length=200, blank=True)
    observed_at = models.DateTimeField()
    received_at = models.DateTimeField()
    """By the clock of the gateway that accepted it."""
    stored_at = models.DateTimeField(db_default=Now())
    """By the database's clock."""

    class Meta:
        indexes = [
            models.Index(fields=["run", "name", "-observed_at"]),
            models.Index(
                fields=["project", "target_type", "target"], name="signal_to_join", condition=Q(run=None)
            ),
            models.Index(
                fields=["project", "id"], name="signal_to_seek", condition=Q(run=None, sought_at=None)
            ),
            models.Index(
                fields=["project", "value"],
                name="signal_key",
                condition=Q(name="external_key", run__isnull=False),
            ),
            models.Index(
                fields=["supersedes"], name="signal_superseded", condition=Q(supersedes__isnull=False)
            ),
            models.Index(fields=["project", "-received_at"], name="signal_misfit", condition=~Q(misfit="")),
        ]
        constraints = [
            models.UniqueConstraint(
                name="signal_idempotent",
                fields=["project", "idempotency_key"],
                condition=~Q(idempotency_key=""),
            ),
            models.CheckConstraint(
                name="signal_target_known",
                condition=Q(target_type__in=["run_id", "call_id", "response_id", "external_key"]),
            ),
        ]


class SpoolPosition(models.Model):
    """How far a spool segment has been ingested; written in the transaction that stores its records."""

    process = models.CharField(max_length=80)
    boot = models.CharField(max_length=40)
    segment = models.PositiveIntegerField()
    offset_bytes = models.BigIntegerField(default=0)
    next_sequence = models.BigIntegerField(default=0)
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="spool_segment_unique", fields=["process", "boot", "segment"])
        ]


class CaptureLoss(models.Model):
    """Something that was seen and could not be kept: a loss is a row, never a silence."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    process = models.CharField(max_length=80)
    boot = models.CharField(max_length=40)
    first_sequence = models.BigIntegerField()
    last_sequence = models.BigIntegerField()
    count = models.BigIntegerField()
    """How many records it was, all or some of this range."""
    reason = models.CharField(max_length=60)
    """A `telemetry.shedding.Shed`; or `missing`, `damaged`, `torn`, `unknown_project`, `malformed`, `refused`."""
    recorded_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "capture losses"
        constraints = [
            models.UniqueConstraint(
                name="loss_unique", fields=["process", "boot", "first_sequence", "reason"]
            ),
        ]


class DeclaredMetric(models.Model):
    """A name of signals that a project has declared, and what fits it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="metrics")
    name = models.CharField(max_length=100)
    kind = models.CharField(max_length=20, choices=[(kind.value, kind.value) for kind in Kind])
    level = models.CharField(max_length=10, choices=[(level.value, level.value) for level in Level])
    better = models.CharField(max_length=10, choices=[(better.value, better.value) for better in Better])
    minimum = models.FloatField(null=True, blank=True)
    maximum = models.FloatField(null=True, blank=True)
    labels = ArrayField(models.CharField(max_length=100), default=list, blank=True)
    window_s = models.PositiveIntegerField(default=0)
    """Seconds after the run's latest call for which a value may still change."""
    description = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="metric_name_unique", fields=["project", "name"]),
            models.CheckConstraint(name="metric_named", condition=~Q(name="")),
            models.CheckConstraint(name="metric_kind_known", condition=Q(kind__in=list(Kind))),
            models.CheckConstraint(name="metric_level_known", condition=Q(level__in=list(Level))),
            models.CheckConstraint(name="metric_better_known", condition=Q(better__in=list(Better))),
        ]

    def __str__(self) -> str:
        return self.name


class SignalSettings(models.Model):
    """How a project takes signals; without a row, as the defaults say."""

    project = models.OneToOneField(
        Project, primary_key=True, on_delete=models.PROTECT, related_name="signal_settings"
    )
    is_strict = models.BooleanField(default=False)
    """Names that are not declared are refused."""
    review_share = models.FloatField(default=0.0)
    """Of the runs that close, the share that is drawn at random for people to label; 0 to 1."""
    review_salt = models.BinaryField(max_length=32)
    """Random and secret: which runs are drawn depends on it, so that nobody who names runs can steer the draw."""
    drawn_until = models.DateTimeField()
    """Runs that closed before have been considered."""
    updated_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "signal settings"
        constraints = [
            models.CheckConstraint(
                name="review_share_is_a_share", condition=Q(review_share__gte=0, review_share__lte=1)
            ),
        ]


class Review(models.Model):
    """A run that was drawn for people to label."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="reviews")
    run = models.OneToOneField(Run, on_delete=models.PROTECT, related_name="review")
    drawn_at = models.DateTimeField()
    labelled_at = models.DateTimeField(null=True, blank=True)
    """When a person labelled it first."""

    class Meta:
        indexes = [
            models.Index(
                fields=["project", "drawn_at"], name="review_waiting", condition=Q(labelled_at=None)
            ),
        ]


class SpanLink(models.TextChoices):
    """Why a span stands in its run, or in none."""

    WAITING = "waiting"  # nothing of ours is known yet that it could belong to
    SEVERAL_RUNS = "several_runs"  # its trace has calls of several runs, and nothing says which it is
    NAMED = "named"  # its sender named the run
    RESPONSE = "response"  # it names the answer of one of the run's calls
    TOOL_CALL = "tool_call"  # it names a tool call that the run's model asked for
    CHILDREN = "children"  # what happened within it belongs to the run
    PARENT = "parent"  # it happened within a span of the run
    TRACE = "trace"  # all calls of its trace are the run's


class Span(models.Model):
    """A span of the customer's own instrumentation: an agent, a tool, a model call, or what lies between them."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="+", db_index=False)
    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="+", db_index=False)
    trace_id = models.CharField(max_length=32)
    span_id = models.CharField(max_length=16)
    parent_span_id = models.CharField(max_length=16, blank=True)
    run = models.ForeignKey(Run, null=True, blank=True, on_delete=models.PROTECT, related_name="spans")
    step = models.ForeignKey(Step, null=True, blank=True, on_delete=models.PROTECT, related_name="spans")
    """The step whose call it is, or whose answer asked for it; null where only the run is known."""
    link = models.CharField(max_length=20, choices=SpanLink, default=SpanLink.WAITING)
    next_try_at = models.DateTimeField(null=True, blank=True, db_default=Now())
    """When its run is looked for again; null once it has one, or has waited for too long."""
    run_name = models.CharField(max_length=200, blank=True)
    """The run that its sender named."""
    kind = models.CharField(max_length=10, choices=[(kind.value, kind.value) for kind in SpanKind])
    name = models.CharField(max_length=200, blank=True)
    service = models.CharField(max_length=200, blank=True)
    agent_name = models.CharField(max_length=200, blank=True)
    tool_name = models.CharField(max_length=200, blank=True)
    tool_call_id = models.CharField(max_length=200, blank=True)
    arguments = models.TextField(blank=True)
    result = models.TextField(blank=True)
    conversation_id = models.CharField(max_length=200, blank=True)
    response_id = models.CharField(max_length=200, blank=True)
    model = models.CharField(max_length=200, blank=True)
    prompt_tokens = models.PositiveIntegerField(null=True, blank=True)
    completion_tokens = models.PositiveIntegerField(null=True, blank=True)
    error = models.CharField(max_length=200, blank=True)
    attributes = models.JSONField(default=dict, blank=True)
    """What else the span says, as much as is kept."""
    started_at = models.DateTimeField()
    """By the sender's clock, as the end is; joining asks neither."""
    ended_at = models.DateTimeField()
    received_at = models.DateTimeField()
    """By the clock of the gateway that accepted it."""
    stored_at = models.DateTimeField(db_default=Now())
    """By the database's clock, as the next try is: clocks of gateways and senders decide nothing."""

    class Meta:
        indexes = [
            models.Index(
                fields=["project", "next_try_at"], name="span_to_join", condition=Q(next_try_at__isnull=False)
            ),
            models.Index(fields=["project", "-received_at"], name="span_unjoined", condition=Q(run=None)),
        ]
        constraints = [
            # A span that is delivered twice is one span.
            models.UniqueConstraint(name="span_unique", fields=["project", "trace_id", "span_id"]),
            models.CheckConstraint(name="span_kind_known", condition=Q(kind__in=list(SpanKind))),
            models.CheckConstraint(name="span_link_known", condition=Q(link__in=SpanLink.values)),
            models.CheckConstraint(
                name="span_link_tells_the_run",
                condition=Q(run=None, link__in=["waiting", "several_runs"])
                | (Q(run__isnull=False) & ~Q(link__in=["waiting", "several_runs"])),
            ),
        ]
