"""Judging runs: which are due, who works on them, and how a verdict becomes a signal.

A run is judged once by each judge, and again only when its messages have changed. A row is claimed by moving its
`due_at` on, which is the lease; whoever settles it must still hold it. A judge that is down leaves its signal missing.
What is asked is `learning.judges.prompts`', whether the verdict counts `learning.judges.standing`'s."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import orjson
from django.db import transaction
from django.db.models import Exists, F, OuterRef

from kernel.ids import uuid7
from learning.episodes.document import EpisodeDocument
from learning.judges import credentials, model, registry, standing
from learning.judges.definition import JudgeDefinition, JudgeKind
from learning.judges.prompts import (
    Answer,
    BadAnswer,
    ranking_prompt,
    read_ranking,
    read_rubric,
    rubric_prompt,
)
from learning.models import Episode, Judge, JudgeCall, JudgedRun
from telemetry.locks import lock_project
from telemetry.metrics import JUDGE_PREFIX
from telemetry.models import Run, Signal
from telemetry.runs import grow

BATCH = 50
"""Runs that one pass takes on, for each judge."""
ASKED_AT_ONCE = 5
"""Of these, runs or groups that it asks about: their leases begin together."""
LEASE = timedelta(minutes=30)
"""Longer than the two answers about each of these may take."""
RETRY = timedelta(minutes=1)
"""After the first failure; doubled after each."""
MAX_ATTEMPTS = 5
COMPANY = timedelta(minutes=10)
"""How long a run waits before it is asked again whether enough others of its task have come."""

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class _Asked:
    """One run's verdict."""

    value: float | None
    is_consistent: bool
    answers: list[Answer]


def judge_due(*, project_id: UUID, now: datetime, client: httpx.Client, rng: random.Random) -> int:
    """Let each of the project's judges work on some of what is due; return how many runs were decided.

    Called again until nothing is, each time with the time that it is then."""
    decided = 0
    for judge in registry.in_force(project_id):
        _take_on(judge, now)
        decided += _judge(judge, now, client, rng)
        standing.review(judge=judge, now=now)
    return decided


def _take_on(judge: Judge, now: datetime) -> None:
    """Rows for runs that have an episode this judge has not looked at."""
    looked_at = JudgedRun.objects.filter(
        judge=judge, run_id=OuterRef("run_id"), run_revision__gte=OuterRef("run_revision")
    )
    newest = (
        Episode.objects.filter(project_id=judge.project_id)
        .exclude(Exists(looked_at))
        .order_by("run_id", "-run_revision")
        .distinct("run_id")
    )
    for episode in newest[:BATCH]:
        messages = _messages_of(episode)
        subject = hashlib.sha256(orjson.dumps(messages)).hexdigest()
        row, is_new = JudgedRun.objects.get_or_create(
            judge=judge,
            run_id=episode.run_id,
            defaults={
                "project_id": judge.project_id,
                "run_revision": episode.run_revision,
                "subject_sha256": subject,
                "due_at": now if messages else None,
                "decided_at": None if messages else now,
                "error": "" if messages else "the run has no messages that can be read",
            },
        )
        if is_new:
            continue
        looked: dict[str, Any] = {"run_revision": episode.run_revision}
        if row.subject_sha256 != subject:
            looked |= {"subject_sha256": subject, "due_at": now, "attempts": 0, "decided_at": None}
            looked |= {"value": None, "is_consistent": None, "answers": []}
        JudgedRun.objects.filter(id=row.id, run_revision__lt=episode.run_revision).update(**looked)


def _judge(judge: Judge, now: datetime, client: httpx.Client, rng: random.Random) -> int:
    definition = JudgeDefinition.parse(judge.document)
    due = list(JudgedRun.objects.filter(judge=judge, due_at__lte=now).order_by("due_at", "id")[:BATCH])
    decided = 0
    for group in _groups(definition, due, now)[:ASKED_AT_ONCE]:
        claimed = [row for row in group if _claim(row, now)]
        if len(claimed) == len(
            group
        ):  # else another worker has some of them; ours come back when the lease ends
            decided += _decide(judge, definition, claimed, now, client, rng)
    return decided


def _groups(definition: JudgeDefinition, due: Sequence[JudgedRun], now: datetime) -> list[list[JudgedRun]]:
    """What is asked about together: each run alone, or whole groups of one task."""
    if definition.kind is JudgeKind.RUBRIC:
        return [[row] for row in due]
    tasks: dict[str, list[JudgedRun]] = {}
    keys = dict(Run.objects.filter(id__in=[row.run_id for row in due]).values_list("id", "task_key"))
    for row in due:
        tasks.setdefault(keys.get(row.run_id, ""), []).append(row)
    alone = tasks.pop("", [])  # runs without a task have nothing to be held against
    groups, size = [], definition.group_size
    for rows in tasks.values():
        whole = len(rows) - len(rows) % size
        groups += [rows[at : at + size] for at in range(0, whole, size)]
        alone += rows[whole:]
    JudgedRun.objects.filter(id__in=[row.id for row in alone]).update(due_at=now + COMPANY)
    return groups


def _claim(row: JudgedRun, now: datetime) -> bool:
    lease = now + LEASE
    taken = JudgedRun.objects.filter(id=row.id, due_at=row.due_at).update(
        due_at=lease, attempts=F("attempts") + 1
    )
    row.due_at, row.attempts = lease, row.attempts + 1
    return taken == 1


