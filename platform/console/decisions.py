"""Why a person may not decide, in a sentence they can act on; None where they may. Pure.

The rule itself is enforced by `release.promotion` and by constraints of the table: this only says it before
somebody tries."""

from accounts.models import Role, User
from accounts.selectors import can_approve, can_operate
from release.models import Promotion, PromotionState

DECIDABLE = [PromotionState.PROPOSED, PromotionState.APPROVED]
"""An approved promotion can still be rejected while its canary has not begun."""

ENDED = {
    PromotionState.CANARY: "It was approved and its canary runs. The guard watches; it can be rolled back.",
    PromotionState.CHAMPION: "It was approved, passed its canary and became champion.",
    PromotionState.REJECTED: "It was rejected. A new candidate needs a new promotion.",
    PromotionState.ROLLED_BACK: "It was rolled back.",
}


def why_not_decide(promotion: Promotion, *, viewer: User, role: Role | None) -> str | None:
    """The viewer's obstacle to approving or rejecting."""
    if promotion.state not in DECIDABLE:
        return ENDED[PromotionState(promotion.state)]
    if promotion.requested_by_id == viewer.pk:
        return "You requested this promotion, so somebody else has to decide on it."
    if role is None:
        return "You have no role in this organization. Its approvers and admins decide."
    if not can_approve(role):
        return f"Your role is {role}. Approvers and admins decide."
    return None


def why_not_roll_back(*, role: Role | None, has_way_back: bool) -> str | None:
    """The viewer's obstacle to rolling a deployment back."""
    if not has_way_back:
        return "There is no earlier version to go back to."
    if role is None:
        return "You have no role in this organization. Its operators, approvers and admins can roll back."
    if not can_operate(role):
        return f"Your role is {role}. Operators, approvers and admins can roll back."
    return None
