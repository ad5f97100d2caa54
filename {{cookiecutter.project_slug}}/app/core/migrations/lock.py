"""One process migrates a schema at a time.

The lock is polled, never waited for: a waiting statement holds a snapshot, and CREATE INDEX
CONCURRENTLY waits for all snapshots to end, which is a deadlock.
"""

import zlib

import structlog
from alembic.util import CommandError
from sqlalchemy import Connection, text

from app.config import Settings
from app.core.waiting import at_most_every, tries

REPORT_EVERY_SECONDS = 5

log = structlog.get_logger("migrations")


def take(connection: Connection, settings: Settings) -> None:
    """Take the advisory lock of this schema; the database keeps it until the connection closes."""
    schema = settings.schema_name
    key = zlib.crc32(f"migrations of {schema}".encode())
    report = at_most_every(REPORT_EVERY_SECONDS, log.info)
    for waited in tries(settings.migration_lock_wait_seconds, pause=0.2):
        if _try(connection, key):
            return
        holder = f"the migration of schema {schema} by {_holder(connection, key)}"
        report(f"waiting for {holder}, {waited:.0f} s")
    raise CommandError(
        f"{holder} did not end within {waited:.0f} s (MIGRATION_LOCK_WAIT_SECONDS). "
        "Nothing was changed here; look at that process, then run this again."
    )


def _try(connection: Connection, key: int) -> bool:
    # Alembic takes an open transaction for somebody else's and would never commit: end it here.
    with connection.begin():
        return bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}))


def _holder(connection: Connection, key: int) -> str:
    query = text(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND classid = 0 AND objid = :key"
    )
    with connection.begin():
        return f"process {connection.scalar(query, {'key': key})} of the database"
