"""What every `flask db` command passes through; `migrations/env.py` only calls `run()`.

One process migrates a schema at a time. The lock is polled, never waited for: a waiting statement
holds a snapshot, and CREATE INDEX CONCURRENTLY waits for all snapshots to end, which is a deadlock.
"""

import io
import sys
import time
import zlib
from collections.abc import Callable
from functools import wraps
from typing import Any, TextIO, cast

import click
import structlog
from alembic import context
from alembic.util import CommandError
from flask import Flask, current_app
from flask_migrate import Migrate
from flask_migrate.cli import db as flask_db
from psycopg import errors
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.schema import CreateSchema

from app.config import Settings
from app.core import history, lint
from app.core.autogenerate import Autogenerate
from app.core.catalog import INVALID_INDEXES
from app.core.database import connect_directly, is_in_use, reason
from app.core.sql import CONCURRENTLY
from app.models import db

ATTEMPTS = 12
REPORT_EVERY_SECONDS = 5
BAD_DATA = (errors.CheckViolation, errors.ForeignKeyViolation, errors.UniqueViolation)
MERGE = 'Join them: flask db merge heads -m "join two branches"'

log = structlog.get_logger("migrations")


def init_app(app: Flask) -> None:
    """Attach `flask db …`, whose files are in `migrations/` wherever it is called from."""
    Migrate(
        app,
        db,
        directory=str(history.FOLDER).replace("%", "%%"),
        render_as_batch=False,
        transaction_per_migration=True,
    )
    for command in ("migrate", "revision", "merge"):
        for option in flask_db.commands[command].params:
            if option.name == "rev_id":
                option.default = history.next_revision_id
    for name, command in flask_db.commands.items():
        if name not in ("init", "list-templates", "lint"):
            command.callback = _with_readable_history(command.callback, name)
    flask_db.commands["migrate"].params[:] = [
        *(each for each in flask_db.commands["migrate"].params if each.name != "acknowledge"),
        click.Option(
            ["--acknowledge"],
            multiple=True,
            expose_value=False,
            metavar="HAZARD=REASON",
            help="Write the change in spite of this hazard; the file will say the reason.",
            callback=lambda command, _, values: command.meta.update(acknowledged=values),
        ),
    ]


def run() -> None:
    """Do what the running `flask db` command asks for."""
    settings: Settings = current_app.config["SETTINGS"]
    if context.is_offline_mode():
        _print_sql(settings)
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
            _take_lock(connection, settings)
            _create_schema(connection, settings.schema_name)
        _check_search_path(connection, settings.schema_name)
        with connection.begin():
            at = history.current(connection)
        _refuse_unknown_revision(at)
        if writes and settings.app_env == "development" and _command() in ("upgrade", "prepare"):
            _warn_of_hazards(settings, at)
        _let_builds_wait(connection)
        _migrate_with_retries(connection, settings)


def _with_readable_history(callback: Any, name: str) -> Callable[..., Any]:
    """Say in a sentence what is wrong with the revision files, where Alembic shows a traceback."""
    original = getattr(callback, "unchecked", callback)

    @wraps(original)
    def checked(*words: Any, **options: Any) -> Any:
        if history.FOLDER.exists():
            _check_history(needs_one_head=name in ("upgrade", "migrate") and _goes_to_head(options))
        return original(*words, **options)

    checked.unchecked = original  # type: ignore[attr-defined]
    return checked


def _goes_to_head(options: dict[str, Any]) -> bool:
    return str(options.get("revision", "head")) == "head" and options.get("head", "head") == "head"


def _check_history(needs_one_head: bool) -> None:
    for revision, files in history.files_by_revision().items():
        if len(files) > 1:
            raise click.ClickException(
                f"{' and '.join(files)} are both revision {revision}. Give one of them another "
                "`revision`, and let the next one's `down_revision` follow."
            )
    try:
        heads = history.load().get_heads()
    except KeyError as error:
        raise click.ClickException(
            f"Revision {error.args[0]} is missing, and a file in migrations/versions builds on it. "
            "Bring its file back (git log --diff-filter=D --stat -- migrations/versions shows what "
            "was deleted), or set the other one's `down_revision`."
        ) from None
    except CommandError as error:
        raise click.ClickException(str(error)) from None
    except Exception as error:
        raise click.ClickException(
            f"A file in migrations/versions can not be loaded: {type(error).__name__}: {error}"
        ) from None
    if needs_one_head and len(heads) > 1:
        raise click.ClickException(f"There are several heads: {', '.join(heads)}. {MERGE}")


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


def _refuse_unknown_revision(at: set[str]) -> None:
    purges = getattr(context.config.cmd_opts, "purge", False) or "--purge" in sys.argv
    unknown = sorted(at - {each.revision for each in context.script.walk_revisions()})
    if unknown and not purges:
        raise CommandError(
            f"The database is at revision {unknown[0]}, which this code does not have: newer code "
            "migrated it, or a revision file is gone. Nothing was changed. Deploy the code that "
            "has the revision, or bring its file back; to go back, `flask db downgrade` with that "
            "code. See docs/recovery.md, The database is ahead of the code."
        )


