"""Tables of release: model versions, deployments (aliases), promotions, policy nodes and what they have
loaded."""

from django.db import models
from django.db.models import Q

from accounts.models import Project, User
from kernel.ids import uuid7
from learning.models import Evaluation, TrainingJob


class ModelVersion(models.Model):
    """One immutable model: the base itself (version 1 of a line) or the base with one adapter."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="model_versions")
    line = models.CharField(max_length=200)
    """The alias the version was made for, e.g. `support-desk`."""
    number = models.PositiveIntegerField()
    base_model = models.CharField(max_length=500)
    base_sha256 = models.CharField(max_length=64)
    adapter_path = models.CharField(max_length=500, blank=True)
    """Folder of the adapter below the object store's root; empty for the base itself."""
    adapter_sha256 = models.CharField(max_length=64, blank=True)
    served_name = models.CharField(max_length=300, db_index=True)
    """The name policy nodes serve it under. An adapter's carries its digest and never stands for other
    weights (`release.registry` sees to that); a base's is the node's own name for it, shared by all who use
    that base."""
    job = models.OneToOneField(TrainingJob, null=True, on_delete=models.PROTECT, related_name="model_version")
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="model_version_unique", fields=["project", "line", "number"])
        ]

    def __str__(self) -> str:
        return f"{self.line} v{self.number}"

    @property
    def name(self) -> str:
        """For headers, commands and the API, e.g. `support-desk-v2`."""
        return f"{self.line}-v{self.number}"


class Deployment(models.Model):
    """What an alias answers with: a champion, and while a canary runs, a second version on a share of
    runs."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="deployments")
    alias = models.CharField(max_length=200)
    champion = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    canary = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="+")
    canary_share = models.FloatField(default=0.0)
    """Share of runs, 0 to 1, that the canary answers."""
    generation = models.PositiveIntegerField(default=1)
    """Grows with every change of who answers; a rollback is a new generation."""
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="deployment_alias_unique", fields=["project", "alias"]),
            models.CheckConstraint(
                name="canary_has_share",
                condition=Q(canary=None, canary_share=0.0)
                | Q(canary__isnull=False, canary_share__gt=0.0, canary_share__lte=1.0),
            ),
        ]

    def __str__(self) -> str:
        return self.alias


class PromotionState(models.TextChoices):
    PROPOSED = "proposed"
    APPROVED = "approved"
    REJECTED = "rejected"
    CANARY = "canary"
    CHAMPION = "champion"
    ROLLED_BACK = "rolled_back"


PROMOTION_OPEN = [PromotionState.PROPOSED, PromotionState.APPROVED, PromotionState.CANARY]


class Promotion(models.Model):
    """The request that a version become champion of a deployment, and what people and guards made of it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="promotions")
    deployment = models.ForeignKey(Deployment, on_delete=models.PROTECT, related_name="promotions")
    candidate = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="promotions")
    previous = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    evaluation = models.ForeignKey(Evaluation, on_delete=models.PROTECT, related_name="promotions")
    evidence_digest = models.CharField(max_length=64)
    """Digest of the evidence as it stood when the promotion was proposed; an approval is bound to it."""
    state = models.CharField(max_length=20, choices=PromotionState, default=PromotionState.PROPOSED)
    canary_share = models.FloatField(default=0.25)
    canary_min_calls = models.PositiveIntegerField(default=50)
    requested_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    requested_reason = models.TextField()
    decided_by = models.ForeignKey(User, null=True, on_delete=models.PROTECT, related_name="+")
    decided_reason = models.TextField(blank=True)
    decided_at = models.DateTimeField(null=True)
    canary_started_at = models.DateTimeField(null=True)
    champion_at = models.DateTimeField(null=True)
    """When the candidate first became champion; null for one that never did."""
    finished_at = models.DateTimeField(null=True)
    verdict = models.TextField(blank=True)
    """What an approved promotion waits for; then the canary guard's latest sentence, which no rollback
    overwrites."""
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="promotion_state_known", condition=Q(state__in=PromotionState.values)
            ),
            models.UniqueConstraint(
                name="one_open_promotion_per_alias",
                fields=["deployment"],
                condition=Q(state__in=PROMOTION_OPEN),
            ),
            models.CheckConstraint(
                name="nothing_moves_without_a_decision",
                condition=Q(state=PromotionState.PROPOSED)
                | (Q(decided_by__isnull=False) & ~Q(decided_reason="") & Q(decided_at__isnull=False)),
            ),
            models.CheckConstraint(
                name="requester_does_not_decide",
                condition=Q(decided_by=None) | ~Q(decided_by=models.F("requested_by")),
            ),
        ]


class PolicyNode(models.Model):
    """A server of our own models: vLLM, or the embedded policy server, which has the same face."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, unique=True)
    base_url = models.CharField(max_length=300)
    """Origin without a path, e.g. `http://127.0.0.1:8402`."""
    base_model = models.CharField(max_length=500)
    base_sha256 = models.CharField(max_length=64)
    seen_at = models.DateTimeField(null=True)
    loaded = models.JSONField(default=list)
    """The names the node listed at `seen_at`."""

    def __str__(self) -> str:
        return self.name