def _decide(
    judge: Judge,
    definition: JudgeDefinition,
    rows: Sequence[JudgedRun],
    now: datetime,
    client: httpx.Client,
    rng: random.Random,
) -> int:
    subjects = _subjects(rows)
    try:
        line = _Line(judge, definition, registry.credential_of(judge), client, now)
        if definition.kind is JudgeKind.RUBRIC:
            asked = [_rubric(line, rows[0], subjects, rng)]
        else:
            asked = _ranking(line, rows, subjects, rng)
    except (model.JudgeUnavailable, BadAnswer, credentials.Unreadable) as error:
        for row in rows:
            _put_off(row, str(error), now)
        return 0
    return sum(
        _settle(judge, definition, row, verdict, now) for row, verdict in zip(rows, asked, strict=True)
    )


@dataclass(frozen=True)
class _Line:
    """The way to a judge's model; each question and its answer is a row."""

    judge: Judge
    definition: JudgeDefinition
    credential: str
    client: httpx.Client
    now: datetime

    def ask(self, prompt: list[dict[str, str]], run_ids: Sequence[UUID], read: Any) -> list[Answer]:
        call = JudgeCall(
            project_id=self.judge.project_id,
            judge=self.judge,
            run_ids=[str(run_id) for run_id in run_ids],
            prompt_sha256=hashlib.sha256(orjson.dumps(prompt)).hexdigest(),
            created_at=self.now,
        )
        try:
            reply = model.ask(
                base_url=self.definition.base_url,
                model=self.definition.model,
                credential=self.credential,
                messages=prompt,
                client=self.client,
            )
            # PostgreSQL's text holds no NUL.
            call.answer = reply.text.replace("\x00", "\ufffd")
            call.prompt_tokens, call.completion_tokens = reply.prompt_tokens, reply.completion_tokens
            call.cost_microusd = self.definition.cost_microusd(reply.prompt_tokens, reply.completion_tokens)
            answers: list[Answer] = read(call.answer)
        except (model.JudgeUnavailable, BadAnswer) as error:
            call.error = str(error)[:300]
            raise
        finally:
            call.save(force_insert=True)
        return answers


def _rubric(line: _Line, row: JudgedRun, subjects: dict[UUID, Messages], rng: random.Random) -> _Asked:
    """Every question in one order, then in the other; the verdict counts where both say the same."""
    questions = line.definition.questions
    first, second = (
        line.ask(
            rubric_prompt(questions, subjects[row.run_id], rng, is_reversed=is_reversed),
            [row.run_id],
            lambda text: read_rubric(text, questions),
        )
        for is_reversed in (False, True)
    )
    is_consistent = [answer.value for answer in first] == [answer.value for answer in second]
    share = sum(answer.value for answer in first) / len(first)
    return _Asked(share if is_consistent else None, is_consistent, first)


def _ranking(
    line: _Line, rows: Sequence[JudgedRun], subjects: dict[UUID, Messages], rng: random.Random
) -> list[_Asked]:
    """The group in a random order, then in the opposite one; a run's verdict counts where neither order turns it
    against another run."""
    order = [row.run_id for row in rows]
    rng.shuffle(order)
    given: list[dict[UUID, Answer]] = []
    for shown in (order, order[::-1]):
        names = [f"record-{number}" for number in range(1, len(shown) + 1)]
        records = {name: subjects[run_id] for name, run_id in zip(names, shown, strict=True)}
        answers = line.ask(
            ranking_prompt(line.definition.criterion, records, rng),
            shown,
            lambda text, names=names: read_ranking(text, names),
        )
        given.append(dict(zip(shown, answers, strict=True)))
    first, second = given
    verdicts = []
    for row in rows:
        is_consistent = not any(
            (first[row.run_id].value - first[other].value) * (second[row.run_id].value - second[other].value)
            < 0
            for other in order
        )
        mean = (first[row.run_id].value + second[row.run_id].value) / 2
        verdicts.append(_Asked(mean if is_consistent else None, is_consistent, [first[row.run_id]]))
    return verdicts


@transaction.atomic
def _settle(
    judge: Judge, definition: JudgeDefinition, row: JudgedRun, verdict: _Asked, now: datetime
) -> bool:
    """Keep the verdict, and tell it as a signal of the run; False when the lease has gone to another."""
    lock_project(judge.project_id)
    held = JudgedRun.objects.filter(id=row.id, due_at=row.due_at, attempts=row.attempts)
    kept = held.update(
        due_at=None,
        decided_at=now,
        value=verdict.value,
        is_consistent=verdict.is_consistent,
        answers=[asdict(answer) for answer in verdict.answers],
        error="" if verdict.is_consistent else "the verdict turns with the order in which it is asked for",
    )
    if kept and verdict.value is not None:
        Signal.objects.create(
            id=uuid7(),
            project_id=judge.project_id,
            target_type="run_id",
            target=str(row.run_id),
            run_id=row.run_id,
            name=JUDGE_PREFIX + judge.name,
            value=verdict.value,
            source=definition.source,
            observed_at=now,
            received_at=now,
        )
        grow([row.run_id])
    return kept == 1


def _put_off(row: JudgedRun, error: str, now: datetime) -> None:
    """Try again later, or give up: the signal stays missing."""
    is_last = row.attempts >= MAX_ATTEMPTS
    JudgedRun.objects.filter(id=row.id, due_at=row.due_at).update(
        error=error[:300],
        due_at=None if is_last else now + RETRY * 2 ** (row.attempts - 1),
        decided_at=now if is_last else None,
    )


def _subjects(rows: Sequence[JudgedRun]) -> dict[UUID, Messages]:
    latest = (
        Episode.objects.filter(project_id=rows[0].project_id, run_id__in=[row.run_id for row in rows])
        .order_by("run_id", "-run_revision")
        .distinct("run_id")
    )
    return {episode.run_id: _messages_of(episode) for episode in latest}


def _messages_of(episode: Episode) -> Messages:
    return EpisodeDocument.read(bytes(episode.payload)).conversation()