def _warn_of_hazards(settings: Settings, at: set[str]) -> None:
    target = context.get_revision_argument()
    report = lint.lint(settings, None, at, str(target or "heads"))
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
        raise CommandError(
            f"Schema {schema} does not exist, and this role may not create it ({reason(error)}). "
            f'Somebody who may is to run: CREATE SCHEMA "{schema}" AUTHORIZATION the role'
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


def _migrate_with_retries(connection: Connection, settings: Settings) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _remove_invalid_indexes(connection, settings.schema_name)
            _migrate(connection, settings)
        except CommandError as error:
            raise CommandError(_plain(error, connection)) from None
        except DBAPIError as error:
            connection.rollback()
            if not is_in_use(error):
                raise CommandError(_failure(error, connection)) from None
            blocker = _blocker(connection, error.statement or "", settings.schema_name)
            if attempt == ATTEMPTS:
                raise CommandError(
                    f"A table stayed in use, {attempt} tries: {blocker}. This revision changed "
                    "nothing. End that transaction, then run this again; see docs/recovery.md, A "
                    "migration that waits."
                ) from None
            # Committed revisions are in alembic_version and do not run again.
            pause = min(0.2 * 2**attempt, 5)
            log.warning(
                f"a table is in use by {blocker}; trying again in {pause:.1f} s ({attempt})"
            )
            time.sleep(pause)
        else:
            return


def _migrate(connection: Connection, settings: Settings) -> None:
    flask_migrates = current_app.extensions["migrate"].configure_args
    options = flask_migrates | Autogenerate(settings).options()
    context.configure(connection=connection, target_metadata=db.metadata, **options)
    with context.begin_transaction():
        context.run_migrations()


def _remove_invalid_indexes(connection: Connection, schema: str) -> None:
    """Clear what a killed CREATE INDEX CONCURRENTLY left; its revision is run again."""
    query = text(f"{INVALID_INDEXES} AND pg_has_role(c.relowner, 'MEMBER')")
    with connection.begin():
        connection.execute(text("RESET lock_timeout"))
        if not _command_writes() or history.current(connection) == history.heads():
            return
        for name in connection.scalars(query, {"schema": f'"{schema}"'}).all():
            log.warning(f"removing the invalid index {name} that an interrupted build left")
            quoted = connection.dialect.identifier_preparer.quote(name)
            connection.execute(text(f"DROP INDEX {quoted}"))


def _blocker(connection: Connection, statement: str, schema: str) -> str:
    """Who holds a table that the statement names, the oldest transaction first."""
    query = text(
        "SELECT c.relname, a.pid, extract(epoch FROM clock_timestamp() - a.xact_start),"
        " a.state, left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80)"
        " FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.granted AND l.locktype = 'relation' AND a.pid <> pg_backend_pid()"
        " AND c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('r', 'p', 'm')"
        " ORDER BY position(c.relname IN :statement) = 0, a.xact_start LIMIT 1"
    )
    with connection.begin():
        row = connection.execute(query, {"schema": f'"{schema}"', "statement": statement}).first()
    if row is None:
        return "a transaction that has ended by now"
    table, pid, age, state, words = row
    since = "of another role" if age is None else f"{age:.0f} s old, {state}"
    return f"process {pid} on {table} ({since}: {words})"


def _plain(error: CommandError, connection: Connection) -> str:
    """Alembic's message, or a plainer one with the safe command."""
    words = str(error)
    if "Multiple head revisions" in words or "Multiple heads" in words:
        return f"There are several heads: {', '.join(sorted(history.heads()))}. {MERGE}"
    if "Target database is not up to date" not in words:
        return words
    connection.rollback()
    with connection.begin():
        at, tables = history.current(connection), history.tables_of_models(connection)
    if not at and tables:
        return _no_version(tables)
    heads = history.heads()
    return (
        f"The database is behind the code: it is at {', '.join(sorted(at)) or 'nothing'}, the code "
        f"at {', '.join(sorted(heads))}. Run: flask db upgrade"
    )


def _failure(error: DBAPIError, connection: Connection) -> str:
    if isinstance(error.orig, errors.InsufficientPrivilege):
        return f"The role lacks a right: {reason(error)}"
    with connection.begin():
        revisions, tables = history.current(connection), history.tables_of_models(connection)
    if isinstance(error.orig, errors.DuplicateTable) and not revisions:
        return _no_version(tables)
    at = ", ".join(sorted(revisions)) or "nothing"
    heading = "A failed migration"
    if isinstance(error.orig, BAD_DATA):
        heading = "Bad data found by VALIDATE"
    statement = " ".join((error.statement or "").split())[:300]
    return (
        f"The revision after {at} failed: {reason(error)}\n  in: {statement}\n"
        f"The database is at {at}; nothing of a failed transaction stays. "
        f"See docs/recovery.md, {heading}."
    )


def _no_version(tables: list[str]) -> str:
    head = ", ".join(sorted(history.heads()))
    return (
        f"The schema has tables ({', '.join(tables)}) but no revision: these "
        "migrations did not make them. Nothing was changed. If the tables are what revision "
        f"{head} says: flask db stamp {head}, then flask db check. If they are rubbish, use an "
        "empty schema. See docs/recovery.md, Database out of sync."
    )


def _print_sql(settings: Settings) -> None:
    context.configure(
        dialect_name="postgresql",
        target_metadata=db.metadata,
        literal_binds=True,
        transaction_per_migration=True,
        output_buffer=cast(TextIO, _Script(settings)),
    )
    schema = settings.schema_name
    context.execute(CreateSchema(schema, if_not_exists=True))
    context.execute(f'SET search_path = "{schema}"')
    context.execute("SET statement_timeout = 0")
    context.execute(f"SET lock_timeout = {settings.migration_lock_timeout_ms}")
    with context.begin_transaction():
        context.run_migrations()


class _Script(io.TextIOBase):
    """Standard output, where CONCURRENTLY waits as long as it must, as it does online."""

    def __init__(self, settings: Settings) -> None:
        self.timeout = settings.migration_lock_timeout_ms

    def write(self, words: str) -> int:
        if CONCURRENTLY.search(words):
            words = f"SET lock_timeout = 0;\n\n{words}SET lock_timeout = {self.timeout};\n\n"
        return sys.stdout.write(words)

    def flush(self) -> None:
        sys.stdout.flush()
