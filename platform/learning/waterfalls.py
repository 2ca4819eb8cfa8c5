"""Why an episode has the reward it has: the waterfall that was frozen with it, and its text form.

Reads what the episode holds and computes nothing anew; `learning.rewards.scoring` made it."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import orjson

from accounts.models import Project
from learning.models import Episode
from learning.rewards.scoring import Entry, waterfall_from_json


@dataclass(frozen=True)
class Waterfall:
    """An episode's reward, line by line."""

    episode_id: UUID
    run_id: UUID
    run_revision: int
    reward_spec: str
    total: Decimal | None
    """The reward; None while it is not known."""
    entries: tuple[Entry, ...]
    missing: tuple[str, ...]
    not_final: tuple[str, ...]
    veto: str

    @property
    def adds_up(self) -> bool:
        """Whether the entries sum to the reward, exactly."""
        return self.total is None or sum((entry.amount for entry in self.entries), Decimal(0)) == self.total


def waterfall(episode: Episode) -> Waterfall:
    """The waterfall of an episode."""
    reward = orjson.loads(bytes(episode.payload))["reward"]
    return Waterfall(
        episode_id=episode.id,
        run_id=episode.run_id,
        run_revision=episode.run_revision,
        reward_spec=str(episode.reward_spec),
        total=None if reward["total"] is None else Decimal(repr(float(reward["total"]))),
        entries=waterfall_from_json(reward["waterfall"]),
        missing=tuple(reward["missing"]),
        not_final=tuple(reward["not_final"]),
        veto=reward["veto"],
    )


def episode_of(project: Project, episode_id: UUID) -> Episode:
    """The project's episode of this id. Raises Episode.DoesNotExist."""
    return Episode.objects.select_related("reward_spec").get(project=project, id=episode_id)


def as_text(shown: Waterfall) -> str:
    """The waterfall as a table with running totals; evidence below the line that it stands for."""
    rows = [("part", "step", "term", "amount", "so far", "why")]
    evidence: dict[int, Sequence[str]] = {}
    so_far = Decimal(0)
    for entry in shown.entries:
        so_far += entry.amount
        evidence[len(rows)] = entry.evidence
        step = "" if entry.step is None else str(entry.step)
        rows.append((entry.part, step, entry.term, signed(entry.amount), signed(so_far), entry.why))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for number, row in enumerate(rows):
        part, step, term, amount, total = (
            text.rjust(width) if column in (1, 3, 4) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row[:5], widths, strict=True))
        )
        lines.append(f"{part}  {step}  {term}  {amount}  {total}  {row[5]}".rstrip())
        lines += [f"{' ' * (sum(widths) + 10)}- {_printable(what)}" for what in evidence.get(number, ())]
    return "\n".join([*lines, "", *_verdict(shown)])


def _verdict(shown: Waterfall) -> list[str]:
    if shown.total is None:
        lines = ["No reward."]
    else:
        lines = [
            f"Reward {signed(shown.total)}: the lines {'add up to it' if shown.adds_up else 'DO NOT add up'}."
        ]
    if shown.missing:
        lines.append(f"Not known: {', '.join(shown.missing)}.")
    if shown.not_final:
        lines.append(f"May still change: {', '.join(shown.not_final)}.")
    if shown.veto:
        lines.append(f"Decided by the veto {shown.veto!r}.")
    return lines


def signed(amount: Decimal) -> str:
    """To the last billionth, with its sign: `+0.46`."""
    return f"{amount.normalize() + 0:+f}"


def _printable(text: str) -> str:
    """Evidence quotes telemetry, which may hold what would steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
