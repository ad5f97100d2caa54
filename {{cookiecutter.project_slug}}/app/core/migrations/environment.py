"""What every `flask db` command passes through: connection, lock, schema, timeouts, retries."""

import sys
import time
from typing import Any

import click
import structlog
from alembic import context
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.schema import CreateSchema

from app.config import Settings
from app.core import extensions, history, privileges
from app.core.backups.before import before_migration
from app.core.database import RESET_SESSION, connect_directly, quote
from app.core.database_errors import is_in_use, reason
from app.core.migrations import failures, lock, naming, offline
from app.core.migrations.autogenerate import Autogenerate, tables_may_refer_to_each_other
from app.core.safety import judge
from app.core.safety.catalog import INVALID_INDEXES
from app.core.safety.statements import CONCURRENTLY
from app.core.waiting import pause_after
from app.models import db

ATTEMPTS = 12

log = structlog.get_logger("migrations")


def run() -> None:
    """Do what the running `flask db` command asks for."""
    settings: Settings = current_app.config["SETTINGS"]
    if context.is_offline_mode():
        offline.print_sql(settings, with_grants=_command() == "upgrade")
        return
    with connect_directly(
        settings,
        f"lock_timeout={settings.migration_lock_timeout_ms}",
        # An index build and a VALIDATE take as long as they take.
        "statement_timeout=0",
        # The server ends the work of a client that was killed.
        "client_connection_check_interval=1s",
    ) as connection:
        # Alembic's own table is written by the reading commands too, and needs the schema.
        writes = _command_writes()
        if writes or not _schema_exists(connection, settings.schema_name):
            lock.take(connection, settings)
            _create_schema(connection, settings.schema_name)
        _check_access(connection, settings.schema_name)
        if writes and settings.service_role:
            privileges.check_role(connection, settings.service_role)
        with connection.begin():
            at = history.current(connection)
        if _is_ahead(at):
            return
        # Where no revision ran yet, there are no rows that one of them could hurt.
        warns = settings.app_env == "development" and _command() in ("upgrade", "prepare")
        if writes and at and warns:
            _warn_of_hazards(settings, at)
        if settings.backup_before_migrate and _changes_the_schema(at):
            before_migration(settings)
        _let_builds_wait(connection)
        extensions.give_a_home(connection)
        if writes and settings.database_url is None:
            _bring_extensions_home(connection)
        _migrate_with_retries(connection, settings)
        if writes and settings.service_role:
            connection.commit()  # Alembic has at least read something.
            privileges.grant(connection, settings.schema_name, settings.service_role)


def _migrate_with_retries(connection: Connection, settings: Settings) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with connection.begin():
                connection.exec_driver_sql(RESET_SESSION)
            _remove_invalid_indexes(connection, settings.schema_name)
            _migrate(connection, settings)
        except CommandError as error:
            raise CommandError(failures.plain(error, connection)) from None
        except DBAPIError as error:
            connection.rollback()
            if not is_in_use(error):
                raise CommandError(failures.failure(error, connection)) from None
            by = failures.blocker(connection, error.statement or "", settings.schema_name)
            if attempt == ATTEMPTS:
                raise CommandError(
                    f"A table stayed in use, {attempt} tries: {by}. This revision changed "
                    "nothing. End that transaction, then run this again; see docs/recovery.md, A "
                    "migration that waits."
                ) from None
            # Committed revisions are in alembic_version and do not run again.
            pause = pause_after(attempt)
            log.warning(f"a table is in use by {by}; trying again in {pause:.1f} s ({attempt})")
            time.sleep(pause)
        else:
            return


def _migrate(connection: Connection, settings: Settings) -> None:
    flask_migrates = current_app.extensions["migrate"].configure_args
    options = flask_migrates | Autogenerate(settings).options()
    context.configure(
        connection=connection,
        target_metadata=db.metadata,
        on_version_apply=_reset_session,
        **options,
    )
    naming.by_revision(context.get_context())
    with tables_may_refer_to_each_other(), context.begin_transaction():
        context.run_migrations()


def _reset_session(ctx: Any, *_: Any, **__: Any) -> None:
    """What a revision set for itself is not for the next one."""
    ctx.connection.exec_driver_sql(RESET_SESSION)


def _command() -> str | None:
    command = click.get_current_context(silent=True)
    return command.info_name if command else None


