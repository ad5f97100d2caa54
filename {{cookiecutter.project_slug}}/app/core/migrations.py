"""What every `flask db` command passes through; `migrations/env.py` only calls `run()`.

One process migrates a schema at a time. The lock is polled, never waited for: a waiting statement
holds a snapshot, and CREATE INDEX CONCURRENTLY waits for all snapshots to end, which is a deadlock.
"""

import time
import zlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import structlog
from alembic import context
from alembic.migration import MigrationContext
from alembic.operations import MigrationScript
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from flask import Flask, current_app
from flask_migrate import Migrate
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateSchema

from app.config import ROOT, Settings
from app.core.database import direct_engine, wait_for_database
from app.models import db

FOLDER = ROOT / "migrations"
LOCK_NOT_AVAILABLE = "55P03"
ATTEMPTS = 12
REPORT_EVERY_SECONDS = 5

log = structlog.get_logger("migrations")


def init_app(app: Flask) -> None:
    """Attach `flask db …`, whose files are in `migrations/` wherever it is called from."""
    Migrate(
        app,
        db,
        directory=str(FOLDER),
        render_as_batch=False,
        transaction_per_migration=True,
        process_revision_directives=_process_revision,
    )


def run() -> None:
    """Do what the running `flask db` command asks for."""
    settings: Settings = current_app.config["SETTINGS"]
    if context.is_offline_mode():
        _print_sql(settings)
        return
    engine = direct_engine(
        settings,
        f"lock_timeout={settings.migration_lock_timeout_ms}",
        # The server ends the work of a client that was killed.
        "client_connection_check_interval=1s",
    )
    wait_for_database(engine, settings.database_wait_seconds)
    with engine.connect() as connection:
        if _command_writes():
            _take_lock(connection, settings)
            _create_schema(connection, settings.schema_name)
            _migrate_with_retries(connection)
        else:
            _migrate(connection)


def heads() -> set[str]:
    """The newest revisions in `migrations/versions`; normally one, none before the first."""
    versions = FOLDER / "versions"
    names = sorted(file.name for file in versions.glob("*.py")) if versions.is_dir() else []
    return _heads(tuple(names))


def current(connection: Connection) -> set[str]:
    """The revisions that the schema is at; none before the first upgrade."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return set()
    return set(connection.scalars(text("SELECT version_num FROM alembic_version")))


@lru_cache(maxsize=1)
def _heads(names: tuple[str, ...]) -> set[str]:
    return set(ScriptDirectory(str(FOLDER)).get_heads()) if names else set()


def _command_writes() -> bool:
    """True for upgrade, downgrade and stamp: the commands that have a revision to go to."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def _take_lock(connection: Connection, settings: Settings) -> None:
    """Take the advisory lock of this schema; the database keeps it until the connection closes."""
    schema = settings.schema_name
    key = zlib.crc32(f"migrations of {schema}".encode())
    started = time.monotonic()
    next_report = 0.0
    while not _try_lock(connection, key):
        waited = time.monotonic() - started
        holder = f"the migration of schema {schema} by {_lock_holder(connection, key)}"
        if waited >= settings.migration_lock_wait_seconds:
            raise CommandError(
                f"{holder} did not end within {waited:.0f} s (MIGRATION_LOCK_WAIT_SECONDS). "
                "Nothing was changed here; look at that process, then run this again."
            )
        if waited >= next_report:
            next_report = waited + REPORT_EVERY_SECONDS
            log.info(f"waiting for {holder}, {waited:.0f} s")
        time.sleep(0.2)


def _try_lock(connection: Connection, key: int) -> bool:
    # Alembic takes an open transaction for somebody else's and would never commit: end it here.
    with connection.begin():
        return bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}))


def _lock_holder(connection: Connection, key: int) -> str:
    query = text(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND classid = 0 AND objid = :key"
    )
    with connection.begin():
        return f"process {connection.scalar(query, {'key': key})} of the database"


def _create_schema(connection: Connection, schema: str) -> None:
    # Looked up first: CREATE SCHEMA IF NOT EXISTS needs the right to create even if it exists.
    exists = text("SELECT 1 FROM pg_namespace WHERE nspname = :schema")
    with connection.begin():
        if connection.scalar(exists, {"schema": schema}) is None:
            connection.execute(CreateSchema(schema))


def _migrate_with_retries(connection: Connection) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _migrate(connection)
        except OperationalError as error:
            # Committed revisions are in alembic_version and do not run again.
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE or attempt == ATTEMPTS:
                raise
            connection.rollback()
            pause = min(0.2 * 2**attempt, 5)
            log.warning(f"a table is in use, trying again in {pause:.1f} s ({attempt}/{ATTEMPTS})")
            time.sleep(pause)
        else:
            return


def _migrate(connection: Connection) -> None:
    options = current_app.extensions["migrate"].configure_args
    context.configure(connection=connection, target_metadata=db.metadata, **options)
    with context.begin_transaction():
        context.run_migrations()


def _print_sql(settings: Settings) -> None:
    context.configure(
        dialect_name="postgresql",
        target_metadata=db.metadata,
        literal_binds=True,
        transaction_per_migration=True,
    )
    schema = settings.schema_name
    context.execute(CreateSchema(schema, if_not_exists=True))
    context.execute(f'SET search_path = "{schema}"')
    context.execute(f"SET lock_timeout = {settings.migration_lock_timeout_ms}")
    with context.begin_transaction():
        context.run_migrations()


def _process_revision(
    migration: MigrationContext, revision: Any, directives: list[MigrationScript]
) -> None:
    """Name a revision by its time, so that files sort by date; write none without a change."""
    script = directives[0]
    # `flask db check` comes here too, and needs its directives.
    is_migrate = getattr(context.config.cmd_opts, "autogenerate", False)
    if is_migrate and script.upgrade_ops is not None and script.upgrade_ops.is_empty():
        directives.clear()
        log.info("no changes in the models: no revision written")
        return
    asked = migration.environment_context.context_opts["revision_context"].command_args  # type: ignore[union-attr]
    if asked["rev_id"] is None:
        script.rev_id = _next_revision_id()


def _next_revision_id() -> str:
    """The time as 20261231235959; a second later than the newest, if that is younger."""
    dated = (FOLDER / "versions").glob("[0-9]" * 14 + "_*.py")
    newest = max((file.name[:14] for file in dated), default="")
    moment = datetime.now(UTC)
    while f"{moment:%Y%m%d%H%M%S}" <= newest:
        moment += timedelta(seconds=1)
    return f"{moment:%Y%m%d%H%M%S}"
