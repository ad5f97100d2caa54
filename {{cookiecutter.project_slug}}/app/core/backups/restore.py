"""A backup into a schema: all of it, in one transaction, or nothing."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psycopg
import structlog
from psycopg import Cursor, errors, sql
from sqlalchemy import Connection

from app.config import Settings
from app.core import extensions, history, privileges
from app.core.backups import clients, content
from app.core.backups.advice import advice_on
from app.core.backups.errors import BackupError
from app.core.backups.functions import Functions
from app.core.backups.manifest import Manifest
from app.core.backups.renaming import renamed
from app.core.backups.script import Entry
from app.core.backups.source import reading
from app.core.database import LONG_WORK, RESET_SESSION, connect_directly, quote
from app.core.database_errors import explained, reason
from app.core.migrations import failures, lock

# What a newer pg_restore sets, and an older server does not know.
SINCE_17 = re.compile(rb"(?m)^SET transaction_timeout = 0;\n")

AMONG_THE_ROWS = ("SETTINGS", "TABLE DATA", "SEQUENCE SET")

# How long a statement of the service may keep us from its table.
LOCK_SECONDS = 20

log = structlog.get_logger("backup")


def restore_into(
    file: Path,
    connection: Connection,
    schema: str,
    tell: Callable[[str], None] = lambda words: None,
) -> Manifest:
    """Restore the backup in `file` into an empty or absent schema; commit, and analyze its tables.

    No locks and no questions: for a scratch database. Raises `BackupError`; then nothing changed.
    """
    manifest = Manifest.read(file)
    with file.open("rb") as dump, connection.begin():
        fill(driver(connection), dump, manifest, schema, tell)
    analyze(connection, schema)
    return manifest


def over(
    settings: Settings,
    dump: IO[bytes],
    manifest: Manifest,
    replace: bool,
    tell: Callable[[str], None],
) -> str:
    """Restore into the service's schema while nobody migrates it; what `flask db upgrade` would do.

    `replace`: remove what is there, in the same transaction. Raises `BackupError`, and
    `CommandError` if somebody else is migrating; then nothing changed.
    """
    schema = settings.schema_name
    with connect_directly(settings, f"lock_timeout={LOCK_SECONDS}s", *LONG_WORK) as connection:
        lock.take(connection, settings)
        if settings.service_role:
            privileges.check_role(connection, settings.service_role)
        try:
            with connection.begin():
                _empty(Cursor(driver(connection)), schema, replace)
                fill(driver(connection), dump, manifest, schema, tell)
        except errors.LockNotAvailable:
            by = failures.blocker(connection, "", schema)
            raise BackupError(
                f"A table stayed in use for {LOCK_SECONDS} s by {by}. Nothing was changed. Stop "
                "the service while you restore over its tables, then run this again."
            ) from None
        except errors.InsufficientPrivilege as error:
            role = connection.engine.url.username
            raise BackupError(
                f"{reason(error)}: role {role} may not do that. Nothing was changed. Let "
                f"DATABASE_URL_MIGRATIONS name the role that owns what is in schema {schema}; see "
                "docs/deploying.md, Two roles."
            ) from None
        tell("analyzing tables")
        analyze(connection, schema)
        if settings.service_role:
            privileges.grant(connection, schema, settings.service_role)
    return _next_step(manifest)


def _empty(cursor: Cursor[Any], schema: str, replace: bool) -> None:
    there = content.objects(cursor, schema)
    if not there:
        return
    if not replace:
        names = ", ".join(name for _, name in there[:3])
        raise BackupError(
            f"Schema {schema} is not empty: it has {names}{', …' if len(there) > 3 else ''}. "
            "Nothing was changed. To restore beside it: --into another_schema. To remove what is "
            "there: --replace"
        )
    if users := content.users_elsewhere(cursor, schema):
        raise BackupError(
            f"Others use what is in {schema} and would lose: {'; '.join(users)}. Nothing was "
            "changed. Drop these first, and make them again after the restore."
        )
    content.lock(cursor, schema, content.tables(cursor, schema), "ACCESS EXCLUSIVE")
    content.drop(cursor, schema)


def _next_step(manifest: Manifest) -> str:
    if not history.FOLDER.exists():
        return "This project has no migrations/."
    at = set(manifest.revisions)
    if unknown := sorted(history.unknown(at)):
        return (
            f"The database is at revision {unknown[0]}, which is newer than this code, or whose "
            "file is gone: flask db upgrade would refuse. Deploy the code that has it; see "
            "docs/recovery.md, The database is ahead of the code."
        )
    script = history.load()
    done = {each.revision for each in history.ancestors(script, at)}
    pending = [
        each.revision
        for each in history.ancestors(script, history.heads())
        if each.revision not in done
    ]
    if not pending:
        return "The database is at the revision of this code: flask db upgrade has nothing to do."
    plural = "revision" if len(pending) == 1 else f"{len(pending)} revisions:"
    return f"flask db upgrade would run {plural} {', '.join(pending)}"


def fill(
    connection: psycopg.Connection[Any],
    dump: IO[bytes],
    manifest: Manifest,
    schema: str,
    tell: Callable[[str], None],
    notice: Callable[[str], None] = lambda words: log.warning(words),
) -> None:
    """Restore within the transaction of the caller, who commits only if nothing is raised.

    The schema must be empty or absent. Ends with its rows compared with the manifest's.
    """
    with connection.cursor() as cursor:
        refuse_an_older_server(connection.info.server_version // 10000, manifest)
        _make_a_home(cursor, schema)
        _make_extensions(cursor, manifest)
        restorer = _Restorer(cursor, manifest, schema, tell)
        programs = clients.find(manifest.client_major, why="The backup was made by pg_dump")
        with reading(dump, manifest, programs) as entries:
            if schema != manifest.schema_name:
                entries = renamed(entries, manifest.schema_name, schema, notice)
            for entry in entries:
                restorer.run(entry)
            restorer.end()
        if schema != manifest.schema_name:
            _refuse_ties(cursor, manifest.schema_name, schema)
        tell("comparing rows")
        compare(cursor, schema, manifest)


def compare(cursor: Cursor[Any], schema: str, manifest: Manifest) -> None:
    """Raise `BackupError` unless each table has the rows that it had when the backup was made.

    Of partitions by hash only the sum is compared: the hash of an enum is another in each database.
    """
    roots = content.hashed(cursor, schema)

    def summed(rows: dict[str, int]) -> Counter[str]:
        sums = Counter[str]()
        for name, number in rows.items():
            sums[roots.get(name, name)] += number
        return sums

    here = {name: content.rows(cursor, schema, name) for name in content.tables(cursor, schema)}
    are, were = summed(here), summed(manifest.rows)
    wrong = [
        f"{name} has {are.get(name, 'no')} rows instead of {were.get(name, 'no')}"
        for name in sorted({*are, *were})
        if are.get(name) != were.get(name)
    ]
    if wrong:
        raise BackupError(f"What was restored differs from the manifest: {'; '.join(wrong)}.")
    at = list[str]()
    if "alembic_version" in here:
        table = sql.Identifier(schema, "alembic_version")
        query = sql.SQL("SELECT version_num FROM {} ORDER BY 1").format(table)
        at = [revision for (revision,) in cursor.execute(query).fetchall()]
    if at != manifest.revisions:
        raise BackupError(
            f"What was restored is at revision {', '.join(at) or 'none'}, and the manifest says "
            f"{manifest.revision}."
        )


def analyze(connection: Connection, schema: str) -> None:
    """Give the planner its numbers, without which the first queries are slow."""
    with connection.begin():
        connection.exec_driver_sql(RESET_SESSION)
        cursor = Cursor(driver(connection))
        for name in content.tables(cursor, schema):
            try:
                with cursor.connection.transaction():
                    cursor.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, name)))
            except psycopg.OperationalError:
                raise
            except psycopg.DatabaseError as error:
                # The rows are there. Since PostgreSQL 17 ANALYZE ignores the search_path.
                path = extensions.search_path(quote(schema))
                log.warning(
                    f"table {name} could not be analyzed, and autovacuum cannot either: "
                    f"{reason(error)}. If a function that its index calls names something without "
                    f"its schema: ALTER FUNCTION … SET search_path = {path};"
                )


def refuse_an_older_server(server: int, manifest: Manifest) -> None:
    """An older server does not understand all that a newer one's dump says."""
    if server < manifest.server_major:
        raise BackupError(
            f"The backup is of PostgreSQL {manifest.server_major}, and this server is {server}. "
            f"Restore into PostgreSQL {manifest.server_major} or newer. Nothing was changed."
        )


