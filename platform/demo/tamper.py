"""An insider with the database's superuser password: changes one byte of one event, then puts it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg

_OFF = "ALTER TABLE audit_event DISABLE TRIGGER audit_event_append_only"
_ON = "ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_event_append_only"
_FLIP = "UPDATE audit_event SET body = set_byte(body, %s, get_byte(body, %s) # 1) WHERE id = %s"


@contextmanager
def one_byte(database_url: str, object_id: str) -> Iterator[UUID]:
    """Flip one bit in the middle of the object's first event while the block runs; yields the event's id."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT id, length(body) FROM audit_event WHERE object_id = %s ORDER BY object_seq LIMIT 1",
            [object_id],
        ).fetchone()
        assert row is not None, "the object has no event"
        event_id, middle = row[0], row[1] // 2

        def flip() -> None:
            with connection.transaction():
                connection.execute(_OFF)
                connection.execute(_FLIP, [middle, middle, event_id])
                connection.execute(_ON)

        flip()
        try:
            yield event_id
        finally:
            flip()
