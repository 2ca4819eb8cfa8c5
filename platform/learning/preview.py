"""What would change: a project's history scored again under a spec that is not in force yet.

Reads the facts that episodes froze, no bytes of calls; writes nothing. Its digest goes into the ledger with the spec
that is then published. Scoring is `learning.rewards.scoring`'s."""

import hashlib
import heapq
import math
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import rfc8785

from accounts.models import Project
from learning import reward_specs
from learning.episodes.document import EpisodeDocument, InvalidEpisode
from learning.models import Episode
from learning.rewards.scoring import score
from learning.rewards.spec import RewardSpec

BATCH = 200
"""Episodes in memory at a time."""
EXAMPLES = 10
"""Runs and pairs that are named of each sort."""
_LOOKED_THROUGH = 200
"""Of one task's runs, how many are searched for pairs to name; all of them are counted."""


class NothingInForce(ValueError):
    """The project has no reward spec yet: there is nothing to compare with."""


@dataclass(frozen=True)
class Rescored:
    """One run's reward before and after."""

    run_id: str
    task: str
    before: float | None
    after: float | None

    @property
    def change(self) -> float:
        """How much more it is; 0 where one of the two is not known."""
        return 0.0 if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Spread:
    """Rewards of some runs, those that are known."""

    count: int
    mean: float | None
    variance: float | None


@dataclass(frozen=True)
class Group:
    """Runs that have something in common."""

    by: str
    """`task`, `model version` or `model alias`."""
    name: str
    runs: int
    before: Spread
    after: Spread


@dataclass(frozen=True)
class Order:
    """How much of the order of runs of the same task stays."""

    pairs: int
    """Pairs of runs of one task whose rewards are known before and after."""
    flipped: int
    """Pairs of which the other run is the better one now."""
    tau: float | None
    """Kendall's tau-b: 1 when every order stays, -1 when all turn round; None without pairs that differ."""


@dataclass(frozen=True)
class Flip:
    """Two runs of one task that change places."""

    task: str
    better_before: Rescored
    better_after: Rescored


@dataclass(frozen=True)
class Preview:
    """What a spec would make of a project's history."""

    in_force: str
    in_force_digest: str
    spec_digest: str
    runs: int
    unreadable: int
    """Runs whose episodes are not of this version."""
    before: Spread
    after: Spread
    raised: int
    lowered: int
    unchanged: int
    reward_found: int
    """Runs that have a reward only under the new spec."""
    reward_lost: int
    order: Order
    flips: tuple[Flip, ...]
    winners: tuple[Rescored, ...]
    losers: tuple[Rescored, ...]
    groups: tuple[Group, ...]
    """By how much their mean moves, most first."""
    vetoes: dict[str, int]
    missing: dict[str, int]
    """In how many runs nobody has said what the spec reads."""
    not_final: dict[str, int]

    @property
    def digest(self) -> str:
        """sha256 (hex) of the whole preview."""
        return hashlib.sha256(rfc8785.dumps(asdict(self))).hexdigest()


@dataclass
class _Sums:
    """A mean and a variance that grow, by Welford's method."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.count += 1
            step = value - self.mean
            self.mean += step / self.count
            self.squares += step * (value - self.mean)

    def spread(self) -> Spread:
        if not self.count:
            return Spread(0, None, None)
        return Spread(self.count, self.mean, self.squares / self.count)


@dataclass
class _Pair:
    runs: int = 0
    before: _Sums = field(default_factory=_Sums)
    after: _Sums = field(default_factory=_Sums)

    def add(self, run: Rescored) -> None:
        self.runs += 1
        self.before.add(run.before)
        self.after.add(run.after)


def preview(
    *, project: Project, spec: RewardSpec, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Preview:
    """Score the latest episode of each of the project's runs under `spec`.

    Args:
        project: Whose history.
        spec: The spec that might be adopted.
        on_progress: Told how many runs of how many are done.

    Raises:
        NothingInForce: the project has no reward spec.
        InvalidRewardSpec: an own term's code is not what the spec names."""
    version = reward_specs.in_force(project.id)
    if version is None:
        raise NothingInForce(f"{project.name} has no reward spec in force")
    spec.check_own_terms()
    whole, groups = _Pair(), dict[tuple[str, str], _Pair]()
    rescored: list[Rescored] = []
    counts, vetoes, missing, not_final = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    latest = (
        Episode.objects.filter(project=project, reward_spec=version)
        .order_by("run_id", "-run_revision")
        .distinct("run_id")
    )
    total = latest.count()
    for done, episode in enumerate(latest.iterator(chunk_size=BATCH), start=1):
        try:
            document = EpisodeDocument.read(bytes(episode.payload))
        except InvalidEpisode:
            document = None
        if document is not None:
            scored = score(spec, document.facts)
            run = Rescored(str(episode.run_id), episode.task_key, episode.reward, scored.total)
            rescored.append(run)
            whole.add(run)
            for key in _groups_of(episode):
                groups.setdefault(key, _Pair()).add(run)
            vetoes.update([scored.veto] if scored.veto else [])
            missing.update(scored.missing)
            not_final.update(scored.not_final)
            counts[_what_changed(run)] += 1
        if done % BATCH == 0 or done == total:
            on_progress(done, total)
    order, flips = _order(rescored)
    return Preview(
        in_force=str(version),
        in_force_digest=version.digest,
        spec_digest=spec.digest,
        runs=len(rescored),
        unreadable=total - len(rescored),
        before=whole.before.spread(),
        after=whole.after.spread(),
        raised=counts["raised"],
        lowered=counts["lowered"],
        unchanged=counts["unchanged"],
        reward_found=counts["found"],
        reward_lost=counts["lost"],
        order=order,
        flips=flips,
        winners=_most(rescored, lambda run: run.change),
        losers=_most(rescored, lambda run: -run.change),
        groups=_moved(groups),
        vetoes=dict(sorted(vetoes.items())),
        missing=dict(sorted(missing.items())),
        not_final=dict(sorted(not_final.items())),
    )


