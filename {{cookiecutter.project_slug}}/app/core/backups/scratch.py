"""A place for a trial restore, which is gone afterwards: a database, or a schema where none may be.

The connection that makes it holds a lock with its name. One whose lock is free was left by a run
that was killed, and the next run removes it.
"""

import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from psycopg import errors
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from app.config import PROJECT, Settings
from app.core.backups.errors import BackupError
from app.core.database import LONG_WORK, RESET_SESSION, connect_directly, quote
from app.core.database_errors import reason

# Several services may share a server.
PREFIX = f"verify_{zlib.crc32(PROJECT['name'].encode()):08x}_"
MAY_CREATE_DATABASES = text(
    "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
)
DATABASES = text("SELECT datname FROM pg_database WHERE starts_with(datname, :prefix)")
SCHEMAS = text("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, :prefix)")


@contextmanager
def scratch(
    settings: Settings, url: URL | None, setting: str, schema: str, in_schema: bool
) -> Iterator[tuple[Connection, str, str]]:
    """A connection, the empty schema in it, and what to call the place.

    A database of its own on the server of `url`, which is what `setting` says, else on the
    service's, if the role may make one; then the schema has the name `schema`.
    """
    if url is not None:
        settings = settings.model_copy(update={"database_url_migrations": url})
    said = setting if url is not None else None
    with connect_directly(settings, *LONG_WORK, setting=said) as connection:
        with connection.begin():
            may = bool(connection.scalar(MAY_CREATE_DATABASES))
        if url is not None and not may:
            raise BackupError(
                f"The role {url.username} may not create the database of a trial restore. Run as a "
                f"superuser: ALTER ROLE {quote(url.username or 'app')} CREATEDB;"
            )
        place = _schema(connection) if in_schema or not may else _database(connection, settings)
        with place as (there, name, words):
            yield there, name or schema, words


@contextmanager
def _database(
    entry: Connection, settings: Settings
) -> Iterator[tuple[Connection, str | None, str]]:
    entry = entry.execution_options(isolation_level="AUTOCOMMIT")
    # Another run may be using one: without FORCE a database that is in use stays.
    for name in entry.scalars(DATABASES, {"prefix": PREFIX}).all():
        with suppress(DBAPIError):
            if _lock(entry, name):
                entry.exec_driver_sql(f"DROP DATABASE IF EXISTS {quote(name)}")
    name = f"{PREFIX}{secrets.token_hex(4)}"
    _lock(entry, name)
    try:
        # template0: template1 may have tables of its own.
        entry.exec_driver_sql(f"CREATE DATABASE {quote(name)} TEMPLATE template0")
    except DBAPIError as error:
        raise BackupError(f"No database for the trial restore: {reason(error)}.") from None
    there = settings.model_copy(
        update={"database_url_migrations": entry.engine.url.set(database=name)}
    )
    try:
        with connect_directly(there, *LONG_WORK) as connection:
            yield connection, None, f"database {name}"
    finally:
        entry.exec_driver_sql(f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)")


@contextmanager
def _schema(connection: Connection) -> Iterator[tuple[Connection, str | None, str]]:
    with connection.begin():
        for name in connection.scalars(SCHEMAS, {"prefix": PREFIX}).all():
            if _lock(connection, name):
                connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {quote(name)} CASCADE")
    name = f"{PREFIX}{secrets.token_hex(4)}"
    with connection.begin():
        _lock(connection, name)
        try:
            connection.exec_driver_sql(f"CREATE SCHEMA {quote(name)}")
        except DBAPIError as error:
            if not isinstance(error.orig, errors.InsufficientPrivilege):
                raise
            raise BackupError(
                f"No place for the trial restore: {reason(error)}. Let the role create one "
                "(ALTER ROLE … CREATEDB), or name another server with --url."
            ) from None
    try:
        yield connection, name, f"schema {name}"
    finally:
        connection.rollback()
        with connection.begin():
            connection.exec_driver_sql(RESET_SESSION)
            connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {quote(name)} CASCADE")


def _lock(connection: Connection, name: str) -> bool:
    key = {"key": zlib.crc32(name.encode())}
    return bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), key))
