"""`manage.py preview_reward_spec --file YAML`: what would change for a project if this spec were published."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import Progress

from console.management.arguments import add_project, project_of
from learning.preview import NothingInForce, Preview, Rescored, Spread, preview
from learning.rewards.fields import InvalidRewardSpec
from learning.rewards.spec import RewardSpec

GROUPS = 15
"""Groups that are printed: those that move most."""


class Command(BaseCommand):
    help = "Score a project's history under a reward spec that is not in force, and show the differences."

    def add_arguments(self, parser: CommandParser) -> None:
        add_project(parser)
        parser.add_argument("--file", type=Path, required=True, metavar="YAML")

    def handle(self, *args: Any, **options: Any) -> None:
        project = project_of(options["project"])
        try:
            spec = RewardSpec.from_yaml(options["file"].read_text())
            with Progress(console=Console(stderr=True)) as bar:
                task = bar.add_task("scoring history again", total=None)
                seen = preview(
                    project=project,
                    spec=spec,
                    on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
        except (OSError, UnicodeDecodeError, InvalidRewardSpec) as error:
            raise CommandError(f"--file: {error}") from None
        except NothingInForce as error:
            raise CommandError(f"--project: {error}; publish one first (publish_reward)") from None
        self.stdout.write("\n".join(_lines(seen)))


def _lines(seen: Preview) -> list[str]:
    lines = [
        f"{seen.runs} runs, now under {seen.in_force}; {seen.unreadable} more cannot be read.",
        f"Mean reward    {_mean(seen.before)} -> {_mean(seen.after)}",
        f"Variance       {_number(seen.before.variance)} -> {_number(seen.after.variance)}",
        f"Gain           {seen.raised} runs",
        f"Lose           {seen.lowered} runs",
        f"Unchanged      {seen.unchanged} runs",
        f"Only now known {seen.reward_found} runs; no longer known: {seen.reward_lost}",
        f"Order          {seen.order.flipped} of {seen.order.pairs} pairs of one task change places, "
        f"Kendall's tau {_number(seen.order.tau)}",
    ]
    lines += [f"Veto           {name!r} decides {count} runs" for name, count in seen.vetoes.items()]
    lines += [f"Not known      {name}: in {count} runs" for name, count in seen.missing.items()]
    lines += [f"Not final      {name}: in {count} runs" for name, count in seen.not_final.items()]
    for title, runs in (("Gains most", seen.winners), ("Loses most", seen.losers)):
        lines += [f"{title}     run {run.run_id} {_change(run)}" for run in runs[:3]]
    for flip in seen.flips[:3]:
        a, b = flip.better_before, flip.better_after
        lines.append(f"Flips          {flip.task}: {a.run_id} {_change(a)} and {b.run_id} {_change(b)}")
    for group in seen.groups[:GROUPS]:
        lines.append(
            f"{group.by:14} {group.name}: {group.runs} runs, {_mean(group.before)} -> {_mean(group.after)}"
        )
    return [*lines, f"Preview digest {seen.digest}"]


def _change(run: Rescored) -> str:
    return f"{_number(run.before)} -> {_number(run.after)}"


def _mean(spread: Spread) -> str:
    return f"{_number(spread.mean)} ({spread.count} known)"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
