"""Judges' verdicts as a reward may see them: with the judge's reasons as evidence, and only from judges that are used.

A verdict that does not count stays among the signals, without a value and with the reason why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from learning.judges.definition import source_of
from learning.judges.standing import barred
from learning.models import JudgedRun
from learning.rewards.facts import Observed
from telemetry.metrics import JUDGE_PREFIX

_MAX_REASON = 200


@dataclass(frozen=True)
class Verdicts:
    """What is known about the judges of some runs."""

    barred: dict[str, str]
    """Why a judge is not used, by the source of its signals."""
    reasons: dict[tuple[UUID, str], tuple[str, ...]]
    """What a judge said about a run, by run and source."""

    def applied(self, run_id: UUID, rows: Sequence[Observed]) -> list[Observed]:
        """The run's signals, those of judges with their reasons or without their value."""
        return [self._applied(run_id, row) if row.name.startswith(JUDGE_PREFIX) else row for row in rows]

    def _applied(self, run_id: UUID, row: Observed) -> Observed:
        if row.source in self.barred:
            return replace(row, value=None, evidence=(self.barred[row.source],))
        if (run_id, row.source) not in self.reasons:
            # It was judged with fewer messages, and since then not, or not in the same way in both orders.
            return replace(row, value=None, evidence=("not used: it is no verdict on the run as it is",))
        return replace(row, evidence=self.reasons[run_id, row.source])


def verdicts_on(*, project_id: UUID, run_ids: Iterable[UUID]) -> Verdicts:
    """What to know about the judges of these runs."""
    judged = JudgedRun.objects.filter(
        project_id=project_id, run_id__in=list(run_ids), value__isnull=False
    ).select_related("judge")
    return Verdicts(
        barred=barred(project_id),
        reasons={
            (row.run_id, source_of(row.judge.name, row.judge.digest)): tuple(
                f"{answer['name']}: {answer['value']:g}, {answer['reason']}"[:_MAX_REASON]
                for answer in row.answers
            )
            for row in judged
        },
    )
