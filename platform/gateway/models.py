"""The gateway's own tables: where a project's calls may go, how much it may use, who may send signals without a key.
Fields and constraints only."""

from django.db import models
from django.db.models import Q

from accounts.models import ApiKey, Project
from gateway.limits import Measure, in_words
from kernel.ids import uuid7
from release.models import Deployment


class Auth(models.TextChoices):
    """The header that carries a credential."""

    BEARER = "bearer"
    """`Authorization: Bearer ...`, as OpenAI has it."""
    X_API_KEY = "x-api-key"
    """Anthropic."""
    API_KEY = "api-key"
    """Azure."""


class Upstream(models.Model):
    """A provider of a project."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="upstreams")
    name = models.CharField(max_length=100)
    base_url = models.CharField(max_length=500)
    """The provider's own base URL, usually ending in `/v1`."""
    credential = models.BinaryField(blank=True)
    """The provider's key, sealed for this project and the URL's origin (`gateway.credentials`); empty when it needs
    none."""
    auth = models.CharField(max_length=20, choices=Auth, default=Auth.BEARER)
    priority = models.PositiveIntegerField(default=0)
    """Lower ones are tried first."""
    serves = models.JSONField(default=list)
    """Names of the dialects that it answers; empty: all."""
    connect_timeout_s = models.FloatField(null=True)
    """Null here and in the next two: the installation's."""
    first_byte_timeout_s = models.FloatField(null=True)
    idle_timeout_s = models.FloatField(null=True)
    max_retries = models.PositiveSmallIntegerField(default=1)
    asks_usage = models.BooleanField(default=True)
    """It understands `stream_options.include_usage`."""
    prices = models.JSONField(default=dict)
    """Model name -> `{input, output, cached_input}` in US dollars per million tokens."""
    is_enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="upstream_name_unique", fields=["project", "name"]),
            models.CheckConstraint(name="upstream_named", condition=~Q(name="")),
            models.CheckConstraint(name="upstream_auth_known", condition=Q(auth__in=Auth.values)),
            models.CheckConstraint(
                name="upstream_timeouts_positive",
                condition=(Q(connect_timeout_s=None) | Q(connect_timeout_s__gt=0))
                & (Q(first_byte_timeout_s=None) | Q(first_byte_timeout_s__gt=0))
                & (Q(idle_timeout_s=None) | Q(idle_timeout_s__gt=0)),
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Alias(models.Model):
    """A model name of a project that stands for one or several targets."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="aliases")
    name = models.CharField(max_length=200)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "aliases"
        constraints = [
            models.UniqueConstraint(name="alias_name_unique", fields=["project", "name"]),
            models.CheckConstraint(name="alias_named", condition=~Q(name="")),
        ]

    def __str__(self) -> str:
        return self.name


class AliasTarget(models.Model):
    """One place that an alias stands for: a model of an upstream, or a deployment."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="+")
    alias = models.ForeignKey(Alias, on_delete=models.CASCADE, related_name="targets")
    upstream = models.ForeignKey(Upstream, null=True, on_delete=models.PROTECT, related_name="alias_targets")
    model = models.CharField(max_length=200, blank=True)
    """The name that the upstream knows; empty: the alias itself."""
    deployment = models.ForeignKey(Deployment, null=True, on_delete=models.PROTECT, related_name="+")
    weight = models.PositiveIntegerField()
    """Share of the runs, against the other targets of the same priority."""
    priority = models.PositiveIntegerField(default=0)
    """Lower ones are tried first."""

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="alias_target_is_one_place",
                condition=Q(upstream__isnull=False, deployment=None)
                | Q(upstream=None, deployment__isnull=False, model=""),
            ),
            models.CheckConstraint(name="alias_target_has_weight", condition=Q(weight__gt=0)),
            models.UniqueConstraint(
                name="alias_target_unique",
                fields=["alias", "upstream", "model", "deployment"],
                nulls_distinct=False,
            ),
        ]

    def __str__(self) -> str:
        """As `manage.py set_alias` takes it."""
        return f"{self.place}={self.weight}" + (f"@{self.priority}" if self.priority else "")

    @property
    def place(self) -> str:
        """`openai/gpt-4o`, `openai` or `deployment:support-desk`."""
        if self.deployment is not None:
            return f"deployment:{self.deployment}"
        return f"{self.upstream}/{self.model}" if self.model else str(self.upstream)


class Limit(models.Model):
    """What a project, or one of its API keys, may use in a window of time."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="limits")
    api_key = models.ForeignKey(ApiKey, null=True, on_delete=models.PROTECT, related_name="limits")
    """Null: of the whole project."""
    measure = models.CharField(max_length=20, choices=[(measure.value, measure.value) for measure in Measure])
    amount = models.BigIntegerField()
    window_s = models.PositiveIntegerField()
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                name="limit_unique",
                fields=["project", "api_key", "measure", "window_s"],
                nulls_distinct=False,
            ),
            models.CheckConstraint(
                name="limit_measure_known", condition=Q(measure__in=[measure.value for measure in Measure])
            ),
            models.CheckConstraint(name="limit_positive", condition=Q(amount__gt=0, window_s__gt=0)),
        ]

    def __str__(self) -> str:
        return in_words(Measure(self.measure), self.amount, self.window_s)


class Webhook(models.Model):
    """An address under which a business system sends signals, signed with a secret instead of an API key."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="webhooks")
    name = models.CharField(max_length=32)
    """For people, and in the source of the signals that come by it: `webhook:<name>`."""
    address = models.CharField(max_length=50, unique=True)
    """What stands behind `/v1/webhooks/`: the name, and something that keeps projects apart."""
    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="webhooks")
    """Whose signals they are: its limits hold, and once it is revoked nothing comes in any more."""
    secret = models.BinaryField()
    """Sealed for this webhook (`gateway.credentials`)."""
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="webhook_name_unique", fields=["project", "name"]),
            models.CheckConstraint(name="webhook_named", condition=~Q(name="")),
        ]

    def __str__(self) -> str:
        return self.name
