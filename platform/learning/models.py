"""Tables of learning: reward specs, episodes, dataset snapshots, training jobs, evaluations."""

from django.db import models
from django.db.models import Q

from accounts.models import Project
from kernel.ids import uuid7


class RewardSpecVersion(models.Model):
    """An immutable version of a project's reward document; `learning.rewards.spec` gives it meaning."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="reward_specs")
    name = models.CharField(max_length=100)
    version = models.PositiveIntegerField()
    document = models.JSONField()
    digest = models.CharField(max_length=64)
    """sha256 (hex) of the document's canonical JSON."""
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="reward_spec_unique", fields=["project", "name", "version"])
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class Episode(models.Model):
    """The immutable training view of one revision of a run under one reward spec."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="episodes")
    run_id = models.UUIDField(db_index=True)
    run_revision = models.PositiveIntegerField()
    reward_spec = models.ForeignKey(RewardSpecVersion, on_delete=models.PROTECT, related_name="+")
    task_key = models.CharField(max_length=200, blank=True)
    model_version_ids = models.JSONField(default=list)
    """The model versions that answered in the run, as strings; empty for models that are not ours."""
    step_count = models.PositiveIntegerField()
    reward = models.FloatField(null=True)
    """Null when the outcome is not known: missing is not zero."""
    reward_parts = models.JSONField()
    payload = models.BinaryField()
    """The canonical bytes of a `learning.episodes.document.EpisodeDocument`; the columns repeat parts of it for
    queries."""
    sha256 = models.CharField(max_length=64)
    api_key_id = models.UUIDField(null=True)
    """Whose run it is, a plain id."""
    group = models.CharField(max_length=32, blank=True)
    """Equal for runs of one task; empty without a task key."""
    model_alias = models.CharField(max_length=200, blank=True)
    confidence = models.FloatField(default=1.0)
    """The lowest confidence of the run's links."""
    own_step_count = models.PositiveIntegerField(default=0)
    """Steps of which the payload holds token ids and log-probabilities of a model of ours."""
    is_final = models.BooleanField(default=True)
    """Whether every signal that the reward rests on has its final value."""
    untrainable = models.CharField(max_length=100, blank=True)
    """Why it may not be learnt from: `Reason`s of `learning.episodes.document`, comma-separated; empty when it may."""
    outcome_source = models.CharField(max_length=200, blank=True)
    """Who told the outcome: a signal's source; empty while it is not known."""
    started_at = models.DateTimeField(null=True)
    """When the run began."""
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["project", "-created_at"])]
        constraints = [
            models.UniqueConstraint(name="episode_unique", fields=["run_id", "run_revision", "reward_spec"])
        ]


class EpisodeMarks(models.Model):
    """For which reward spec the runs of a project are marked as built (`Run.built_revision`)."""

    project = models.OneToOneField(Project, on_delete=models.PROTECT, primary_key=True, related_name="+")
    reward_spec = models.ForeignKey(RewardSpecVersion, on_delete=models.PROTECT, related_name="+")


class DatasetSnapshot(models.Model):
    """A frozen, ordered set of episodes, stored as one JSONL file and named by its Merkle root."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="snapshots")
    name = models.CharField(max_length=100)
    reward_spec = models.ForeignKey(RewardSpecVersion, on_delete=models.PROTECT, related_name="+")
    episode_count = models.PositiveIntegerField()
    root = models.CharField(max_length=64)
    """Merkle root (hex) over the episodes' sha256, in file order."""
    file_sha256 = models.CharField(max_length=64)
    location = models.CharField(max_length=500)
    """Of the JSONL file in the object store."""
    manifest = models.JSONField()
    frozen_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(name="snapshot_name_unique", fields=["project", "name"])]

    def __str__(self) -> str:
        return self.name


class JobState(models.TextChoices):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


JOB_OPEN = [JobState.QUEUED, JobState.RUNNING]


class LeasedJob(models.Model):
    """Work that one process at a time may do: a lease that expires and an epoch that fences zombies out."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    state = models.CharField(max_length=20, choices=JobState, default=JobState.QUEUED)
    lease_owner = models.CharField(max_length=100, blank=True)
    lease_epoch = models.PositiveIntegerField(default=0)
    """Grows at every take-over; every write of the holder carries it."""
    lease_expires_at = models.DateTimeField(null=True)
    progress = models.JSONField(default=dict)
    """The latest line of the process's progress file."""
    result = models.JSONField(null=True)
    error = models.TextField(blank=True)
    seed = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        abstract = True


