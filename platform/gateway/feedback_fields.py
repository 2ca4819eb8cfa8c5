"""One signal of a feedback request, parsed strictly at the edge and held against the project's metrics.

Whether the target exists is not asked: feedback may come before the call's own row, and while PostgreSQL is
down. What is answered, and where accepted signals go, is `gateway.feedback`'s business.

    {run_id | call_id | response_id | external_key, name, value: bool | number | text | assistant message,
     step?, observed_at?, supersedes?, idempotency_key?}
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import orjson

from gateway.errors import unprocessable
from gateway.snapshot import Caller
from kernel.ids import uuid7
from telemetry.metrics import MAX_KEY_CHARACTERS, MAX_NUMBER, Rules, misfit
from telemetry.records import SignalRecord

TARGETS = ("run_id", "call_id", "response_id", "external_key")
FIELDS = frozenset({*TARGETS, "name", "value", "step", "observed_at", "supersedes", "idempotency_key"})
MAX_TARGET_CHARACTERS = MAX_KEY_CHARACTERS
MAX_NAME_CHARACTERS = 100
MAX_TEXT_CHARACTERS = 100_000
MAX_STEP = 2**31 - 1
MAX_AHEAD = timedelta(days=1)
"""How far a clock of the caller's may run ahead of ours: the latest observation counts, so one from the far future
would count for ever. The past is open: what happened weeks ago may be told today."""
_OFFSET = re.compile(r"(Z|[+-]\d\d:?\d\d)$", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse(fields: Any, *, caller: Caller, rules: Rules, received_at: int) -> SignalRecord:
    """The signal that these fields describe; `received_at` in Unix microseconds.

    Raises Refused (422) naming the field that is wrong."""
    if not isinstance(fields, dict):
        raise unprocessable("A signal must be a JSON object.", param="signals")
    unknown = sorted(fields.keys() - FIELDS)
    if unknown:
        raise unprocessable(
            f"Unknown field `{unknown[0]}`; feedback has {', '.join(sorted(FIELDS))}.", param=unknown[0]
        )
    target_type = _target_type(fields)
    record = SignalRecord(
        signal_id=_id(fields, caller),
        project_id=caller.project_id,
        api_key_id=caller.key_id,
        target_type=target_type,
        target=_target(fields, target_type),
        name=_text(fields, "name", MAX_NAME_CHARACTERS),
        value=_value(fields),
        step=_step(fields.get("step")),
        supersedes=_supersedes(fields.get("supersedes")),
        idempotency_key=_optional_text(fields, "idempotency_key", MAX_TARGET_CHARACTERS),
        observed_at=_observed_at(fields.get("observed_at"), received_at),
        received_at=received_at,
    )
    wrong = misfit(
        rules, name=record.name, value=record.value, step=record.step, target_type=record.target_type
    )
    if wrong:
        raise unprocessable(wrong.message, param=wrong.param)
    return record


def _id(fields: Mapping[str, Any], caller: Caller) -> UUID:
    """A fresh id; with an idempotency key, the one that this key with this content has always and everywhere."""
    if not fields.get("idempotency_key"):
        return uuid7()
    return uuid5(caller.project_id, orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode())


def _supersedes(value: Any) -> UUID | None:
    if value is None:
        return None
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise unprocessable(
            "`supersedes` must be the id that was answered when the earlier signal was accepted.",
            param="supersedes",
        ) from None


def _target_type(fields: Mapping[str, Any]) -> str:
    given = [target for target in TARGETS if fields.get(target) is not None]
    if len(given) != 1:
        found = f"this has {' and '.join(given)}" if given else "this has none"
        raise unprocessable(
            f"Feedback must name exactly one of {', '.join(TARGETS)}; {found}.",
            param=given[1] if given else "run_id",
        )
    return given[0]


def _target(fields: Mapping[str, Any], target_type: str) -> str:
    target = _text(fields, target_type, MAX_TARGET_CHARACTERS)
    if target_type != "call_id":
        return target
    try:
        return str(UUID(target))
    except ValueError:
        raise unprocessable(
            "`call_id` must be the id from the answer header x-ratchet-call-id.", param="call_id"
        ) from None


def _text(fields: Mapping[str, Any], name: str, limit: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise unprocessable(f"`{name}` must be text that is not empty.", param=name)
    return _within(value, name, limit)


def _optional_text(fields: Mapping[str, Any], name: str, limit: int) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    return _text(fields, name, limit)


def _within(value: str, name: str, limit: int) -> str:
    if len(value) > limit:
        raise unprocessable(f"`{name}` has {len(value)} characters; use at most {limit}.", param=name)
    if "\0" in value:
        raise unprocessable(f"`{name}` holds a NUL character, which cannot be stored.", param=name)
    return value


def _value(fields: Mapping[str, Any]) -> Any:
    value = fields.get("value")
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > MAX_NUMBER:
            raise unprocessable("`value` must be a finite number of at most 2^53.", param="value")
        return value
    if isinstance(value, str):
        return _within(value, "value", MAX_TEXT_CHARACTERS)
    if isinstance(value, dict):
        _within(json.dumps(value, ensure_ascii=False).replace("\\u0000", "\0"), "value", MAX_TEXT_CHARACTERS)
        return value
    raise unprocessable(
        "`value` must be a boolean, a number, text, or an assistant message (an object).", param="value"
    )


def _step(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_STEP:
        raise unprocessable("`step` must be a whole number, 0 for the run's first step.", param="step")
    return value


def _observed_at(value: Any, received_at: int) -> int:
    if value is None:
        return received_at
    if isinstance(value, str) and _OFFSET.search(value):
        try:
            moment = datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        else:
            elapsed = moment - _EPOCH
            if elapsed - timedelta(microseconds=received_at) > MAX_AHEAD:
                raise unprocessable(
                    f"`observed_at` lies in the future ({value}): it must be a time at which something was observed,"
                    " and no clock may run ahead by more than a day.",
                    param="observed_at",
                )
            return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
    raise unprocessable(
        "`observed_at` must be an ISO 8601 time with its offset, e.g. 2026-11-21T09:30:00+01:00.",
        param="observed_at",
    )
