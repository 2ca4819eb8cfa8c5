"""The bytes of a call that a test made by hand, stored as ingest stores them."""

from django.db import transaction

from telemetry import periods
from telemetry.chains import Chains
from telemetry.models import Call
from telemetry.records import BeginRecord
from telemetry.rows import CallRow, copy_bodies


def keep_body(call: Call, request: bytes, response: bytes, response_type: str = "application/json") -> None:
    """Store what was sent and what was answered."""
    begin = BeginRecord(
        call_id=call.id,
        project_id=call.project_id,
        api_key_id=call.api_key_id,
        started_at=int(call.started_at.timestamp() * 1_000_000),
        dialect="chat",
        method=call.method,
        path=call.path,
        request=request,
    )
    period = periods.period_of(call.started_at)
    periods.ensure(period)
    row = CallRow(call.sequence, b"", period, begin, response, response_type)
    with transaction.atomic():  # COPY goes by a table that lives for one transaction
        copy_bodies([row], Chains(), may_be_known=True)
