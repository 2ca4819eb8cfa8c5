"""Amounts of reward: whole numbers of billionths, so that they add up exactly; floats only at the end.

The shortest text of such a float is the decimal itself, so the numbers that a person reads add up as well."""

from __future__ import annotations

import math
from decimal import Decimal

BILLION = 1_000_000_000
MOST = 1_000_000 * BILLION
"""A single amount is held within plus and minus this."""


def nano(amount: float) -> int:
    """The nearest whole number of billionths; what is too large is held at the bound."""
    if not math.isfinite(amount):
        return MOST if amount > 0 else -MOST
    return max(-MOST, min(MOST, round(amount * BILLION)))


def as_float(amount: int) -> float:
    """The float nearest to so many billionths."""
    return amount / BILLION


def as_decimal(amount: int) -> Decimal:
    """Exactly so many billionths."""
    return Decimal(amount).scaleb(-9)
