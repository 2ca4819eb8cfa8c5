"""Push over PostgreSQL's NOTIFY: delivered when, and only when, the surrounding transaction commits."""

from django.db import connection

ROUTES_CHANGED = "ratchet_routes_changed"
"""Keys, upstreams, aliases or shares changed: gateways load their snapshot again."""

CALLS_ARRIVED = "ratchet_calls_arrived"


def notify(channel: str) -> None:
    """Queue an empty notification on `channel` in the current transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, '')", [channel])
