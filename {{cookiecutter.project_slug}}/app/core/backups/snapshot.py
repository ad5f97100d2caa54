"""The moment that a backup shows: rows, revision and dump are of one and the same snapshot."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Cursor, IsolationLevel, errors, sql

from app.config import Settings
from app.core.backups import content
from app.core.backups.errors import BackupError
from app.core.backups.manifest import Extension
from app.core.database import LONG_WORK, connect_directly

# Others may hold a table for so long, a migration for example, before the backup gives up.
LOCK_SECONDS = 60
ATTEMPTS = 5
EXTENSIONS = """
WITH home AS (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s), ours AS (
    SELECT 'pg_class'::regclass AS classid, c.oid FROM pg_class c, home
        WHERE relnamespace = home.oid
    UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_type t, home WHERE typnamespace = home.oid
    UNION ALL SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p, home WHERE pronamespace = home.oid
    UNION ALL SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k, home
        WHERE connamespace = home.oid
    UNION ALL SELECT 'pg_attrdef'::regclass, f.oid FROM home, pg_attrdef f
        JOIN pg_class c ON c.oid = f.adrelid WHERE c.relnamespace = home.oid
    UNION ALL SELECT 'pg_rewrite'::regclass, w.oid FROM home, pg_rewrite w
        JOIN pg_class c ON c.oid = w.ev_class WHERE c.relnamespace = home.oid
    UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM home, pg_trigger t
        JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace = home.oid
    UNION ALL SELECT d.classid, d.objid FROM pg_depend d, home
        WHERE (d.refclassid, d.refobjid) = ('pg_namespace'::regclass, home.oid)
    UNION ALL SELECT 'pg_type'::regclass, d.refobjid FROM pg_depend d, home, pg_class c
        WHERE (d.classid, d.objid) = ('pg_class'::regclass, c.oid)
        AND c.relnamespace = home.oid AND d.refclassid = 'pg_type'::regclass
    UNION ALL SELECT 'pg_policy'::regclass, p.oid FROM home, pg_policy p
        JOIN pg_class c ON c.oid = p.polrelid WHERE c.relnamespace = home.oid
), used AS (
    SELECT m.refobjid AS oid FROM ours
    JOIN pg_depend d ON (d.classid, d.objid) = (ours.classid, ours.oid) AND d.deptype <> 'e'
    JOIN pg_depend m ON (m.classid, m.objid) = (d.refclassid, d.refobjid) AND m.deptype = 'e'
    WHERE m.refclassid = 'pg_extension'::regclass
)
SELECT e.extname, n.nspname, e.oid IN (SELECT oid FROM used)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname <> 'plpgsql'
  AND (n.nspname = 'extensions' OR e.oid IN (SELECT oid FROM used)) ORDER BY 1
"""


@dataclass(frozen=True)
class Snapshot:
    """A transaction that sees one moment, and keeps others from changing its tables' columns."""

    connection: psycopg.Connection[Any]
    schema: str
    id: str
    tables: list[str]
    has_hashed: bool
    revisions: list[str]
    extensions: dict[str, Extension]
    large_objects: int

    @property
    def server_version(self) -> str:
        """For example 18.4."""
        return (self.connection.info.parameter_status("server_version") or "0").split()[0]

    @property
    def server_major(self) -> int:
        """18 for 18.4."""
        return self.connection.info.server_version // 10000

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted, so that another one should be too."""
        return bool(self.connection.pgconn.ssl_in_use)

    def rows(self, tell: Callable[[str], None]) -> dict[str, int]:
        """How many rows each table has."""
        found = {}
        with self.connection.cursor() as cursor:
            for number, name in enumerate(self.tables, start=1):
                tell(f"counting rows: table {name} ({number} of {len(self.tables)})")
                found[name] = content.rows(cursor, self.schema, name)
        return found


@contextmanager
def taken(settings: Settings) -> Iterator[Snapshot]:
    """A snapshot of the service's schema. Raises `BackupError` if there is nothing to see."""
    options = [f"lock_timeout={LOCK_SECONDS}s", *LONG_WORK]
    schema = settings.schema_name
    with connect_directly(settings, *options) as pooled:
        connection = pooled.connection.driver_connection
        assert isinstance(connection, psycopg.Connection)
        try:
            yield _take(connection, schema)
        except errors.InsufficientPrivilege as error:
            raise BackupError(_without_privilege(error, schema)) from None
        except errors.LockNotAvailable as error:
            raise BackupError(
                f"A table was in use for {LOCK_SECONDS} s, by a migration perhaps: {error}. "
                "Try again when it is done; flask doctor shows who holds it."
            ) from None
        except psycopg.OperationalError as error:
            raise BackupError(f"The connection was lost: {error}".strip()) from None


def _take(connection: psycopg.Connection[Any], schema: str) -> Snapshot:
    with connection.cursor() as cursor:
        if not content.exists(cursor, schema):
            raise BackupError(
                f"There is no schema {schema} in the database, so there is nothing to back up. "
                "Is SCHEMA right? flask db upgrade makes it."
            )
        if connection.info.server_version >= 170000:
            cursor.execute("SET transaction_timeout = 0")
        for _ in range(ATTEMPTS):
            tables = content.tables(cursor, schema)
            connection.commit()
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            cursor.execute("SET LOCAL row_security = off")
            # Before the snapshot: a table that ALTER TABLE writes anew meanwhile, or that TRUNCATE
            # empties, would look empty in an older one.
            content.lock(cursor, schema, tables, "ACCESS SHARE")
            row = cursor.execute("SELECT pg_export_snapshot()").fetchone()
            if not content.objects(cursor, schema):
                raise BackupError(
                    f"Schema {schema} is empty, so there is nothing to back up. Is SCHEMA right? "
                    "flask db upgrade makes the tables."
                )
            if row and content.tables(cursor, schema) == tables:
                return _look(connection, cursor, schema, row[0], tables)
            connection.rollback()
        raise BackupError("The tables of the schema change all the time. Try again.")


def _look(
    connection: psycopg.Connection[Any],
    cursor: Cursor[Any],
    schema: str,
    name: str,
    tables: list[str],
) -> Snapshot:
    revisions = []
    if "alembic_version" in tables:
        table = sql.Identifier(schema, "alembic_version")
        query = sql.SQL("SELECT version_num FROM {} ORDER BY 1").format(table)
        revisions = [revision for (revision,) in cursor.execute(query).fetchall()]
    found = cursor.execute(EXTENSIONS, {"schema": schema}).fetchall()
    used = {each: Extension(schema=home, needed=needed) for each, home, needed in found}
    (objects,) = cursor.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone() or (0,)
    has_hashed = bool(content.hashed(cursor, schema))
    return Snapshot(connection, schema, name, tables, has_hashed, revisions, used, objects)


def _without_privilege(error: psycopg.Error, schema: str) -> str:
    words = str(error).strip().splitlines()[0]
    if "row-level security" in words:
        return (
            f"{words}: the role would see only some of the rows, and a backup must have all. "
            "Use the owner of the table in DATABASE_URL_MIGRATIONS, without FORCE ROW LEVEL "
            "SECURITY on it, or a role with BYPASSRLS."
        )
    return (
        f"{words}. A backup reads everything in schema {schema}: use the owner of its tables in "
        "DATABASE_URL_MIGRATIONS (docs/deploying.md, Two roles)."
    )
