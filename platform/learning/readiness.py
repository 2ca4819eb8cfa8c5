"""What a project's episodes support learning by, and what is missing for the next rung: a report in sentences.

`report` is pure and works on figures; `of_project` gathers them in a few queries. Which algorithm a training job uses
is the planner's business."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from django.db.models import Count, Max, Min, Q, QuerySet, StdDev, Sum

from accounts.models import Project
from learning import reward_specs
from learning.models import Episode
from telemetry.metrics import JUDGE_PREFIX


class Rung(StrEnum):
    """What the data supports, from the least to the most; each rests on the ones before it."""

    PROMPT_FIRST = "prompt_first"  # a better prompt or a larger model will do more than training
    SFT = "sft"  # imitate the runs that went well
    KTO = "kto"  # learn from good and bad runs
    RL = "rl"  # compare attempts of our own policy at one task


RECENT = timedelta(days=30)


@dataclass(frozen=True)
class Figures:
    """What was measured over the latest revision of each run."""

    episodes: int
    """Runs that are over and may be learnt from."""
    opted_out: int
    rewarded: int
    """Of the episodes, those whose outcome is known."""
    recent: int
    """Of the rewarded, those whose run began within RECENT."""
    positive: int
    """Of the rewarded, those above the middle between the least and the largest reward."""
    verified: int
    """Of the rewarded, those whose outcome was told by somebody, and not by a judge."""
    deviation: float
    """Standard deviation of the reward over all rewarded episodes."""
    deviation_within: float
    """The same within a group, averaged over groups of two or more."""
    groups: int
    """Tasks with two or more rewarded episodes."""
    varied_groups: int
    """Of the groups, those whose rewards differ."""
    steps: int
    own_steps: int
    """Of the steps, those with token ids and log-probabilities of a model of ours."""


@dataclass(frozen=True)
class Need:
    """One condition of a rung."""

    rung: Rung
    name: str
    measured: float
    needed: float
    unit: str
    advice: str

    @property
    def is_met(self) -> bool:
        return self.measured >= self.needed

    def sentence(self) -> str:
        if self.unit == "share":
            return f"{self.name}: {self.measured:.0%}, and {self.needed:.0%} are needed. {self.advice}"
        return f"{self.name}: {self.measured:g}, and {self.needed:g} are needed. {self.advice}"


@dataclass(frozen=True)
class Readiness:
    """The report: how far the data carries."""

    supports: Rung
    summary: str
    needs: tuple[Need, ...]
    missing: tuple[str, ...]
    """What the next rung lacks, in sentences; empty on the highest."""
    figures: Figures


NEEDS: Sequence[tuple[Rung, str, str, float, str, str]] = (
    (Rung.SFT, "rewarded", "Runs with a known outcome", 200, "runs",
     "Send the outcome of more runs: the fewer there are, the more one odd run teaches."),
    (Rung.SFT, "coverage", "Runs whose outcome is known", 0.05, "share",
     "Feedback from so few says little about the rest: report outcomes from your own systems as well."),
    (Rung.SFT, "positive", "Runs that went well", 100, "runs",
     "There is too little to imitate: try a better prompt or a larger model first."),
    (Rung.SFT, "verified", "Outcomes told by people or systems rather than judges", 0.5, "share",
     "A judge is an opinion: have people or systems confirm a part of the outcomes."),
    (Rung.KTO, "negative", "Runs that went badly", 50, "runs",
     "Learning from contrast needs failures too: report them, and not only successes."),
    (Rung.KTO, "deviation", "Spread of the reward", 0.05, "reward",
     "All runs earn nearly the same: there is nothing to tell good from bad by."),
    (Rung.KTO, "recent", "Of these runs, from the last 30 days", 0.25, "share",
     "The data is old: what users ask for may have changed."),
    (Rung.RL, "groups", "Tasks with two or more attempts", 20, "tasks",
     "Send the signal `task`, so that attempts at one task can be compared."),
    (Rung.RL, "varied_share", "Of these tasks, with attempts that differ in reward", 0.2, "share",
     "Where all attempts earn the same there is nothing to learn: harder or easier tasks, or a finer reward."),
    (Rung.RL, "own_share", "Steps answered by a model of yours, with token ids", 0.5, "share",
     "Serve a model of your own for these runs: answers of others cannot be weighed token by token."),
)  # fmt: skip
"""Rung, figure, name, threshold, unit, and what to do where it is not reached. The one place of these numbers."""

_SUMMARIES = {
    Rung.PROMPT_FIRST: "A better prompt or a larger model will do more than training on this data.",
    Rung.SFT: "The data supports imitating the runs that went well (SFT on accepted runs).",
    Rung.KTO: "The data supports learning from runs that went well and runs that went badly (KTO).",
    Rung.RL: "The data supports reinforcement learning: several attempts of your own model at one task.",
}


def report(figures: Figures) -> Readiness:
    """The highest rung whose conditions, and those of every rung below it, hold."""
    measured = _measured(figures)
    needs = tuple(
        Need(rung, name, measured[key], needed, unit, advice)
        for rung, key, name, needed, unit, advice in NEEDS
    )
    supports = Rung.PROMPT_FIRST
    missing: tuple[str, ...] = ()
    for rung in (Rung.SFT, Rung.KTO, Rung.RL):
        missing = tuple(need.sentence() for need in needs if need.rung == rung and not need.is_met)
        if missing:
            break
        supports = rung
    return Readiness(supports, _SUMMARIES[supports], needs, missing, figures)


def of_project(project: Project, *, now: datetime) -> Readiness:
    """The report over the project's episodes under the reward spec in force."""
    version = reward_specs.in_force(project.id)
    latest = Episode.objects.filter(project=project, reward_spec=version)
    latest = latest.order_by("run_id", "-run_revision").distinct("run_id")
    everything = Episode.objects.filter(id__in=latest.values("id"))
    return report(_figures(everything, now))


