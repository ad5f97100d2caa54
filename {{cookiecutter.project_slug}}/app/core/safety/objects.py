"""What else running code may use: views, functions, sequences, types and extensions, by name."""

from typing import NamedTuple

from sqlalchemy import Connection, text

NOT_OF_AN_EXTENSION = (
    "NOT EXISTS (SELECT FROM pg_depend d WHERE (d.classid, d.objid) = ({}) AND d.deptype = 'e')"
)
# A sequence of a column goes with it, and no code calls a trigger's function.
OBJECTS = f"""
    SELECT CASE c.relkind WHEN 'v' THEN 'view' ELSE 'sequence' END, c.oid, c.relname
    FROM pg_class c WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('v', 'S')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE (d.classid, d.objid) = ('pg_class'::regclass, c.oid)
        AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0)
    AND {NOT_OF_AN_EXTENSION.format("'pg_class'::regclass, c.oid")}
    UNION ALL SELECT 'function', p.oid, p.proname FROM pg_proc p
    WHERE p.pronamespace = to_regnamespace(:schema) AND p.prorettype <> 'trigger'::regtype
    AND {NOT_OF_AN_EXTENSION.format("'pg_proc'::regclass, p.oid")}
    UNION ALL SELECT 'type', t.oid, t.typname FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
    WHERE t.typnamespace = to_regnamespace(:schema)
    AND (t.typtype IN ('e', 'd', 'r') OR c.relkind = 'c')
    AND {NOT_OF_AN_EXTENSION.format("'pg_type'::regclass, t.oid")}
    UNION ALL SELECT 'trigger', t.oid, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = to_regnamespace(:schema) AND NOT t.tgisinternal
    UNION ALL SELECT 'extension', oid, extname FROM pg_extension
"""


class Object(NamedTuple):
    """One of them; `kind` is a word for people."""

    kind: str
    name: str


def read(connection: Connection, schema: str) -> dict[int, Object]:
    """All in a schema, by object id, which a rename does not change."""
    rows = connection.execute(text(OBJECTS), {"schema": schema})
    return {oid: Object(kind, name) for kind, oid, name in rows}
