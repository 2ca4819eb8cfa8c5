"""`POST /v1/feedback`: one signal, or up to a thousand as `{"signals": [...]}`; accepted means kept on the disk.

One: 202 with its id, or an error. Several: each by itself, 202 with an id for each that was accepted and a sentence for
each that was not; 422 when none was. What a signal may hold is `gateway.feedback_fields`'; that the same one sent again
is the first one, whichever gateway gets it, is in its id. A gateway remembers the keys that it has met lately, so that
it can refuse other content under one of them; what it cannot know is found when the signal is stored."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson

from gateway.errors import Refused, bad_request, unprocessable
from gateway.feedback_fields import parse
from gateway.intake import keep
from gateway.limiter import Limiter, used_up
from gateway.metrics import Metrics
from gateway.request import Request
from telemetry.metrics import CLOSED, Rules
from telemetry.records import SignalRecord
from telemetry.spool import Spool

MAX_BODY_BYTES = 4 << 20
MAX_SIGNALS = 1000
SIGNALS_AT_ONCE = 50
"""Parsed in one go; between two goes others have their turn."""
MAX_REMEMBERED = 50_000


class Feedback:
    """The door of one gateway process. `rules` gives what a project's signals are held against at present."""

    def __init__(
        self, *, spool: Spool, limiter: Limiter, metrics: Metrics, rules: Callable[[UUID], Rules]
    ) -> None:
        self._spool = spool
        self._limiter = limiter
        self._metrics = metrics
        self._rules = rules
        self._known: OrderedDict[tuple[UUID, str], UUID] = OrderedDict()
        """Project and idempotency key -> the signal kept under it, the longest unused first."""

    async def answer(self, request: Request) -> None:
        """Answer the exchange. Raises Refused: 400 for what is not JSON, 409, 413, 422 naming the field, 429, 503."""
        now_s = request.started_at / 1e6
        if exceeded := self._limiter.refuse_signal(request.caller, now_s):
            raise used_up(exceeded)
        document = _document(await request.body(MAX_BODY_BYTES))
        if "signals" not in document:
            await self.answer_one(request, document)
        else:
            await self.answer_all(request, _items(document))

    async def close_run(self, request: Request, run_id: str) -> None:
        """`POST /v1/runs/{run_id}/close`: the agent says that the run is over. Another way to send the signal `closed`,
        with the answer and the errors of one signal."""
        if exceeded := self._limiter.refuse_signal(request.caller, request.started_at / 1e6):
            raise used_up(exceeded)
        await self.answer_one(request, {"run_id": run_id, "name": CLOSED, "value": True})

    async def answer_one(self, request: Request, fields: Any, *, source: str = "feedback") -> None:
        """Answer with the id of the one signal, which has been counted. Raises Refused."""
        record = self._parse(fields, request, source)
        await self._keep([record])
        request.exchange.answer(202, orjson.dumps({"id": record.signal_id, "status": "accepted"}))

    async def answer_all(self, request: Request, items: Sequence[Any], *, source: str = "feedback") -> None:
        """Answer for each of the signals, the first of which has been counted. Raises Refused (503)."""
        self._limiter.count_signals(request.caller, len(items) - 1, request.started_at / 1e6)
        records: list[SignalRecord] = []
        ids: list[UUID | None] = []
        refused: list[dict[str, Any]] = []
        for index, item in enumerate(items):
            if index and index % SIGNALS_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                record = self._parse(item, request, source)
            except Refused as refusal:
                refused.append({"index": index, "param": refusal.param, "message": refusal.message})
                ids.append(None)
            else:
                records.append(record)
                ids.append(record.signal_id)
        answer: dict[str, Any] = {"accepted": len(records), "refused": refused, "ids": ids}
        if records:
            await self._keep(records)
            request.exchange.answer(202, orjson.dumps(answer))
            return
        self._metrics.refused[422] += 1
        first = refused[0]
        none = unprocessable(
            f"None of the {len(items)} signals was accepted. The first: {first['message']}",
            param=f"signals[0].{first['param']}",
        )
        request.exchange.answer(422, orjson.dumps(orjson.loads(none.body()) | answer))

    def _parse(self, fields: Any, request: Request, source: str) -> SignalRecord:
        caller = request.caller
        record = parse(
            fields, caller=caller, rules=self._rules(caller.project_id), received_at=request.started_at
        )
        known = self._known.get((caller.project_id, record.idempotency_key))
        if known not in (None, record.signal_id):
            raise Refused(
                409,
                "The idempotency key was used before, for a signal with other content.",
                param="idempotency_key",
                code="idempotency_conflict",
            )
        return replace(record, source=source)

    async def _keep(self, records: Sequence[SignalRecord]) -> None:
        await keep(self._spool, records, "feedback")
        self._metrics.feedback += len(records)
        for record in records:
            if record.idempotency_key:
                self._remember(record)

    def _remember(self, record: SignalRecord) -> None:
        key = record.project_id, record.idempotency_key
        self._known[key] = record.signal_id
        self._known.move_to_end(key)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The feedback is not valid JSON: {error.msg}.") from None
    if not isinstance(document, dict):
        raise bad_request("The feedback must be a JSON object.")
    return document


def _items(document: dict[str, Any]) -> list[Any]:
    items = document["signals"]
    if len(document) > 1:
        other = min(document.keys() - {"signals"})
        raise unprocessable(f"`{other}` stands beside `signals`; it belongs into each of them.", param=other)
    if not isinstance(items, list) or not 0 < len(items) <= MAX_SIGNALS:
        raise unprocessable(f"`signals` must be a list of 1 to {MAX_SIGNALS} signals.", param="signals")
    return items
