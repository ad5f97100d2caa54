"""What else running code may use: views, functions, sequences, types and extensions, by name."""

from typing import NamedTuple

from sqlalchemy import Connection, text

# A sequence of a column goes with it, and no code calls a trigger's function.
OBJECTS = """
    WITH members AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e'),
    parts AS (SELECT classid, objid FROM pg_depend WHERE deptype IN ('a', 'i') AND refobjsubid > 0),
    objects (catalog, kind, oid, name) AS (
        SELECT 'pg_class'::regclass, CASE relkind WHEN 'v' THEN 'view' ELSE 'sequence' END,
            oid, relname
        FROM pg_class WHERE relnamespace = to_regnamespace(:schema) AND relkind IN ('v', 'S')
        AND ('pg_class'::regclass, oid) NOT IN (SELECT classid, objid FROM parts)
        UNION ALL SELECT 'pg_proc'::regclass, 'function', oid, proname FROM pg_proc
        WHERE pronamespace = to_regnamespace(:schema) AND prorettype <> 'trigger'::regtype
        UNION ALL SELECT 'pg_type'::regclass, 'type', t.oid, t.typname
        FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE t.typnamespace = to_regnamespace(:schema)
        AND (t.typtype IN ('e', 'd', 'r') OR c.relkind = 'c')
        UNION ALL SELECT 'pg_trigger'::regclass, 'trigger', t.oid, t.tgname
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = to_regnamespace(:schema) AND NOT t.tgisinternal
        UNION ALL SELECT 'pg_extension'::regclass, 'extension', oid, extname FROM pg_extension
    )
    SELECT kind, oid, name FROM objects
    WHERE (catalog, oid) NOT IN (SELECT classid, objid FROM members)
"""


class Object(NamedTuple):
    """One of them; `kind` is a word for people."""

    kind: str
    name: str


def read(connection: Connection, schema: str) -> dict[int, Object]:
    """All in a schema, by object id, which a rename does not change."""
    rows = connection.execute(text(OBJECTS), {"schema": schema})
    return {oid: Object(kind, name) for kind, oid, name in rows}
