"""Why a version answers: from the alias back to the approval, the evidence, the job, the data and the runs.

Each stage names the ledger events that prove it. Reads only; `audit.verify` says whether the ledger can be
believed."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from uuid import UUID

from django.conf import settings

from accounts.models import Project
from audit import selectors as ledger
from audit.selectors import EventRow
from kernel.objects import ObjectMissing, lines
from learning.models import DatasetSnapshot, Episode, Evaluation
from release.models import Deployment, ModelVersion, Promotion

EPISODES_SHOWN = 3
EPISODES_READ = 10_000
"""Of a larger snapshot, only so many are looked at to choose the ones that are shown."""
SENTENCES = ("canary", "figures")
"""Facts that an event may repeat as its reason: the guard's sentence, and the gate's."""


class NothingToExplain(ValueError):
    """No deployment or version has this name in the project."""


@dataclass(frozen=True)
class EventRef:
    """Where the ledger says so."""

    id: UUID
    action: str
    seq: int | None
    """Place in the ledger, which an inclusion proof starts from; None until it is sealed."""
    at: datetime
    who: str
    reason: str


@dataclass(frozen=True)
class Stage:
    """One thing on the way back: what it is, its figures in reading order, and its events."""

    name: str
    id: str
    facts: dict[str, str]
    events: tuple[EventRef, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """The way back, latest first."""

    subject: str
    """The version that is explained, e.g. `support-desk-v2`."""
    answers: str
    """Whether it answers now, in a sentence."""
    stages: tuple[Stage, ...]


Histories = Mapping[tuple[str, str], list[EventRow]]


def explain(*, project: Project, what: str) -> Explanation:
    """Explain an alias' champion, or a version such as `support-desk-v2`. Raises NothingToExplain."""
    deployment, version = _find(project, what)
    promotion = (
        Promotion.objects.filter(candidate=version)
        .select_related("previous", "evaluation")
        .order_by("-champion_at", "-created_at")
        .first()
    )
    evaluation = promotion.evaluation if promotion else _latest_evaluation(version)
    objects: list[tuple[str, UUID]] = [("model_version", version.pk)]
    if deployment:
        objects.append(("deployment", deployment.pk))
    if promotion:
        objects.append(("promotion", promotion.pk))
    if evaluation:
        objects.append(("evaluation", evaluation.pk))
    if version.job:
        objects.append(("training_job", version.job.pk))
        objects.append(("snapshot", version.job.snapshot_id))
        objects.append(("reward_spec", version.job.reward_spec_id))
    histories = ledger.events_of_many(objects)
    return Explanation(
        subject=version.name,
        answers=_answers(deployment, version),
        stages=tuple(_stages(deployment, version, promotion, evaluation, histories)),
    )


def render(found: Explanation) -> str:
    """The explanation as a short tree, for a terminal. Sentences that are a stage's facts are not
    repeated as reasons."""
    said = {"", *(stage.facts.get(name, "") for stage in found.stages for name in SENTENCES)}
    lines = [f"{found.subject}: {found.answers}"]
    for index, stage in enumerate(found.stages):
        last = index == len(found.stages) - 1
        branch, bar = ("└─", "  ") if last else ("├─", "│ ")
        lines.append(f"{branch} {stage.name} {stage.id}".rstrip())
        lines += [f"{bar}   {name}: {value}" for name, value in stage.facts.items() if value]
        for event in stage.events:
            seq = "not sealed yet" if event.seq is None else f"ledger {event.seq}"
            reason = f", “{event.reason}”" if event.reason not in said else ""
            when = event.at.strftime("%Y-%m-%d %H:%M:%S")
            lines.append(f"{bar}   {event.action} by {event.who}, {when} ({seq}, event {event.id}){reason}")
    return "\n".join(lines)


def _find(project: Project, what: str) -> tuple[Deployment | None, ModelVersion]:
    deployments = Deployment.objects.select_related(
        "champion__job__snapshot", "champion__job__reward_spec", "canary"
    )
    deployment = deployments.filter(project=project, alias=what).first()
    if deployment is not None:
        return deployment, deployment.champion
    line, _, number = what.rpartition("-v")
    versions = ModelVersion.objects.select_related("job__snapshot", "job__reward_spec").filter(
        project=project, line=line
    )
    version = versions.filter(number=int(number)).first() if number.isdecimal() else None
    if version is None:
        raise NothingToExplain(f"{project} has no deployment and no version {what!r}")
    return deployments.filter(project=project, alias=line).first(), version


