"""The paired bootstrap against what it must say."""

import random
import time

import pytest

from learning.evaluation.bootstrap import paired_bootstrap


def test_equal_arms_have_no_difference_and_no_width():
    interval = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (interval.mean, interval.low, interval.high, interval.n) == (0, 0, 0, 3)


def test_pairing_sees_a_small_sure_gain_in_noisy_tasks():
    rng = random.Random(1)
    champion = [rng.uniform(0, 100) for _ in range(300)]
    interval = paired_bootstrap(champion, [x + 1 + rng.gauss(0, 0.5) for x in champion])
    assert 0.9 < interval.low < interval.mean < interval.high < 1.1


def test_width_is_that_of_the_normal_approximation():
    champion = [0.0] * 300
    candidate = [float(i % 2) for i in range(300)]
    interval = paired_bootstrap(champion, candidate, resamples=4000)
    expected = 2 * 1.96 * (0.25 / 300) ** 0.5
    assert interval.high - interval.low == pytest.approx(expected, rel=0.08)
    assert paired_bootstrap(champion, candidate, confidence=0.5).high < interval.high


def test_seed_makes_it_reproducible():
    values = [float(i % 3) for i in range(50)]
    assert paired_bootstrap([0] * 50, values, seed=4) == paired_bootstrap([0] * 50, values, seed=4)
    assert paired_bootstrap([0] * 50, values, seed=4) != paired_bootstrap([0] * 50, values, seed=5)


def test_ten_thousand_resamples_of_300_take_less_than_two_seconds():
    started = time.perf_counter()
    paired_bootstrap([0.0] * 300, [float(i % 2) for i in range(300)], resamples=10_000)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("champion", "candidate", "options"),
    [([], [], {}), ([1], [1, 2], {}), ([1], [1], {"resamples": 0}), ([1], [1], {"confidence": 1})],
)
def test_nonsense_is_refused(champion, candidate, options):
    with pytest.raises(ValueError, match=r"paired|needs"):
        paired_bootstrap(champion, candidate, **options)
