"""The table of promotion states: nothing is stuck, nothing skips the approval."""

from release.models import PROMOTION_OPEN, PromotionState
from release.moves import TRANSITIONS


def test_every_state_is_in_the_table_and_every_open_one_has_a_way_out() -> None:
    assert set(TRANSITIONS) == set(PromotionState)
    assert all(TRANSITIONS[state] for state in PROMOTION_OPEN)


def test_only_an_approval_leads_towards_champion() -> None:
    into = {
        state: {source for source in TRANSITIONS if state in TRANSITIONS[source]} for state in PromotionState
    }
    assert into[PromotionState.APPROVED] == {PromotionState.PROPOSED}
    assert into[PromotionState.CANARY] == {PromotionState.APPROVED}
    assert into[PromotionState.CHAMPION] == {PromotionState.CANARY, PromotionState.ROLLED_BACK}
    assert into[PromotionState.ROLLED_BACK] == {PromotionState.CANARY, PromotionState.CHAMPION}
    assert TRANSITIONS[PromotionState.REJECTED] == frozenset()