class _Restorer:
    """Runs the entries, and tells how far it is."""

    def __init__(
        self,
        cursor: Cursor[Any],
        manifest: Manifest,
        schema: str,
        tell: Callable[[str], None],
    ) -> None:
        self.cursor, self.manifest, self.schema, self.tell = cursor, manifest, schema, tell
        self.is_old = cursor.connection.info.server_version < 170000
        self.rows = 0
        self.functions = Functions(cursor, schema)
        self.has_new_functions = False
        self.is_at_the_rows = False

    def run(self, entry: Entry) -> None:
        # The schema is there already, perhaps made by somebody who may do more.
        if entry.kind == "SCHEMA" or entry.name.startswith("SCHEMA "):
            return
        try:
            # Any of the others may call them.
            if entry.kind == "FUNCTION":
                self.has_new_functions = True
            elif self.has_new_functions:
                self.functions.look_in_the_schema()
                self.has_new_functions = False
            if entry.rows is not None:
                self.is_at_the_rows = True
            elif self.is_at_the_rows and entry.kind not in AMONG_THE_ROWS:
                self._end_of_rows()
            if entry.rows is None:
                self._say(f"{entry.kind.lower()} {entry.name}")
                sql = SINCE_17.sub(b"", entry.sql) if self.is_old else entry.sql
                self.cursor.execute(sql, prepare=False)
            else:
                self._copy(entry)
        except (errors.ConnectionException, errors.AdminShutdown):
            raise
        except psycopg.DatabaseError as error:
            advice = advice_on(error, entry, self.cursor, self.manifest.schema_name, self.schema)
            raise BackupError(
                f"Restoring {entry.kind.lower()} {entry.name} failed: "
                f"{' '.join(explained(error).split())}. Nothing was changed. {advice}".strip()
            ) from None

    def end(self) -> None:
        """After the last entry."""
        if self.is_at_the_rows:
            self._end_of_rows()
        self.functions.as_they_were()

    def _end_of_rows(self) -> None:
        """Before there are indexes and triggers."""
        self.is_at_the_rows = False
        self._say("generated columns")
        self.functions.compute_again()

    def _copy(self, entry: Entry) -> None:
        assert entry.rows is not None
        # A transaction of its own, so that the catalog can be asked about what it refuses.
        with self.cursor.connection.transaction(), self.cursor.copy(entry.sql) as copy:
            for rows in entry.rows:
                copy.write(b"".join(rows))
                self.rows += len(rows)
                self._say(f"table {entry.name}")

    def _say(self, what: str) -> None:
        self.tell(f"restoring: {self.rows:,} of {self.manifest.total_rows:,} rows, {what}")


