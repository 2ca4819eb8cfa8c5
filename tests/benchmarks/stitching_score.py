"""How well were calls joined into runs? Pairs of calls, and strays; pure, knows no database.

Does not say what a good figure is, and does not make the traffic."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Placed:
    """One call: the run that it is of, and the run in which it was found."""

    kind: str
    truth: str
    found: Hashable
    is_sure: bool = True
    """Whether the run in which it was found says that nothing in it is a guess (confidence 1)."""


@dataclass(frozen=True)
class Score:
    """Of the chosen calls. A pair counts once for each of its calls that was chosen."""

    calls: int
    runs: int
    pairs: int
    """That are of one run."""
    joined: int
    """That were found in one run."""
    right: int
    strays: int
    """Calls in a run most of which is another's."""
    sure_strays: int
    """Those whose run does not say that it holds a guess."""

    @property
    def recall(self) -> float | None:
        return self.right / self.pairs if self.pairs else None

    @property
    def precision(self) -> float | None:
        return self.right / self.joined if self.joined else None


def score(placed: Sequence[Placed], chosen: Callable[[Placed], bool] = lambda _: True) -> Score:
    """The score of the chosen calls, among all that were placed: a stranger counts wherever it comes from."""
    of_truth = Counter(call.truth for call in placed)
    of_found = Counter(call.found for call in placed)
    of_both = Counter((call.truth, call.found) for call in placed)
    owner = owners(placed)
    mine = [call for call in placed if chosen(call)]
    strays = [call for call in mine if owner[call.found] != call.truth]
    return Score(
        calls=len(mine),
        runs=len({call.truth for call in mine}),
        pairs=sum(of_truth[call.truth] - 1 for call in mine),
        joined=sum(of_found[call.found] - 1 for call in mine),
        right=sum(of_both[call.truth, call.found] - 1 for call in mine),
        strays=len(strays),
        sure_strays=sum(call.is_sure for call in strays),
    )


def owners(placed: Iterable[Placed]) -> dict[Hashable, str]:
    """Found run -> the run most of whose calls are in it; of equals, the one whose call came first."""
    calls: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)
    for call in placed:
        calls[call.found][call.truth] += 1
    return {found: counts.most_common(1)[0][0] for found, counts in calls.items()}
