import pytest

from console.drawing import curve, interval, waterfall


def test_a_waterfall_adds_up() -> None:
    bars = waterfall({"outcome": 1.0, "cost": -0.25, "risk": -0.5}, 0.25)
    assert [bar.text for bar in bars] == ["+1.0000", "-0.2500", "-0.5000", "+0.2500"]
    outcome, cost, risk, reward = bars
    assert (
        cost.left + cost.width == outcome.left + outcome.width
    )  # each bar begins where the one before it ended
    assert risk.left + risk.width == cost.left
    assert reward.left == outcome.left
    assert reward.left + reward.width == pytest.approx(risk.left)


def test_without_an_outcome_there_is_no_total() -> None:
    assert [bar.label for bar in waterfall({"cost": -0.25}, None)] == ["cost"]


@pytest.mark.parametrize("ends", [(0.02, 0.05, 0.09), (-0.3, -0.1, 0.02), (0.0, 0.0, 0.0)])
def test_an_interval_keeps_order_around_zero(ends: tuple[float, float, float]) -> None:
    picture = interval(*ends)
    assert 0 <= picture.low <= picture.mean <= picture.high <= 680
    assert (picture.low > picture.zero) == (ends[0] > 0)
    assert all(0 <= x <= 680 for x, _ in picture.ticks)


def test_a_curve_needs_two_points() -> None:
    assert curve([(1, 0.5)], 10) is None
    drawn = curve([(1, 0.2), (5, 0.6)], 10)
    assert drawn is not None
    assert drawn.points == "60.0,115.0 300.0,5.0"
    assert (drawn.low, drawn.high, drawn.latest) == (0.2, 0.6, 0.6)