class TrainingJob(LeasedJob):
    """One training of one adapter from one snapshot."""

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="training_jobs")
    model_line = models.CharField(max_length=200)
    """The alias whose next version this job tries to make, e.g. `support-desk`."""
    snapshot = models.ForeignKey(DatasetSnapshot, on_delete=models.PROTECT, related_name="jobs")
    reward_spec = models.ForeignKey(RewardSpecVersion, on_delete=models.PROTECT, related_name="+")
    algorithm = models.CharField(max_length=20)
    base_model = models.CharField(max_length=500)
    base_sha256 = models.CharField(max_length=64)
    environment = models.CharField(max_length=100)
    environment_digest = models.CharField(max_length=64)
    config = models.JSONField(default=dict)
    plan = models.JSONField(default=dict)
    """Why this algorithm: what was measured on the snapshot, in sentences."""
    requested_by = models.CharField(max_length=150)

    class Meta:
        indexes = [models.Index(fields=["state", "lease_expires_at"])]
        constraints = [
            models.CheckConstraint(name="training_job_state_known", condition=Q(state__in=JobState.values)),
            models.UniqueConstraint(
                name="one_open_job_per_line",
                fields=["project", "model_line"],
                condition=Q(state__in=JOB_OPEN),
            ),
        ]


class EvaluationVerdict(models.TextChoices):
    PASS = "pass"
    FAIL = "fail"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


class Evaluation(LeasedJob):
    """Champion and candidate on the same held-out tasks and seeds, and what the gate made of it."""

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="evaluations")
    champion_id = models.UUIDField()
    candidate_id = models.UUIDField()
    environment = models.CharField(max_length=100)
    environment_digest = models.CharField(max_length=64)
    reward_spec = models.ForeignKey(RewardSpecVersion, on_delete=models.PROTECT, related_name="+")
    base_model = models.CharField(max_length=500)
    champion_adapter = models.CharField(max_length=500, blank=True)
    candidate_adapter = models.CharField(max_length=500, blank=True)
    task_count = models.PositiveIntegerField()
    verdict = models.CharField(max_length=30, choices=EvaluationVerdict, blank=True)
    evidence = models.JSONField(default=dict)
    """Figures and sentences the approver reads: means, difference, interval, reasons, worst tasks."""
    evidence_digest = models.CharField(max_length=64, blank=True)

    class Meta:
        indexes = [models.Index(fields=["state", "lease_expires_at"])]
        constraints = [
            models.CheckConstraint(name="evaluation_state_known", condition=Q(state__in=JobState.values)),
            models.CheckConstraint(
                name="evaluation_verdict_known",
                condition=Q(verdict="") | Q(verdict__in=EvaluationVerdict.values),
            ),
        ]


class Judge(models.Model):
    """An immutable version of a judge; `learning.judges.definition` gives its document meaning."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="judges")
    name = models.CharField(max_length=20)
    version = models.PositiveIntegerField()
    """The latest of a name judges; the others' verdicts stay."""
    document = models.JSONField()
    digest = models.CharField(max_length=64)
    """sha256 (hex) of the document's canonical JSON."""
    credential = models.BinaryField(blank=True)
    """The model server's key, sealed (`learning.judges.credentials`); empty when it needs none."""
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="judge_unique", fields=["project", "name", "version"]),
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class JudgedRun(models.Model):
    """What one judge makes of one run: work with a lease until it is decided."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="+")
    judge = models.ForeignKey(Judge, on_delete=models.PROTECT, related_name="judged_runs")
    run_id = models.UUIDField(db_index=True)
    run_revision = models.PositiveIntegerField()
    """The latest revision that was looked at; a revision with the same messages is not judged again."""
    subject_sha256 = models.CharField(max_length=64)
    """Of the messages that were judged."""
    value = models.FloatField(null=True)
    """0 to 1; null when the judge gave no verdict that counts."""
    is_consistent = models.BooleanField(null=True)
    """Whether the verdict was the same when the order was turned round; null without two answers to compare."""
    answers = models.JSONField(default=list)
    """`{name, reason, value}`, of the first order."""
    error = models.CharField(max_length=300, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    due_at = models.DateTimeField(null=True)
    """When it is tried, or tried again: also the lease of whoever is trying. Null once it is decided or given up."""
    decided_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["judge", "due_at"])]
        constraints = [models.UniqueConstraint(name="judged_once", fields=["judge", "run_id"])]


class JudgeCall(models.Model):
    """One question put to a judge's model, and what it cost. Never a call of a run, and never trained on."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="+")
    judge = models.ForeignKey(Judge, on_delete=models.PROTECT, related_name="calls")
    run_ids = models.JSONField(default=list)
    """The runs that were shown, as strings, in their order."""
    prompt_sha256 = models.CharField(max_length=64)
    answer = models.TextField(blank=True)
    error = models.CharField(max_length=300, blank=True)
    """Why the answer does not count; empty when it does."""
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    cost_microusd = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["judge", "-created_at"])]


class JudgeStanding(models.Model):
    """A measurement that changed whether a judge is used: its self-agreement, and its agreement with people."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="+")
    judge = models.ForeignKey(Judge, on_delete=models.PROTECT, related_name="standings")
    is_used = models.BooleanField()
    why = models.CharField(max_length=300)
    judged = models.PositiveIntegerField()
    inconsistency = models.FloatField(null=True)
    """Share of judged runs whose verdict turned with the order; null when none was judged twice."""
    labelled = models.PositiveIntegerField()
    """Runs that people have labelled and the judge has judged."""
    kappa = models.FloatField(null=True)
    """Cohen's, against these labels; null where it is not defined."""
    measured_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["judge", "-measured_at"])]
