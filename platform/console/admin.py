"""The table of pages: which table of the product is read through which page. One site, read-only."""

from django.apps import apps
from django.db.models import Model

from accounts.models import ApiKey, Member, Organization, Project
from console.records import accounts, learning, ledger, release, routing, telemetry
from console.records.base import RecordAdmin
from console.site import ConsoleSite
from learning.models import DatasetSnapshot, Episode, Evaluation, RewardSpecVersion, TrainingJob
from release.models import Deployment, ModelVersion, PolicyNode, Promotion
from telemetry.models import Call, CaptureLoss, Run, Signal

site = ConsoleSite(name="admin")

PAGES: dict[type[Model], type[RecordAdmin]] = {
    Run: telemetry.RunAdmin,
    Call: telemetry.CallAdmin,
    Signal: telemetry.SignalAdmin,
    CaptureLoss: telemetry.CaptureLossAdmin,
    RewardSpecVersion: learning.RewardSpecAdmin,
    Episode: learning.EpisodeAdmin,
    DatasetSnapshot: learning.SnapshotAdmin,
    TrainingJob: learning.TrainingJobAdmin,
    Evaluation: learning.EvaluationAdmin,
    ModelVersion: release.ModelVersionAdmin,
    Deployment: release.DeploymentAdmin,
    Promotion: release.PromotionAdmin,
    PolicyNode: release.PolicyNodeAdmin,
    Organization: accounts.OrganizationAdmin,
    Project: accounts.ProjectAdmin,
    Member: accounts.MemberAdmin,
    ApiKey: accounts.ApiKeyAdmin,
    # By name: the console does not import the gateway that it stands beside.
    apps.get_model("gateway", "Upstream"): routing.UpstreamAdmin,
    apps.get_model("gateway", "Alias"): routing.AliasAdmin,
    apps.get_model("gateway", "Limit"): routing.LimitAdmin,
    # By name: only the ledger's own package imports its tables.
    apps.get_model("audit", "Event"): ledger.EventAdmin,
    apps.get_model("audit", "LedgerCheckpoint"): ledger.CheckpointAdmin,
}
for model, page in PAGES.items():
    site.register(model, page)
