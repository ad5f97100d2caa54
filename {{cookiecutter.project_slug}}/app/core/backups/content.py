"""What is in a schema: whether it is empty, what would go, and who else depends on it."""

from typing import Any

from psycopg import Cursor, sql

# Everything that has a place in the schema by itself. What extensions brought is theirs.
OBJECTS = """
SELECT i.type, i.identity FROM pg_depend d
CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) i
WHERE d.refclassid = 'pg_namespace'::regclass AND d.deptype = 'n'
  AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = %s)
  AND NOT EXISTS (
    SELECT FROM pg_depend e WHERE (e.classid, e.objid) = (d.classid, d.objid) AND e.deptype = 'e'
  )
ORDER BY i.type <> 'table', i.identity
"""
TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r' ORDER BY 1
"""
USERS_ELSEWHERE = """
WITH home AS (SELECT oid FROM pg_namespace WHERE nspname = %s), ours AS (
    SELECT 'pg_class'::regclass AS classid, c.oid FROM pg_class c, home
        WHERE relnamespace = home.oid
    UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_type t, home WHERE typnamespace = home.oid
    UNION ALL SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p, home WHERE pronamespace = home.oid
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid), n.nspname FROM pg_depend d
JOIN ours ON (d.refclassid, d.refobjid) = (ours.classid, ours.oid)
LEFT JOIN pg_rewrite w ON (d.classid, d.objid) = ('pg_rewrite'::regclass, w.oid)
LEFT JOIN pg_constraint k ON (d.classid, d.objid) = ('pg_constraint'::regclass, k.oid)
LEFT JOIN pg_attrdef f ON (d.classid, d.objid) = ('pg_attrdef'::regclass, f.oid)
LEFT JOIN pg_trigger t ON (d.classid, d.objid) = ('pg_trigger'::regclass, t.oid)
LEFT JOIN pg_proc p ON (d.classid, d.objid) = ('pg_proc'::regclass, p.oid)
LEFT JOIN pg_type y ON (d.classid, d.objid) = ('pg_type'::regclass, y.oid)
LEFT JOIN pg_class c ON c.oid = coalesce(
    w.ev_class, k.conrelid, f.adrelid, t.tgrelid,
    CASE d.classid WHEN 'pg_class'::regclass THEN d.objid END
)
JOIN pg_namespace n ON n.oid = coalesce(c.relnamespace, p.pronamespace, y.typnamespace)
WHERE n.oid <> (SELECT oid FROM home) AND n.nspname <> 'pg_toast'
  AND d.deptype IN ('n', 'a') ORDER BY 1
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


def users_elsewhere(cursor: Cursor[Any], schema: str, where: str | None = None) -> list[str]:
    """What in other schemas, or in that one, depends on this one: views, foreign keys, columns."""
    found = cursor.execute(USERS_ELSEWHERE, [schema]).fetchall()
    return [words for words, name in found if where in (None, name)]


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
        cursor.execute(f"DROP {KINDS.get(kind, kind)} IF EXISTS {name} CASCADE".encode())


def _value(cursor: Cursor[Any], query: Any, *values: Any) -> Any:
    row = cursor.execute(query, values or None).fetchone()
    return row[0] if row else None
