"""What every `flask db` command passes through; `migrations/env.py` only calls `run()`.

One process migrates a schema at a time. The lock is polled, never waited for: a waiting statement
holds a snapshot, and CREATE INDEX CONCURRENTLY waits for all snapshots to end, which is a deadlock.
"""

import time
import zlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

import structlog
from alembic import context
from alembic.migration import MigrationContext
from alembic.operations.ops import DropTableOp, MigrationScript, UpgradeOps
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from flask import Flask, current_app
from flask_migrate import Migrate
from flask_migrate.cli import db as flask_db
from psycopg import errors
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.schema import CreateSchema

from app.config import ROOT, Settings
from app.core.database import connect_when_ready, direct_engine
from app.models import db

FOLDER = ROOT / "migrations"
ATTEMPTS = 12
REPORT_EVERY_SECONDS = 5

log = structlog.get_logger("migrations")


def init_app(app: Flask) -> None:
    """Attach `flask db …`, whose files are in `migrations/` wherever it is called from."""
    Migrate(
        app,
        db,
        directory=str(FOLDER).replace("%", "%%"),
        render_as_batch=False,
        transaction_per_migration=True,
        include_object=_is_ours,
        process_revision_directives=_finish_revision,
    )
    for command in ("migrate", "revision", "merge"):
        for option in flask_db.commands[command].params:
            if option.name == "rev_id":
                option.default = next_revision_id


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
    with connect_when_ready(engine, settings.database_wait_seconds) as connection:
        # Alembic's own table is written by the reading commands too, and needs the schema.
        if _command_writes() or not _schema_exists(connection, settings.schema_name):
            _take_lock(connection, settings)
            _create_schema(connection, settings.schema_name)
        _check_search_path(connection, settings.schema_name)
        _migrate_with_retries(connection)


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
    if _schema_exists(connection, schema):
        return
    try:
        with connection.begin():
            connection.execute(CreateSchema(schema))
    except ProgrammingError as error:
        reason = str(error.orig).splitlines()[0]
        raise CommandError(
            f"Schema {schema} does not exist, and this role may not create it ({reason}). Somebody "
            f'who may is to run: CREATE SCHEMA "{schema}" AUTHORIZATION the role'
        ) from None


def _schema_exists(connection: Connection, schema: str) -> bool:
    query = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)")
    with connection.begin():
        return bool(connection.scalar(query, {"schema": schema}))


def _check_search_path(connection: Connection, schema: str) -> None:
    with connection.begin():
        found = connection.scalar(text("SELECT current_schema()"))
    if found != schema:
        raise CommandError(
            f"SCHEMA is {schema}, but the server put this connection into {found}. Either a pooler "
            "dropped the option: set DATABASE_URL_MIGRATIONS to a direct URL. Or the role lacks a "
            f'right: GRANT USAGE, CREATE ON SCHEMA "{schema}" TO …'
        )


def _migrate_with_retries(connection: Connection) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _migrate(connection)
        except DBAPIError as error:
            connection.rollback()
            reason = str(error.orig).splitlines()[0]
            match getattr(error.orig, "sqlstate", None):
                case errors.InsufficientPrivilege.sqlstate:
                    raise CommandError(f"The role lacks a right: {reason}") from None
                case errors.LockNotAvailable.sqlstate if attempt == ATTEMPTS:
                    raise CommandError(
                        f"A table stayed in use, {attempt} tries ({reason}). This revision changed "
                        "nothing. End the transaction that holds the table, then run this again."
                    ) from None
                case errors.LockNotAvailable.sqlstate:
                    # Committed revisions are in alembic_version and do not run again.
                    pause = min(0.2 * 2**attempt, 5)
                    log.warning(f"a table is in use, trying again in {pause:.1f} s ({attempt})")
                    time.sleep(pause)
                case _:
                    raise
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


def _is_ours(item: Any, name: str, kind: str, reflected: bool, model: Any) -> bool:
    """False for a table that no model and no revision knows: it is somebody else's."""
    if not (kind == "table" and reflected and model is None):
        return True
    revisions = "".join(file.read_text("utf-8") for file in (FOLDER / "versions").glob("*.py"))
    return f"'{name}'" in revisions or f'"{name}"' in revisions


def _finish_revision(
    migration: MigrationContext, revision: Any, directives: list[MigrationScript]
) -> None:
    # `flask db check` comes here too, and needs its directives.
    if not getattr(context.config.cmd_opts, "autogenerate", False):
        return
    upgrade, downgrade = directives[0].upgrade_ops, directives[0].downgrade_ops
    assert upgrade is not None
    assert downgrade is not None
    if upgrade.is_empty():
        directives.clear()
        log.info(
            "no changes in the models: no revision written "
            "(a new model must be imported in app/models/__init__.py)"
        )
    else:
        _drop_children_first(upgrade)
        upgrade.reverse_into(downgrade)


def _drop_children_first(upgrade: UpgradeOps) -> None:
    """Order the dropped tables by their foreign keys; Alembic leaves them in the order of a set."""
    drops = {drop.table_name: drop for drop in upgrade.ops if isinstance(drop, DropTableOp)}
    parents = {}
    for name, drop in drops.items():
        referred = {key.column.table.name for key in drop.to_table().foreign_keys}
        parents[name] = referred & drops.keys() - {name}
    try:
        children_first = [*TopologicalSorter(parents).static_order()][::-1]
    except CycleError:
        return
    others = [operation for operation in upgrade.ops if operation not in drops.values()]
    upgrade.ops = [*others, *(drops[name] for name in children_first)]


def next_revision_id() -> str:
    """The time as 20261231235959, so that files sort by date; always later than the newest."""
    dated = (FOLDER / "versions").glob("[0-9]" * 14 + "_*.py")
    newest = max((file.name[:14] for file in dated), default="")
    moment = datetime.now(UTC)
    while f"{moment:%Y%m%d%H%M%S}" <= newest:
        moment += timedelta(seconds=1)
    return f"{moment:%Y%m%d%H%M%S}"