def _refuse_ties(cursor: Cursor[Any], old: str, new: str) -> None:
    """A copy must not use what is in the schema that it was made of."""
    if ties := content.users_elsewhere(cursor, old, new):
        raise BackupError(
            f"In {new} these would go on using schema {old}: {'; '.join(ties)}. Nothing was "
            f"changed. Restore into a schema named {old}, in another database."
        )


def _make_a_home(cursor: Cursor[Any], schema: str) -> None:
    if content.exists(cursor, schema):
        if there := content.objects(cursor, schema):
            names = ", ".join(name for _, name in there[:3])
            raise BackupError(f"Schema {schema} is not empty: it has {names}.")
        return
    try:
        cursor.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    except errors.InsufficientPrivilege:
        raise BackupError(
            f"Schema {schema} does not exist, and role {cursor.connection.info.user} may not "
            f"create it. Run as the owner of the database: CREATE SCHEMA {schema} AUTHORIZATION "
            f"{cursor.connection.info.user};"
        ) from None


def _make_extensions(cursor: Cursor[Any], manifest: Manifest) -> None:
    """The dump of a schema names the types and functions of extensions, but does not make them."""
    for name, extension in manifest.extensions.items():
        row = cursor.execute(extensions.INSTALLED_IN, [name]).fetchone()
        if row is None:
            _make_extension(cursor, name, extension.schema_name, extension.needed)
        elif row[0] != extension.schema_name and extension.needed:
            raise BackupError(
                f"Extension {name} is in schema {row[0]} here, and the backup looks for it in "
                f"{extension.schema_name}. Its owner must run: CREATE SCHEMA IF NOT EXISTS "
                f"{extension.schema_name}; ALTER EXTENSION {name} SET SCHEMA "
                f"{extension.schema_name};"
            )


def _make_extension(cursor: Cursor[Any], name: str, schema: str, needed: bool) -> None:
    home, what = sql.Identifier(schema), sql.Identifier(name)
    available = "SELECT FROM pg_available_extensions WHERE name = %s"
    is_there = cursor.execute(available, [name]).fetchone() is not None
    try:
        with cursor.connection.transaction():
            if not content.exists(cursor, schema):
                cursor.execute(sql.SQL("CREATE SCHEMA {}").format(home))
                cursor.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO PUBLIC").format(home))
            cursor.execute(sql.SQL("CREATE EXTENSION {} SCHEMA {}").format(what, home))
    except psycopg.DatabaseError as error:
        why = str(error).strip().splitlines()[0]
        words = f"extension {name}, which the backup's database had, cannot be made here: {why}"
        if needed and not is_there:
            raise BackupError(
                f"The backup needs extension {name}, which this server does not have. Install its "
                "package on the server (Debian: apt-cache search postgresql | grep "
                f"{name}; an image of PostgreSQL that has it; of a managed one, see its list), or "
                "restore into a server that has it. Nothing was changed."
            ) from None
        if needed:
            make = f"CREATE EXTENSION {name} SCHEMA {schema};"
            if schema != "pg_catalog":
                make = f"CREATE SCHEMA IF NOT EXISTS {schema}; {make}"
            raise BackupError(f"{words[0].upper()}{words[1:]}. As a superuser: {make}") from None
        log.warning(words)


def driver(connection: Connection) -> psycopg.Connection[Any]:
    """psycopg's own connection, which can COPY."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver
