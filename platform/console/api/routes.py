"""The control API: what a project's key may read, under /api/. No decisions: those belong to people, on the
console's pages.

Each route is one read from `console.api.reads`; shapes are in `console.api.schemas`."""

from typing import Annotated, Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI, Query
from ninja.errors import AuthenticationError

from accounts.models import Project
from console.api import reads, schemas
from console.api.auth import ProjectKey

Limit = Annotated[int, Query(ge=1, le=2000)]
Offset = Annotated[int, Query(ge=0)]

api = NinjaAPI(
    title="Ratchet control API",
    version="1",
    description="Read access to one project, with its API key as bearer token.",
    docs_url=None,  # ninja's page loads its scripts from a foreign server unless its app is installed
    auth=ProjectKey(),
    urls_namespace="api",
)


@api.exception_handler(AuthenticationError)
def refuse(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    """401 in the shape of every error here."""
    message = "Send a live project API key: Authorization: Bearer rk_..."
    answer = api.create_response(request, {"error": "invalid_api_key", "message": message}, status=401)
    answer["WWW-Authenticate"] = 'Bearer realm="ratchet"'
    return answer


@api.exception_handler(reads.NotFound)
def missing(request: HttpRequest, error: reads.NotFound) -> HttpResponse:
    """404, the same for what does not exist and for what belongs to another project."""
    return api.create_response(request, {"error": "not_found", "message": str(error)}, status=404)


def _project(request: HttpRequest) -> Project:
    project: Project = request.auth  # type: ignore[attr-defined]  # set by ninja from ProjectKey
    return project


@api.get("/summary", response=schemas.Summary)
def summary(request: HttpRequest) -> reads.Json:
    """The project in figures."""
    return reads.summary(_project(request))


@api.get("/runs", response=schemas.Page[schemas.Run])
def runs(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Runs, the latest started first."""
    return reads.page(reads.runs(_project(request)), limit=limit, offset=offset)


@api.get("/runs/{run_id}", response=schemas.RunDetail)
def run(request: HttpRequest, run_id: UUID) -> Any:
    """One run with its calls and signals. A run id that the gateway told a caller is understood as well."""
    return reads.run(_project(request), run_id)


@api.get("/calls", response=schemas.Page[schemas.Call])
def calls(
    request: HttpRequest, limit: Limit = 100, offset: Offset = 0, run_id: UUID | None = None
) -> reads.Json:
    """Calls, the latest started first, each with its run."""
    rows = reads.calls(_project(request))
    return reads.page(rows.filter(step__run=run_id) if run_id else rows, limit=limit, offset=offset)


@api.get("/signals", response=schemas.Page[schemas.Signal])
def signals(
    request: HttpRequest, limit: Limit = 100, offset: Offset = 0, unmatched: bool = False
) -> reads.Json:
    """Signals, the latest received first; `unmatched=true` keeps those that never found what they speak
    of."""
    rows = reads.signals(_project(request))
    return reads.page(rows.filter(run=None) if unmatched else rows, limit=limit, offset=offset)


@api.get("/episodes", response=schemas.Page[schemas.Episode])
def episodes(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Episodes, the latest frozen first."""
    return reads.page(reads.episodes(_project(request)), limit=limit, offset=offset)


@api.get("/snapshots", response=schemas.Page[schemas.Snapshot])
def snapshots(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Dataset snapshots."""
    return reads.page(reads.snapshots(_project(request)), limit=limit, offset=offset)


@api.get("/training-jobs", response=schemas.Page[schemas.TrainingJob])
def training_jobs(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Training jobs, the latest requested first."""
    return reads.page(reads.training_jobs(_project(request)), limit=limit, offset=offset)


@api.get("/training-jobs/{job_id}", response=schemas.TrainingJob)
def training_job(request: HttpRequest, job_id: UUID) -> Any:
    """One training job, with its progress."""
    return reads.one(reads.training_jobs(_project(request)), job_id)


@api.get("/evaluations", response=schemas.Page[schemas.Evaluation])
def evaluations(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Evaluations, the latest requested first."""
    return reads.page(reads.evaluations(_project(request)), limit=limit, offset=offset)


@api.get("/evaluations/{evaluation_id}", response=schemas.Evaluation)
def evaluation(request: HttpRequest, evaluation_id: UUID) -> Any:
    """One evaluation with its evidence."""
    return reads.one(reads.evaluations(_project(request)), evaluation_id)


@api.get("/versions", response=schemas.Page[schemas.Version])
def versions(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Model versions, the latest registered first."""
    return reads.page(reads.versions(_project(request)), limit=limit, offset=offset)


@api.get("/deployments", response=schemas.Page[schemas.Deployment])
def deployments(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Who answers each alias."""
    return reads.page(reads.deployments(_project(request)), limit=limit, offset=offset)


@api.get("/promotions", response=schemas.Page[schemas.Promotion])
def promotions(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Promotions, the latest proposed first."""
    return reads.page(reads.promotions(_project(request)), limit=limit, offset=offset)


@api.get("/promotions/{promotion_id}", response=schemas.Promotion)
def promotion(request: HttpRequest, promotion_id: UUID) -> Any:
    """One promotion."""
    return reads.one(reads.promotions(_project(request)), promotion_id)


@api.get("/upstreams", response=schemas.Page[schemas.Upstream])
def upstreams(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Upstreams, in the order in which they are tried."""
    return reads.page(reads.upstreams(_project(request)), limit=limit, offset=offset)


@api.get("/aliases", response=schemas.Page[schemas.Alias])
def aliases(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Aliases with their targets."""
    return reads.page(reads.aliases(_project(request)), limit=limit, offset=offset)


@api.get("/limits", response=schemas.Page[schemas.Limit])
def limits(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> reads.Json:
    """Limits of the project and of its keys."""
    return reads.page(reads.limits(_project(request)), limit=limit, offset=offset)
