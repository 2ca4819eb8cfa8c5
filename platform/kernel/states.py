"""State machines as tables, moved by one compare-and-set.

Owns the mechanism only: each package keeps its own table next to its enum."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from django.db.models import Model, TextChoices

S = TypeVar("S", bound=TextChoices)


class IllegalTransition(Exception):
    """The table has no arrow from the row's state to the wanted one."""


class StateChanged(Exception):
    """Another process moved the row first; reload it and decide again."""


def move(row: Model, target: S, *, table: Mapping[S, frozenset[S]], now: datetime, **changes: Any) -> None:
    """Move `row.state` to `target` if the table allows it and no other process got there first.

    `changes` are further columns to write in the same statement; `updated_at` is set to `now`.
    Raises IllegalTransition, or StateChanged when the row no longer holds the state that was read.
    """
    current = type(target)(row.state)  # type: ignore[attr-defined]
    if target not in table[current]:
        raise IllegalTransition(f"{row._meta.verbose_name} {row.pk} is {current}: it cannot become {target}")
    values = {"state": target, "updated_at": now, **changes}
    moved = type(row)._default_manager.filter(pk=row.pk, state=current).update(**values)
    if moved != 1:
        raise StateChanged(f"{row._meta.verbose_name} {row.pk} is no longer {current}")
    for name, value in values.items():
        setattr(row, name, value)
