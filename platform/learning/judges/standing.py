"""Whether a judge is used: it must agree with itself when the order is turned round, and with people.

Below the bar, or with too few labels to say, its verdicts count as missing and say why. A change of standing is a row
and an audit event, and makes episodes of the runs it judged due again. What the verdicts are is not decided here."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction

from audit import ledger
from audit.actions import Action, Actor, ObjectRef
from learning.judges.definition import source_of
from learning.models import Judge, JudgedRun, JudgeStanding
from telemetry.locks import lock_project
from telemetry.review import cohens_kappa
from telemetry.runs import grow
from telemetry.signals import run_signals

MAX_INCONSISTENCY = 0.10
MIN_KAPPA = 0.60
MIN_LABELLED = 20
"""Fewer runs with both a label and a verdict say too little."""
PASS = 0.5
"""A verdict or a label of at least this says that the run was good."""
NOT_MEASURED = "not used: it has not been measured against people's labels yet"
RULE = Actor.rule("judge-bar")


@dataclass(frozen=True)
class Measured:
    """How well a judge agrees, with itself and with people."""

    judged: int
    inconsistency: float | None
    labelled: int
    kappa: float | None

    @property
    def is_used(self) -> bool:
        """Whether it is above the bar."""
        return (
            self.inconsistency is not None
            and self.inconsistency <= MAX_INCONSISTENCY
            and self.labelled >= MIN_LABELLED
            and self.kappa is not None
            and self.kappa >= MIN_KAPPA
        )

    @property
    def why(self) -> str:
        """One sentence for whoever asks why it is used or not."""
        if self.inconsistency is None:
            return "not used: no run has been judged in two orders yet"
        if self.inconsistency > MAX_INCONSISTENCY:
            return (
                f"not used: {self.inconsistency:.0%} of {self.judged} verdicts turn with the order, "
                f"at most {MAX_INCONSISTENCY:.0%} may"
            )
        if self.labelled < MIN_LABELLED:
            return f"not used: people have labelled {self.labelled} of the runs it judged, {MIN_LABELLED} are needed"
        if self.kappa is None:
            return f"not used: all {self.labelled} labels say the same, which measures nothing"
        agreement = f"Cohen's kappa with people is {self.kappa:.2f} on {self.labelled} runs"
        return f"used: {agreement}" if self.is_used else f"not used: {agreement}, {MIN_KAPPA:.2f} is needed"


def measure(judge: Judge) -> Measured:
    """Measure a judge on all that it has judged so far."""
    rows = list(
        JudgedRun.objects.filter(judge=judge, decided_at__isnull=False).values_list(
            "run_id", "value", "is_consistent"
        )
    )
    twice = [is_consistent for _, _, is_consistent in rows if is_consistent is not None]
    labels = run_signals(run_id for run_id, _, _ in rows)
    pairs = []
    for run_id, value, _ in rows:
        label = labels.get(run_id, {}).get(judge.document["labels"])
        if value is not None and isinstance(label, (bool, int, float)):
            pairs.append((value >= PASS, label >= PASS))
    return Measured(
        judged=len(rows),
        inconsistency=twice.count(False) / len(twice) if twice else None,
        labelled=len(pairs),
        kappa=cohens_kappa(pairs),
    )


@transaction.atomic
def review(*, judge: Judge, now: datetime) -> JudgeStanding:
    """Measure a judge, and record it if that changes whether it is used."""
    lock_project(judge.project_id)  # revisions grow, and no two reviews decide at once
    measured = measure(judge)
    latest = _latest(judge)
    if latest is not None and latest.is_used == measured.is_used:
        JudgeStanding.objects.filter(id=latest.id).update(
            why=measured.why,
            judged=measured.judged,
            inconsistency=measured.inconsistency,
            labelled=measured.labelled,
            kappa=measured.kappa,
        )
        return JudgeStanding.objects.get(id=latest.id)
    standing = JudgeStanding.objects.create(
        project_id=judge.project_id,
        judge=judge,
        is_used=measured.is_used,
        why=measured.why,
        judged=measured.judged,
        inconsistency=measured.inconsistency,
        labelled=measured.labelled,
        kappa=measured.kappa,
        measured_at=now,
    )
    if latest is not None or measured.is_used:
        judged = JudgedRun.objects.filter(judge=judge, value__isnull=False)
        grow(judged.values_list("run_id", flat=True))
        ledger.record(
            Action.JUDGE_ADMITTED if measured.is_used else Action.JUDGE_BARRED,
            actor=RULE,
            organization_id=judge.project.organization_id,
            project_id=judge.project_id,
            obj=ObjectRef("judge", judge.id, judge.digest),
            at=now,
            reason=measured.why,
            data={"name": judge.name, "judged": measured.judged, "labelled": measured.labelled},
        )
    return standing


def barred(project_id: UUID) -> dict[str, str]:
    """Why each judge of the project that is not used is not, by the source of its signals."""
    reasons = {}
    for judge in Judge.objects.filter(project_id=project_id):
        latest = _latest(judge)
        if latest is None or not latest.is_used:
            reasons[source_of(judge.name, judge.digest)] = latest.why if latest else NOT_MEASURED
    return reasons


def _latest(judge: Judge) -> JudgeStanding | None:
    return JudgeStanding.objects.filter(judge=judge).order_by("-measured_at", "-id").first()
