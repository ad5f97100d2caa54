"""What to do when PostgreSQL refuses an entry of a backup."""

import re
from typing import Any

import psycopg
from psycopg import Cursor, errors

from app.core import extensions
from app.core.backups.script import Entry
from app.core.database import quote

# Of a partition, the constraint that it has from above.
CHECK = """
SELECT CASE k.conrelid WHEN 0 THEN 'DOMAIN ' || k.contypid::regtype
  ELSE 'TABLE ' || k.conrelid::regclass END, quote_ident(k.conname), pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace
WHERE k.conname = %(name)s AND n.nspname = %(schema)s AND k.conislocal AND (
  k.contypid = to_regtype(%(on)s) OR k.conrelid = to_regclass(%(on)s)
  OR k.conrelid IN (SELECT relid FROM pg_partition_ancestors(to_regclass(%(on)s)))
)
"""


def advice_on(
    error: psycopg.Error, entry: Entry, cursor: Cursor[Any], old: str, schema: str
) -> str:
    """Words that follow the error; `old` is the schema that the backup was made of."""
    if isinstance(error, errors.InsufficientPrivilege):
        grant = f"GRANT USAGE, CREATE ON SCHEMA {quote(schema)}"
        role = quote(cursor.connection.info.user)
        if "for schema" in str(error):
            return f"As a superuser: {grant} TO {role}; then run this again."
        return "Let DATABASE_URL_MIGRATIONS name a role that may do that, a superuser perhaps."
    if isinstance(error, errors.CheckViolation) and entry.rows is not None:
        return _on_a_check(error, cursor, schema)
    if isinstance(error, errors.UndefinedObject) and entry.kind == "FOREIGN TABLE":
        return (
            "A foreign server belongs to the database and is not in the backup. Make it here "
            "first, CREATE SERVER …; to verify where it is: --in-schema"
        )
    if isinstance(error, errors.CannotCoerce):
        return (
            "A cast of your own belongs to the database and is not in the backup. Where that was "
            "made, call the cast's function instead; then make another backup."
        )
    if schema != old and re.search(rf"\b{re.escape(old)}\b", str(error)):
        return (
            f"If {old} is the schema that the backup was made of: it can be restored under that "
            f"name alone, SCHEMA={old}, in another database."
        )
    return ""


def _on_a_check(error: errors.CheckViolation, cursor: Cursor[Any], schema: str) -> str:
    # As the service's own connection reads it.
    path = extensions.search_path(quote(schema))
    cursor.execute("SELECT set_config('search_path', %s, true)", [path])
    on = error.diag.datatype_name or error.diag.table_name or ""
    names = {"name": error.diag.constraint_name, "schema": schema, "on": quote(on)}
    row = cursor.execute(CHECK, names).fetchone()
    if row is None:
        return ""
    what, constraint, condition = row
    return (
        "If it reads other tables: PostgreSQL does not support such a CHECK, because their rows "
        "may come later. Where the backup was made, have it written after all rows:\n"
        f"  ALTER {what} DROP CONSTRAINT {constraint};\n"
        f"  ALTER {what} ADD CONSTRAINT {constraint} {condition} NOT VALID;\n"
        "It goes on refusing new rows. Then make another backup."
    )
