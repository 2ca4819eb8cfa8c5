"""What counts as found, as missed and as a stray; and that the made-up traffic is what it says it is."""

import random
from itertools import pairwise

import pytest

from tests.benchmarks import stitching_hard as hard
from tests.benchmarks.stitching_score import Placed, owners, score
from tests.benchmarks.stitching_traffic import Exchange, airline, alike, interleave, openai


def placed(*calls: str, kind: str = "any") -> list[Placed]:
    """`a1`: a call of run a, found in run 1; `a1?`: in a run that says that it holds a guess."""
    return [Placed(kind, call[0], call[1], not call.endswith("?")) for call in calls]


def test_runs_that_are_found_whole_and_unmixed_are_all_right() -> None:
    result = score(placed("a1", "a1", "b2", "a1", "b2"))
    assert (result.precision, result.recall, result.strays, result.runs) == (1, 1, 0, 2)


def test_a_run_in_two_halves_costs_recall_alone() -> None:
    result = score(placed("a1", "a1", "a2", "a2"))
    assert (result.precision, result.strays) == (1, 0)
    assert result.recall == pytest.approx(4 / 12)


def test_a_stranger_costs_precision_and_is_a_stray() -> None:
    result = score(placed("a1", "a1", "a1", "b1"))
    assert result.recall == 1
    assert result.precision == pytest.approx(6 / 12)
    assert (result.strays, result.sure_strays) == (1, 1)
    assert score(placed("a1?", "a1?", "a1?", "b1?")).sure_strays == 0


def test_a_stranger_counts_wherever_it_comes_from() -> None:
    calls = [*placed("a1", "a1", "a1", kind="hard"), *placed("b1", kind="easy")]
    hard_ones = score(calls, lambda call: call.kind == "hard")
    assert (hard_ones.calls, hard_ones.strays) == (3, 0)
    assert hard_ones.precision == pytest.approx(6 / 9)
    assert score(calls, lambda call: call.kind == "easy").strays == 1


def test_calls_that_stand_alone_have_no_pairs() -> None:
    result = score(placed("a1", "b2"))
    assert (result.precision, result.recall) == (None, None)
    assert owners(placed("a1", "b1", "b1", "c2")) == {"1": "b", "2": "c"}


def test_the_calls_of_a_round_go_out_together_and_rounds_one_after_the_other() -> None:
    exchange = Exchange(kind="any", run="a", messages=(hard.HELLO,), answer=hard.WELCOME)
    traffic = interleave([[[exchange, exchange], [exchange]]], width=4, seed=1)
    *together, last = traffic
    assert max(call.started_at for call in together) < min(call.ended_at for call in together)
    assert all(call.ended_at < last.started_at for call in together)


def test_traffic_is_interleaved_and_comes_out_the_same_each_time() -> None:
    traffic = interleave(airline(), width=32, seed=1)
    assert traffic == interleave(airline(), width=32, seed=1)
    assert sum(one.exchange.run != other.exchange.run for one, other in pairwise(traffic)) > 0.9 * len(
        traffic
    )


def test_only_runs_that_cannot_be_known_are_alike_word_for_word() -> None:
    traffic = interleave(hard.scenarios(each=3, seed=5), width=8, seed=5)
    kinds = {timed.exchange.run: timed.exchange.kind for timed in traffic}
    assert {kinds[run] for run in alike(traffic)} == {"equal runs", "equal first turns"}


@pytest.mark.parametrize("kind", hard.KNOWABLE + hard.UNKNOWABLE)
def test_every_kind_is_more_than_one_call_and_is_made_from_the_seed(kind: hard.Kind) -> None:
    one, same = (kind(hard.Talk(hard.name_of(kind), "a", random.Random(3))) for _ in range(2))
    assert one == same
    assert len(one) > 1


def test_recorded_turns_know_their_conversation() -> None:
    turns = [turn for scenario in openai() for calls in scenario for turn in calls]
    told = [turn for turn in turns if turn.continues or turn.name]
    assert (len(turns) > 150, len(told) > 0) == (True, True)
    openings = [turn.run for turn in turns if turn not in told and len(turn.messages) == 1]
    assert len(openings) == len(set(openings))