def _groups_of(episode: Episode) -> Iterator[tuple[str, str]]:
    if episode.task_key:
        yield "task", episode.task_key
    for version in episode.model_version_ids:
        yield "model version", version
    if episode.model_alias:
        yield "model alias", episode.model_alias


def _what_changed(run: Rescored) -> str:
    if run.before is None and run.after is None:
        return "unchanged"
    if run.before is None:
        return "found"
    if run.after is None:
        return "lost"
    return "raised" if run.change > 0 else "lowered" if run.change < 0 else "unchanged"


def _most(rescored: Iterable[Rescored], by: Callable[[Rescored], float]) -> tuple[Rescored, ...]:
    return tuple(heapq.nlargest(EXAMPLES, (run for run in rescored if by(run) > 0), key=by))


def _moved(groups: dict[tuple[str, str], _Pair]) -> tuple[Group, ...]:
    rows = [
        Group(by, name, pair.runs, pair.before.spread(), pair.after.spread())
        for (by, name), pair in groups.items()
    ]

    def moved(row: Group) -> tuple[float, str, str]:
        known = row.before.mean is not None and row.after.mean is not None
        return (-abs(row.after.mean - row.before.mean) if known else 0.0, row.by, row.name)  # type: ignore[operator]

    return tuple(sorted(rows, key=moved))


def _order(rescored: Sequence[Rescored]) -> tuple[Order, tuple[Flip, ...]]:
    """Kendall's tau-b over the pairs within tasks, in n log n."""
    tasks: dict[str, list[Rescored]] = {}
    for run in rescored:
        if run.task and run.before is not None and run.after is not None:
            tasks.setdefault(run.task, []).append(run)
    pairs = flipped = tied_before = tied_after = tied_both = 0
    flips: list[Flip] = []
    for runs in tasks.values():
        values = [(run.before or 0.0, run.after or 0.0) for run in runs]
        pairs += math.comb(len(runs), 2)
        tied_before += _ties(before for before, _ in values)
        tied_after += _ties(after for _, after in values)
        tied_both += _ties(values)
        of_task = _inversions(values)
        flipped += of_task
        if of_task and len(flips) < EXAMPLES:
            flips += _flips(runs[:_LOOKED_THROUGH])
    kept = pairs - tied_before - tied_after + tied_both - flipped
    differing = (pairs - tied_before) * (pairs - tied_after)
    tau = (kept - flipped) / math.sqrt(differing) if differing else None
    return Order(pairs, flipped, tau), tuple(flips[:EXAMPLES])


def _ties(values: Iterable[object]) -> int:
    return sum(math.comb(count, 2) for count in Counter(values).values())


def _inversions(values: Sequence[tuple[float, float]]) -> int:
    """Pairs that are strictly in one order before and strictly in the other after."""
    passed: list[float] = []
    found = 0
    for _, after in sorted(values):
        found += len(passed) - bisect_right(passed, after)
        insort(passed, after)
    return found


def _flips(runs: Sequence[Rescored]) -> list[Flip]:
    return [
        Flip(a.task, a, b)
        for a in runs
        for b in runs
        if (a.before or 0.0) > (b.before or 0.0) and (a.after or 0.0) < (b.after or 0.0)
    ]
