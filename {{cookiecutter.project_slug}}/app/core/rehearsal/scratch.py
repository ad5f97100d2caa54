"""The database that a rehearsal may spoil: made for it, and removed after it in any case."""

import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL

from app.config import Settings
from app.core import embedded
from app.core.database import DatabaseUnavailable, connect_directly

# With the database whose locks say whether it is in use: no other one knows them.
COMMENT = "scratch of flask db rehearse, from {}"
PREFIX = "rehearsal_"
# So far apart that no two servers started in the same moment.
SERVER = "SELECT current_database(), pg_postmaster_start_time()::text, inet_server_port()"


class CannotRehearse(click.ClickException):
    """It says what is missing."""

    exit_code = 2


@contextmanager
def scratch_database(settings: Settings) -> Iterator[URL]:
    """A new database on the server of REHEARSAL_DATABASE_URL, by default the embedded one.

    The connection that made it holds a lock for as long as it is used. A database whose lock is
    free was left by a run that was killed: the next run drops it.
    """
    entry = _entry(settings)
    try:
        connection = psycopg.connect(libpq(entry), autocommit=True, connect_timeout=5)
    except psycopg.Error as error:
        words = " ".join(str(error).split())
        raise CannotRehearse(f"REHEARSAL_DATABASE_URL: no login: {words}") from None
    with connection:
        if settings.rehearsal_database_url:
            _refuse_the_services_own(connection, settings)
        _drop_leftovers(connection)
        name = f"{PREFIX}{secrets.token_hex(4)}"
        _lock(connection, name)
        try:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege:
            role = connection.info.user
            raise CannotRehearse(
                f"The role {role} may not create the database of a rehearsal. Run as a superuser: "
                f'ALTER ROLE "{role}" CREATEDB;'
            ) from None
        try:
            comment = sql.SQL("COMMENT ON DATABASE {} IS {}")
            connection.execute(comment.format(sql.Identifier(name), _comment(connection)))
            yield entry.set(database=name)
        finally:
            _drop(connection, name)


def with_options(url: URL, *settings: str) -> URL:
    """The URL with settings of the server besides its own, for example `lock_timeout=500`."""
    words = [str(url.query.get("options", "")), *(f"-c {each}" for each in settings)]
    return url.update_query_dict({"options": " ".join(words).strip()})


def libpq(url: URL, *settings: str) -> str:
    """The URL for psycopg, perhaps with settings of the server."""
    url = with_options(url, *settings) if settings else url
    _, arguments = url.get_dialect()().create_connect_args(url)
    return make_conninfo("", **arguments)


def _entry(settings: Settings) -> URL:
    if settings.rehearsal_database_url:
        return settings.rehearsal_database_url
    try:
        embedded.start()
        return embedded.url()
    except embedded.EmbeddedPostgresError as error:
        raise CannotRehearse(
            f"{str(error).splitlines()[0]}\nOr set REHEARSAL_DATABASE_URL to a database whose "
            "role may create another one; see docs/migrations.md, Rehearse."
        ) from None


def _refuse_the_services_own(connection: psycopg.Connection, settings: Settings) -> None:
    here = connection.execute(SERVER).fetchone()
    own = [settings.database_url, settings.database_url_migrations]
    same = settings.rehearsal_database_url in own
    with (
        suppress(DatabaseUnavailable, SystemExit),
        connect_directly(settings, wait_seconds=0) as it,
    ):
        same = same or tuple(it.exec_driver_sql(SERVER).one()) == here
    if same:
        raise CannotRehearse(
            "REHEARSAL_DATABASE_URL is the service's own database. Nothing was done. Set it to "
            "another database, best on another server: a rehearsal takes its strength."
        )


def _drop_leftovers(connection: psycopg.Connection) -> None:
    found = connection.execute(
        "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
        " AND pg_has_role(datdba, 'MEMBER')"
        " AND coalesce(shobj_description(oid, 'pg_database'), %s) = %s",
        [PREFIX, _comment(connection), _comment(connection)],
    )
    for (name,) in found.fetchall():
        if _lock(connection, name):
            click.echo(f"removing {name}, which a rehearsal that was killed left", err=True)
            _drop(connection, name)


def _comment(connection: psycopg.Connection) -> str:
    return COMMENT.format(connection.info.dbname)


def _lock(connection: psycopg.Connection, name: str) -> bool:
    key = zlib.crc32(name.encode())
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
    return row is not None and bool(row[0])


def folder_of(url: URL) -> Path:
    """Where files of this rehearsal are; they go with its database, also after a kill."""
    return Path(tempfile.gettempdir(), str(url.database))


def _drop(connection: psycopg.Connection, name: str) -> None:
    shutil.rmtree(Path(tempfile.gettempdir(), name), ignore_errors=True)
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
    connection.execute(drop.format(sql.Identifier(name)))
