"""The lock under which a project's calls and signals find their runs: one worker at a time."""

from uuid import UUID

from django.db import connection


def lock_project(project_id: UUID) -> None:
    """Let one stitcher, joiner or sweep at a time work on a project, until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"stitch:{project_id}"])
