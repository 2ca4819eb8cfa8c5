"""Taking in what can be sent again, such as feedback and spans: on the disk before it is answered, or refused.

Calls are another matter: they are relayed whether or not they can be kept (`gateway.capture`)."""

import asyncio
from collections.abc import Sequence

from gateway.errors import Refused
from telemetry.records import Record
from telemetry.spool import Spool, SpoolBroken, SpoolFull

RECORDS_AT_ONCE = 50
"""Written in one go; between two goes others have their turn."""
RETRY_AFTER_S = 5


async def keep(spool: Spool, records: Sequence[Record], what: str) -> None:
    """Return when the records are on the disk; `what` they are is for the message. Raises Refused (503): some of them
    may have been kept then, and come twice when they are sent again."""
    try:
        for index, record in enumerate(records):
            if index and index % RECORDS_AT_ONCE == 0:
                await asyncio.sleep(0)
            spool.append(record)
        await asyncio.wrap_future(spool.synced())
    except (SpoolFull, SpoolBroken):
        raise Refused(
            503,
            f"The {what} could not be stored: try again later.",
            type="server_error",
            code="spool",
            headers=[(b"retry-after", b"%d" % RETRY_AFTER_S)],
        ) from None