def _command_writes() -> bool:
    """True for upgrade, downgrade and stamp: the commands that have a revision to go to."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def _changes_the_schema(at: set[str]) -> bool:
    """Whether a revision will run on a database that has something to lose."""
    if not at or not _command_writes():
        return False
    target = str(context.get_revision_argument())
    if _command() == "downgrade":
        return True
    return _command() in ("upgrade", "prepare") and at != history.heads() and target not in at


def _is_ahead(at: set[str]) -> bool:
    """Whether newer code has migrated the database, and this code can only serve from it.

    Raises `CommandError` unless it is the start of the service that asks.
    """
    purges = getattr(context.config.cmd_opts, "purge", False) or "--purge" in sys.argv
    unknown = sorted(history.unknown(at))
    if not unknown or purges:
        return False
    if _command() == "prepare":
        log.warning(
            f"the database is at revision {unknown[0]}, which is newer than this code: "
            "nothing is migrated"
        )
        return True
    raise CommandError(
        f"The database is at revision {unknown[0]}, which this code does not have: newer code "
        "migrated it, or a revision file is gone. Nothing was changed. Deploy the code that "
        "has the revision, or bring its file back; to go back, `flask db downgrade` with that "
        "code. See docs/recovery.md, The database is ahead of the code."
    )


def _warn_of_hazards(settings: Settings, at: set[str]) -> None:
    target = context.get_revision_argument()
    report = judge(settings, None, at, str(target or "heads"))
    if report.exit_code == 1:
        log.warning(f"flask db lint says:\n{report.text()}")


def _let_builds_wait(connection: Connection) -> None:
    """No lock_timeout for CONCURRENTLY: it stops nobody, and waits for all open transactions."""

    def before(_c: Any, cursor: Any, statement: str, *_: Any) -> None:
        if CONCURRENTLY.search(statement):
            cursor.execute("SET lock_timeout = 0")

    def after(_c: Any, cursor: Any, statement: str, *_: Any) -> None:
        if CONCURRENTLY.search(statement):
            cursor.execute("RESET lock_timeout")

    event.listen(connection, "before_cursor_execute", before)
    event.listen(connection, "after_cursor_execute", after)


def _bring_extensions_home(connection: Connection) -> None:
    """The embedded server is ours alone; elsewhere the owner of an extension is told to do it."""
    with connection.begin():
        for name, schema in extensions.bring_home(connection):
            log.info(f"extension {name} moved from schema {schema} to {extensions.SCHEMA}")


def _create_schema(connection: Connection, schema: str) -> None:
    # Looked up first: CREATE SCHEMA IF NOT EXISTS needs the privilege even if the schema exists.
    if _schema_exists(connection, schema):
        return
    try:
        with connection.begin():
            connection.execute(CreateSchema(schema))
    except ProgrammingError as error:
        with connection.begin():
            role = connection.scalar(text("SELECT quote_ident(current_user)"))
        raise CommandError(
            f"Schema {schema} does not exist, and role {role} may not create it: {reason(error)}. "
            "Run as the owner of the database, or as a superuser: "
            f"CREATE SCHEMA {quote(schema)} AUTHORIZATION {role};"
        ) from None


def _schema_exists(connection: Connection, schema: str) -> bool:
    query = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)")
    with connection.begin():
        return bool(connection.scalar(query, {"schema": schema}))


def _check_access(connection: Connection, schema: str) -> None:
    """Whether this connection sees the schema, and may read the revision that it is at."""
    with connection.begin():
        found = connection.scalar(text("SELECT current_schema()"))
        shortage = privileges.of_migrations(connection, schema)
    if shortage and (found != schema or shortage.hides_the_revision()):
        raise CommandError(str(shortage))
    if found != schema:
        raise CommandError(
            f"SCHEMA is {schema}, but the server put this connection into {found}: a pooler "
            "dropped the option. Set DATABASE_URL_MIGRATIONS to a direct URL."
        )


def _remove_invalid_indexes(connection: Connection, schema: str) -> None:
    """Clear what a killed CREATE INDEX CONCURRENTLY left; its revision is run again."""
    query = text(f"{INVALID_INDEXES} AND pg_has_role(c.relowner, 'MEMBER')")
    with connection.begin():
        if not _command_writes() or history.current(connection) == history.heads():
            return
        for name in connection.scalars(query, {"schema": quote(schema)}).all():
            log.warning(f"removing the invalid index {name} that an interrupted build left")
            connection.execute(text(f"DROP INDEX {quote(name)}"))
