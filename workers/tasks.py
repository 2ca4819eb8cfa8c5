"""The Celery tasks: each loads nothing, decides nothing, calls one service and returns.

Arguments are ids, by keyword; unknown ones are passed over, so that a worker survives a newer sender. A task may come
late, twice or never: the rows it looks at know what is due, and the sweeps in `workers.schedule` look again."""

import os
import random
import socket
from uuid import UUID

from django.conf import settings

from audit import sealer
from kernel import clock
from kernel.queueing import app
from learning import training
from learning.episodes import due as episodes
from learning.evaluation import jobs as evaluations
from learning.judges import judging, model
from learning.judges import registry as judges
from release import promotion, registry, rollout
from release import sweep as release_sweep
from telemetry import periods, review, runs, signals, spans, windows


def _owner() -> str:
    """Who holds a lease: this process on this host."""
    return f"{socket.gethostname()}:{os.getpid()}"


@app.task(name="audit.seal")
def seal(**_: object) -> None:
    sealer.seal_due(now=clock.now())


@app.task(name=runs.STITCH.name)
def stitch(*, project_id: str, **_: object) -> None:
    project, now = UUID(project_id), clock.now()
    runs.stitch_pending(project_id=project, now=now)
    spans.join_pending(project_id=project, now=now)
    signals.join_pending(project_id=project, now=now)
    episodes.build_due(project_id=project, now=now)


@app.task(name="telemetry.sweep")
def telemetry_sweep(**_: object) -> None:
    due = {*runs.due_projects(), *spans.due_projects(now=clock.now()), *episodes.due_projects()}
    for project_id in due:
        stitch(project_id=str(project_id))


@app.task(name="telemetry.close_idle")
def close_idle(**_: object) -> None:
    runs.close_idle(now=clock.now())


@app.task(name="telemetry.mature")
def mature(**_: object) -> None:
    windows.mature_due(now=clock.now())


@app.task(name="telemetry.draw_reviews")
def draw_reviews(**_: object) -> None:
    review.draw_due(now=clock.now())


@app.task(name="telemetry.keep_periods")
def keep_periods(**_: object) -> None:
    periods.sweep(now=clock.now(), retention_months=settings.ENVIRONMENT.retention_months)


@app.task(name="learning.sweep")
def learning_sweep(**_: object) -> None:
    now = clock.now()
    training.sweep(now=now)
    evaluations.sweep(now=now)


@app.task(name="learning.judge")
def judge(**_: object) -> None:
    rng = random.SystemRandom()
    with model.client() as client:
        for project_id in judges.projects_with_judges():
            while judging.judge_due(project_id=project_id, now=clock.now(), client=client, rng=rng):
                pass


@app.task(name=training.TRAIN.name)
def train(*, job_id: str, **_: object) -> None:
    training.run_job(job_id=UUID(job_id), owner=_owner())


@app.task(name=evaluations.EVALUATE.name)
def evaluate(*, evaluation_id: str, **_: object) -> None:
    evaluations.run_evaluation(evaluation_id=UUID(evaluation_id), owner=_owner())


@app.task(name=registry.REGISTER.name)
def register(*, job_id: str, **_: object) -> None:
    registry.register_or_refuse(job_id=UUID(job_id), now=clock.now())


@app.task(name="release.offer")
def offer(*, evaluation_id: str, **_: object) -> None:
    promotion.offer(evaluation_id=UUID(evaluation_id), now=clock.now())


@app.task(name=promotion.START_CANARY.name)
def start_canary(*, promotion_id: str, **_: object) -> None:
    rollout.start_canary(promotion_id=UUID(promotion_id), now=clock.now())


@app.task(name="release.sweep")
def sweep_release(**_: object) -> None:
    release_sweep.sweep(now=clock.now())