def _latest_evaluation(version: ModelVersion) -> Evaluation | None:
    return Evaluation.objects.filter(candidate_id=version.pk).order_by("-created_at").first()


def _answers(deployment: Deployment | None, version: ModelVersion) -> str:
    if deployment is None:
        return "it answers no alias"
    if deployment.champion_id == version.pk:
        return f"champion of {deployment.alias}, generation {deployment.generation}"
    if deployment.canary_id == version.pk:
        return f"canary of {deployment.alias} on {deployment.canary_share:.0%} of runs"
    return f"not answering; champion of {deployment.alias} is {deployment.champion.name}"


def _stages(
    deployment: Deployment | None,
    version: ModelVersion,
    promotion: Promotion | None,
    evaluation: Evaluation | None,
    histories: Histories,
) -> Iterator[Stage]:
    def events(kind: str, id: UUID) -> tuple[EventRef, ...]:
        return tuple(_ref(row) for row in histories.get((kind, str(id)), ()))

    if deployment:
        about = {("model_version", str(version.pk))}
        rows = histories.get(("deployment", str(deployment.pk)), ())
        concerned = (row for row in rows if about & {(item.type, str(item.id)) for item in row.related})
        yield Stage("deployment", deployment.alias, {}, tuple(_ref(row) for row in concerned))
    yield Stage(
        "model version",
        version.name,
        {"adapter sha256": version.adapter_sha256, "base sha256": version.base_sha256},
        events("model_version", version.pk),
    )
    if promotion:
        yield Stage(
            "promotion", str(promotion.pk), _promotion_facts(promotion), events("promotion", promotion.pk)
        )
    if evaluation:
        yield Stage(
            "evaluation", str(evaluation.pk), _gate_facts(evaluation), events("evaluation", evaluation.pk)
        )
    if version.job:
        job, snapshot, spec = version.job, version.job.snapshot, version.job.reward_spec
        yield Stage(
            "training job",
            str(job.pk),
            {"algorithm": job.algorithm, "requested by": job.requested_by, "seed": str(job.seed)},
            events("training_job", job.pk),
        )
        yield Stage(
            "dataset snapshot",
            snapshot.name,
            {"episodes": str(snapshot.episode_count), "merkle root": snapshot.root},
            events("snapshot", snapshot.pk),
        )
        yield Stage("reward spec", str(spec), {"sha256": spec.digest}, events("reward_spec", spec.pk))
        for episode in _teachers(snapshot):
            yield Stage(
                "episode",
                str(episode.pk),
                {"run": str(episode.run_id), "task": episode.task_key, "reward": f"{episode.reward:.3f}"},
            )


def _teachers(snapshot: DatasetSnapshot) -> list[Episode]:
    """The best rewarded episodes of the snapshot's file, found by their digests; none when the file is
    gone."""
    try:
        first = list(islice(lines(settings.LARGE_OBJECTS.chunks(snapshot.location)), EPISODES_READ))
    except ObjectMissing:
        return []
    digests = [hashlib.sha256(line).hexdigest() for line in first]
    episodes = Episode.objects.filter(project=snapshot.project_id, reward_spec=snapshot.reward_spec_id)
    found = episodes.filter(sha256__in=digests, reward__isnull=False).order_by("-reward", "pk")
    return list(found.defer("payload")[:EPISODES_SHOWN])


def _promotion_facts(promotion: Promotion) -> dict[str, str]:
    # Who asked and who decided, and why, is what the events say.
    return {
        "state": promotion.state.replace("_", " "),
        "replaced": promotion.previous.name,
        "canary": promotion.verdict,
        "evidence sha256": promotion.evidence_digest,
    }


def _gate_facts(evaluation: Evaluation) -> dict[str, str]:
    return {
        "verdict": evaluation.verdict.replace("_", " "),
        "figures": " ".join(evaluation.evidence.get("reasons", ())),
    }


def _ref(row: EventRow) -> EventRef:
    who = f"{row.actor.name} ({row.actor.role})" if row.actor.role else row.actor.name or row.actor.id
    return EventRef(row.id, row.action.value, row.seq, row.at, who, row.reason)
