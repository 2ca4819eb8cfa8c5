"""Pages of learning: reward specs, episodes, snapshots, training jobs, evaluations."""

from itertools import accumulate
from typing import Any

from django.db.models import CharField, OuterRef, Subquery, Value
from django.db.models.functions import Cast, Concat
from django.http import HttpRequest

from console import evidence
from console.drawing import waterfall
from console.links import url_of
from console.progress import progress_of, reward_curve
from console.records.base import (
    STATE_LABELS,
    Fact,
    ProjectFilter,
    RecordAdmin,
    clipped,
    column,
    moment,
    pretty,
    seconds,
    short,
    when,
)
from learning import waterfalls
from learning.models import DatasetSnapshot, Episode, Evaluation, RewardSpecVersion, TrainingJob
from release.models import ModelVersion, Promotion
from telemetry.models import Run


class RewardSpecAdmin(RecordAdmin):
    """Reward specs: what a good episode is, one immutable version each."""

    published = when("created_at", "Published")
    list_display = ("__str__", "digest_start", "published", "project")
    list_select_related = ("project",)
    ordering = ("-created_at",)

    @column("Digest")
    def digest_start(self, row: RewardSpecVersion) -> str:
        return row.digest[:16]

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Version", row.version),
            Fact("Project", row.project.name),
            Fact("Published", moment(row.created_at)),
            Fact("Digest", row.digest, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {"documents": [("Document", pretty(row.document))]}


class EpisodeAdmin(RecordAdmin):
    """Episodes: the immutable training view of a run."""

    detail_template = "console/episode.html"
    frozen = when("created_at", "Frozen")
    list_display = ("frozen", "task", "step_count", "outcome", "reward_text", "reward_spec", "run")
    list_filter = (ProjectFilter,)
    list_select_related = ("reward_spec",)
    search_fields = ("task_key", "sha256")
    search_help_text = "task, or sha256"
    ordering = ("-created_at",)

    @column("Task")
    def task(self, row: Episode) -> str:
        return clipped(row.task_key) or "-"

    @column("Outcome")
    def outcome(self, row: Episode) -> str:
        value = row.reward_parts.get("outcome")
        return "not known" if value is None else f"{value:+.2f}"

    @column("Reward", ordering="reward")
    def reward_text(self, row: Episode) -> str:
        return "not known" if row.reward is None else f"{row.reward:+.3f}"

    @column("Run")
    def run(self, row: Episode) -> str:
        return f"{short(row.run_id)} rev. {row.run_revision}"

    def facts(self, row: Any) -> list[Fact]:
        reward = "not known: nobody has sent the outcome" if row.reward is None else f"{row.reward:+.4f}"
        return [
            Fact("Reward", reward),
            Fact("Reward spec", row.reward_spec, href=url_of(RewardSpecVersion, row.reward_spec_id)),
            Fact("Task", row.task_key),
            Fact("Steps", row.step_count),
            Fact("Run", f"{short(row.run_id)}, revision {row.run_revision}", href=url_of(Run, row.run_id)),
            Fact("Answered by", _versions(row.model_version_ids) or "models that are not ours"),
            Fact("Frozen", moment(row.created_at)),
            Fact("Size", f"{len(row.payload):,} bytes"),
            Fact("SHA-256", row.sha256, mono=True),
            Fact("Episode id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        shown = waterfalls.waterfall(row)
        return {
            "title": f"Episode {short(row.pk)}",
            "bars": waterfall(_numbers(row.reward_parts), row.reward),
            "shown": shown,
            "lines": [
                (entry, waterfalls.signed(entry.amount), waterfalls.signed(so_far))
                for entry, so_far in zip(
                    shown.entries, accumulate(entry.amount for entry in shown.entries), strict=True
                )
            ],
        }


class SnapshotAdmin(RecordAdmin):
    """Dataset snapshots: a frozen, ordered set of episodes under one root."""

    frozen = when("frozen_at", "Frozen")
    list_display = ("name", "episode_count", "reward_spec", "root_start", "frozen", "project")
    list_select_related = ("reward_spec", "project")
    search_fields = ("name", "root")
    ordering = ("-frozen_at",)

    @column("Root")
    def root_start(self, row: DatasetSnapshot) -> str:
        return row.root[:16]

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Project", row.project.name),
            Fact("Episodes", f"{row.episode_count:,}"),
            Fact("Reward spec", row.reward_spec, href=url_of(RewardSpecVersion, row.reward_spec_id)),
            Fact("Frozen", moment(row.frozen_at)),
            Fact("Merkle root", row.root, mono=True),
            Fact("File SHA-256", row.file_sha256, mono=True),
            Fact("Location", row.location, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        jobs = row.jobs.order_by("-created_at")
        return {
            "links": [
                (
                    "Trained from it",
                    [(f"{job.model_line}, {job.state}", url_of(TrainingJob, job.pk)) for job in jobs],
                )
            ],
            "documents": [("Manifest", pretty(row.manifest))],
        }


class TrainingJobAdmin(RecordAdmin):
    """Training jobs: one adapter from one snapshot each."""

    detail_template = "console/job.html"
    requested = when("created_at", "Requested")
    list_display = (
        "requested",
        "model_line",
        "algorithm",
        "state_label",
        "how_far",
        "snapshot",
        "requested_by",
        "took",
    )
    list_filter = (ProjectFilter, "state", "model_line")
    list_select_related = ("snapshot",)
    ordering = ("-created_at",)

    @column("State", label=STATE_LABELS, ordering="state")
    def state_label(self, row: TrainingJob) -> str:
        return row.state

    @column("Progress")
    def how_far(self, row: TrainingJob) -> str:
        return progress_of(row).sentence

    @column("Took")
    def took(self, row: TrainingJob) -> str:
        return seconds(row.started_at, row.finished_at) or "-"

    def facts(self, row: Any) -> list[Fact]:
        version = ModelVersion.objects.filter(job=row.pk).first()
        return [
            Fact("State", row.state),
            Fact("Model line", row.model_line),
            Fact(
                "Made", version or "no version yet", href=url_of(ModelVersion, version.pk) if version else ""
            ),
            Fact("Algorithm", row.algorithm),
            Fact("Snapshot", row.snapshot, href=url_of(DatasetSnapshot, row.snapshot_id)),
            Fact("Reward spec", row.reward_spec, href=url_of(RewardSpecVersion, row.reward_spec_id)),
            Fact("Environment", row.environment),
            Fact("Requested by", row.requested_by),
            Fact("Requested", moment(row.created_at)),
            Fact("Started", moment(row.started_at)),
            Fact("Took", seconds(row.started_at, row.finished_at)),
            Fact("Seed", row.seed),
            Fact("Attempt", row.lease_epoch),
            Fact("Base model SHA-256", row.base_sha256, mono=True),
            Fact("Environment digest", row.environment_digest, mono=True),
            Fact("Job id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        progress = progress_of(row)
        return {
            "title": f"Training of {row.model_line}",
            "job": row,
            "progress": progress,
            "curve": reward_curve(row),
            "metrics": progress.metrics,
            "reasons": row.plan.get("reasons", []),
            "documents": [
                ("Configuration: what differs from the defaults", pretty(row.config)),
                *([("Result", pretty(row.result))] if row.result else []),
            ],
        }


class EvaluationAdmin(RecordAdmin):
    """Evaluations: champion and candidate on the same held-out tasks."""

    detail_template = "console/evaluation.html"
    requested = when("created_at", "Requested")
    list_display = (
        "requested",
        "contenders",
        "task_count",
        "state_label",
        "verdict_label",
        "difference",
        "how_far",
    )
    list_filter = (ProjectFilter, "state", "verdict")
    ordering = ("-created_at",)

    def get_queryset(self, request: HttpRequest) -> Any:
        names = ModelVersion.objects.annotate(text=Concat("line", Value(" v"), Cast("number", CharField())))
        rows = super().get_queryset(request)
        return rows.annotate(
            candidate_name=Subquery(names.filter(pk=OuterRef("candidate_id")).values("text")),
            champion_name=Subquery(names.filter(pk=OuterRef("champion_id")).values("text")),
        )

    @column("Candidate against champion")
    def contenders(self, row: Any) -> str:
        return f"{row.candidate_name} against {row.champion_name}"

    @column("State", label=STATE_LABELS, ordering="state")
    def state_label(self, row: Evaluation) -> str:
        return row.state

    @column("Verdict", label=STATE_LABELS, ordering="verdict")
    def verdict_label(self, row: Evaluation) -> str:
        return row.verdict

    @column("Difference in success")
    def difference(self, row: Evaluation) -> str:
        read = evidence.read(row.evidence)
        return f"{read.difference * 100:+.1f} points" if read else "-"

    @column("Progress")
    def how_far(self, row: Evaluation) -> str:
        return progress_of(row).sentence

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Verdict", row.verdict.replace("_", " ") or row.state),
            Fact(
                "Candidate",
                row.candidate_name or row.candidate_id,
                href=url_of(ModelVersion, row.candidate_id),
            ),
            Fact(
                "Champion", row.champion_name or row.champion_id, href=url_of(ModelVersion, row.champion_id)
            ),
            Fact("Held-out tasks", row.task_count),
            Fact("Environment", row.environment),
            Fact("Reward spec", row.reward_spec, href=url_of(RewardSpecVersion, row.reward_spec_id)),
            Fact("Requested", moment(row.created_at)),
            Fact("Took", seconds(row.started_at, row.finished_at)),
            Fact("Seed", row.seed),
            Fact("Evidence digest", row.evidence_digest, mono=True),
            Fact("Environment digest", row.environment_digest, mono=True),
            Fact("Evaluation id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        promotions = Promotion.objects.filter(evaluation=row.pk).order_by("-created_at")
        return {
            "title": f"{row.candidate_name} against {row.champion_name}",
            "job": row,
            "progress": progress_of(row),
            "evidence": evidence.read(row.evidence),
            "promotions": promotions,
            "documents": [("Evidence as stored", pretty(row.evidence))] if row.evidence else [],
        }


def _numbers(parts: dict[str, Any]) -> dict[str, float]:
    """What is gained first, then what it costs; PostgreSQL's JSON keeps no order of its own."""
    order = ["outcome", "cost", "risk", "step", "shaping", "clip", "veto"]
    names = sorted(parts, key=lambda name: order.index(name) if name in order else len(order))
    return {name: float(parts[name]) for name in names if isinstance(parts[name], (int, float))}


def _versions(ids: list[str]) -> str:
    return ", ".join(str(row) for row in ModelVersion.objects.filter(pk__in=ids)) if ids else ""