def _figures(everything: "QuerySet[Episode]", now: datetime) -> Figures:
    episodes = everything.filter(untrainable="")
    known = Q(reward__isnull=False)
    sums = episodes.aggregate(
        episodes=Count("id"),
        rewarded=Count("id", filter=known),
        recent=Count("id", filter=known & Q(started_at__gte=now - RECENT)),
        verified=Count(
            "id", filter=known & ~Q(outcome_source="") & ~Q(outcome_source__startswith=JUDGE_PREFIX)
        ),
        deviation=StdDev("reward"),
        least=Min("reward"),
        most=Max("reward"),
        steps=Sum("step_count"),
        own_steps=Sum("own_step_count"),
    )
    middle = (sums["least"] + sums["most"]) / 2 if sums["rewarded"] else None
    groups = (
        episodes.filter(known)
        .exclude(group="")
        .order_by()
        .values("group")
        .annotate(count=Count("id"), spread=StdDev("reward"))
        .filter(count__gte=2)
    )
    spreads = [row["spread"] or 0.0 for row in groups]
    return Figures(
        episodes=sums["episodes"],
        opted_out=everything.count() - sums["episodes"],
        rewarded=sums["rewarded"],
        recent=sums["recent"],
        positive=episodes.filter(reward__gt=middle).count() if middle is not None else 0,
        verified=sums["verified"],
        deviation=sums["deviation"] or 0.0,
        deviation_within=sum(spreads) / len(spreads) if spreads else 0.0,
        groups=len(spreads),
        varied_groups=sum(spread > 0 for spread in spreads),
        steps=sums["steps"] or 0,
        own_steps=sums["own_steps"] or 0,
    )


def _measured(figures: Figures) -> dict[str, float]:
    def share(part: int, whole: int) -> float:
        return part / whole if whole else 0.0

    return {
        "rewarded": figures.rewarded,
        "coverage": share(figures.rewarded, figures.episodes),
        "positive": figures.positive,
        "verified": share(figures.verified, figures.rewarded),
        "negative": figures.rewarded - figures.positive,
        "deviation": round(figures.deviation, 4),
        "recent": share(figures.recent, figures.rewarded),
        "groups": figures.groups,
        "varied_share": share(figures.varied_groups, figures.groups),
        "own_share": share(figures.own_steps, figures.steps),
    }
