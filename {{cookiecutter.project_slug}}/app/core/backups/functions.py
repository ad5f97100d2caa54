"""Functions that a restore calls see what they see in the service.

pg_dump writes all names with their schema, and empties the search_path. The text of a function it
leaves as it is: `norm(t)` is then not found by the generated column, CHECK, index or materialized
view that calls it. A path of the session would not do: CREATE INDEX and REFRESH MATERIALIZED VIEW
ignore it since PostgreSQL 17, and the names in the dump might mean something else. So each function
gets a path of its own, until the transaction that restores is at its end.
"""

from typing import Any

import psycopg
from psycopg import Cursor, sql

from app.core import extensions
from app.core.backups.errors import BackupError
from app.core.database import quote
from app.core.database_errors import explained

# C knows no search_path; what an extension brought belongs to it; procedures are never called.
WITHOUT_PATH = """
SELECT p.oid::regprocedure::text FROM pg_proc p
JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE n.nspname = %s AND p.prokind IN ('f', 'w') AND l.lanname NOT IN ('c', 'internal')
  AND NOT EXISTS (SELECT FROM unnest(p.proconfig) s WHERE starts_with(s, 'search_path='))
  AND NOT EXISTS (
    SELECT FROM pg_depend e
    WHERE (e.classid, e.objid, e.deptype) = ('pg_proc'::regclass, p.oid, 'e')
  )
"""
# COPY computes them row by row, and a function may read a table whose rows come later. With each,
# the first of the columns that it is computed of.
GENERATED = """
SELECT c.relname, a.attname, pg_get_expr(f.adbin, f.adrelid), base.attname FROM pg_attrdef f
JOIN pg_attribute a ON (a.attrelid, a.attnum) = (f.adrelid, f.adnum) AND a.attgenerated = 's'
JOIN pg_class c ON c.oid = f.adrelid AND c.relkind = 'r'
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  SELECT min(d.refobjsubid) FILTER (WHERE d.refobjid = c.oid AND d.refobjsubid <> a.attnum),
    count(p.oid) FROM pg_depend d
  LEFT JOIN pg_proc p ON (d.refclassid, d.refobjid, p.pronamespace)
    = ('pg_proc'::regclass, p.oid, n.oid)
  WHERE (d.classid, d.objid, d.objsubid) IN (
    ('pg_attrdef'::regclass, f.oid, 0), ('pg_class'::regclass, c.oid, a.attnum)
  )
) uses (base, functions)
JOIN pg_attribute base ON (base.attrelid, base.attnum) = (c.oid, uses.base)
WHERE n.nspname = %s AND uses.functions > 0
ORDER BY 1, 2
"""


class Functions:
    """Those of the schema that have no search_path of their own."""

    def __init__(self, cursor: Cursor[Any], schema: str) -> None:
        self.cursor, self.schema = cursor, schema
        self.changed = list[str]()

    def look_in_the_schema(self) -> None:
        """Those that are new since the last time."""
        path = extensions.search_path(quote(self.schema))
        found = self.cursor.execute(WITHOUT_PATH, [self.schema]).fetchall()
        for (name,) in found:
            self.cursor.execute(f"ALTER FUNCTION {name} SET search_path = {path}".encode())
            self.changed.append(name)

    def compute_again(self) -> None:
        """The generated columns that they fill, where the rows of other tables make a difference.

        Raises `BackupError`.
        """
        found = self.cursor.execute(GENERATED, [self.schema]).fetchall()
        for table, column, expression, base in found:
            # It is computed when a column changes of which it is. As text: some types have no =.
            update = "UPDATE ONLY {} SET {} = {} WHERE {}::text IS DISTINCT FROM ({})::text"
            name, of = sql.Identifier(column), sql.Identifier(base)
            where = sql.Identifier(self.schema, table)
            query = sql.SQL(update).format(where, of, of, name, sql.SQL(expression))
            try:
                self.cursor.execute(query)
            except psycopg.OperationalError:
                raise
            except psycopg.DatabaseError as error:
                raise BackupError(
                    f"Column {column} of table {table} cannot be computed again after all rows: "
                    f"{' '.join(explained(error).split())}. Nothing was changed. Let a trigger "
                    "fill it where the backup was made, then make another backup."
                ) from None

    def as_they_were(self) -> None:
        """All of them."""
        for name in self.changed:
            self.cursor.execute(f"ALTER FUNCTION {name} RESET search_path".encode())
