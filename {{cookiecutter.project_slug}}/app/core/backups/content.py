"""What is in a schema: whether it is empty, what would go, and who else depends on it."""

from typing import Any

import psycopg
from psycopg import Cursor, errors, sql

from app.core.backups.errors import BackupError
from app.core.database import quote
from app.core.database_errors import explained
from app.core.sql import unquoted

# Everything that has a place in the schema by itself: not the multirange of a range, nor a default
# or a constraint that only mentions the schema, 'svc'::regnamespace. Extensions, with what they
# brought, belong to the database: others may use them.
OBJECTS = """
SELECT i.type, i.identity FROM pg_depend d
CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) i
WHERE d.refclassid = 'pg_namespace'::regclass AND d.deptype = 'n'
  AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = %s)
  AND i.schema = (SELECT quote_ident(nspname) FROM pg_namespace WHERE oid = d.refobjid)
  AND d.classid NOT IN ('pg_extension'::regclass, 'pg_constraint'::regclass)
  AND NOT EXISTS (
    SELECT FROM pg_depend e
    WHERE (e.classid, e.objid, e.objsubid) = (d.classid, d.objid, 0) AND e.deptype IN ('e', 'i')
  )
ORDER BY i.type <> 'table', i.identity
"""
TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r' AND NOT EXISTS (
  SELECT FROM pg_depend e
  WHERE (e.classid, e.objid, e.deptype) = ('pg_class'::regclass, c.oid, 'e')
)
ORDER BY 1
"""
# Partitions by hash, at any depth, and the highest table above each that is so partitioned.
HASHED = """
SELECT DISTINCT ON (c.oid) c.relname, root.relname FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL pg_partition_ancestors(c.oid) WITH ORDINALITY a (oid, height)
JOIN pg_partitioned_table p ON p.partrelid = a.oid AND p.partstrat = 'h'
JOIN pg_class root ON root.oid = a.oid
WHERE n.nspname = %s AND c.relkind = 'r' AND c.relispartition
ORDER BY c.oid, a.height DESC
"""
# Casts, event triggers and publications have no schema: they are elsewhere too.
USERS_ELSEWHERE = """
WITH home AS (
    SELECT oid, quote_ident(nspname) AS name FROM pg_namespace WHERE nspname = %s
), ours AS (
    SELECT d.classid, d.objid FROM pg_depend d, home
        WHERE (d.refclassid, d.refobjid) = ('pg_namespace'::regclass, home.oid)
    UNION SELECT 'pg_class'::regclass, c.oid FROM pg_class c, home WHERE relnamespace = home.oid
    UNION SELECT 'pg_type'::regclass, t.oid FROM pg_type t, home WHERE typnamespace = home.oid
), members AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), made_with_members AS (
    SELECT d.classid, d.objid FROM pg_depend d
    JOIN members m ON (d.refclassid, d.refobjid) = (m.classid, m.objid) WHERE d.deptype = 'i'
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid), place FROM pg_depend d
JOIN ours ON (d.refclassid, d.refobjid) = (ours.classid, ours.objid)
LEFT JOIN pg_constraint k ON (d.classid, d.objid) = ('pg_constraint'::regclass, k.oid)
LEFT JOIN pg_namespace n ON n.oid = k.connamespace
CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) i
CROSS JOIN LATERAL pg_identify_object_as_address(d.classid, d.objid, d.objsubid) a
CROSS JOIN LATERAL (SELECT CASE WHEN d.classid <> 'pg_publication_rel'::regclass THEN
    coalesce(i.schema, quote_ident(n.nspname), quote_ident(a.object_names[1])) END AS place) p
WHERE place IS DISTINCT FROM (SELECT name FROM home) AND place IS DISTINCT FROM 'pg_toast'
  AND d.deptype IN ('n', 'a')
  AND d.classid NOT IN ('pg_amop'::regclass, 'pg_amproc'::regclass)
  AND ours.classid <> 'pg_extension'::regclass
  AND (ours.classid, ours.objid) NOT IN (SELECT * FROM members)
  AND (ours.classid, ours.objid) NOT IN (SELECT * FROM made_with_members)
ORDER BY 1
"""
# How DROP calls what the catalog calls otherwise.
KINDS = {"statistics object": "STATISTICS"}


def exists(cursor: Cursor[Any], schema: str) -> bool:
    """Whether the database has the schema."""
    query = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)"
    return bool(_value(cursor, query, schema))


def objects(cursor: Cursor[Any], schema: str) -> list[tuple[str, str]]:
    """Kind and full name of everything in the schema."""
    return cursor.execute(OBJECTS, [schema]).fetchall()


def tables(cursor: Cursor[Any], schema: str) -> list[str]:
    """The tables that have rows of their own: partitions, not what they are parts of."""
    return [name for (name,) in cursor.execute(TABLES, [schema]).fetchall()]


def hashed(cursor: Cursor[Any], schema: str) -> dict[str, str]:
    """Of each partition by hash, the table whose rows it shares with others."""
    return dict(cursor.execute(HASHED, [schema]).fetchall())


def users_elsewhere(cursor: Cursor[Any], schema: str, where: str | None = None) -> list[str]:
    """What in other schemas, or in that one, depends on this one: views, foreign keys, columns."""
    found = cursor.execute(USERS_ELSEWHERE, [schema]).fetchall()
    return [words for words, place in found if not where or (place and unquoted(place) == where)]


def rows(cursor: Cursor[Any], schema: str, table: str) -> int:
    """How many rows a table has; fails rather than count only those that a policy shows."""
    query = sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, table))
    return int(_value(cursor, query))


def lock(cursor: Cursor[Any], schema: str, names: list[str], mode: str) -> None:
    """Lock tables until the transaction ends. Takes no snapshot, so it can come before one."""
    if names:
        listed = sql.SQL(", ").join(sql.Identifier(schema, name) for name in names)
        cursor.execute(sql.SQL("LOCK TABLE ONLY {} IN {} MODE").format(listed, sql.SQL(mode)))


def drop(cursor: Cursor[Any], schema: str) -> None:
    """Remove everything from the schema, which itself stays, with who may use it."""
    for kind, name in objects(cursor, schema):
        # An identity is SQL already, quoted where it must be.
        what = KINDS.get(kind, kind).upper()
        try:
            cursor.execute(f"DROP {what} IF EXISTS {name} CASCADE".encode())
        except errors.InsufficientPrivilege:
            role = cursor.connection.info.user
            raise BackupError(
                f"Role {role} may not remove {kind} {name}, which it does not own. Nothing was "
                f"changed. As a superuser: ALTER {what} {name} OWNER TO {quote(role)}; then run "
                "this again."
            ) from None
        except psycopg.OperationalError:
            raise
        except psycopg.DatabaseError as error:
            raise BackupError(
                f"PostgreSQL does not remove {kind} {name}: {' '.join(explained(error).split())}. "
                f"Nothing was changed. Remove it by hand, DROP {what} {name} CASCADE; then run "
                "this again. Or restore beside it: --into another_schema"
            ) from None


def _value(cursor: Cursor[Any], query: Any, *values: Any) -> Any:
    row = cursor.execute(query, values or None).fetchone()
    return row[0] if row else None
