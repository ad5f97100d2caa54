"""PostgreSQL extensions live in a schema of their own, which every connection sees.

An extension is there once in a database, in one schema. In SCHEMA it would be seen by one service
alone, and not by its tests, which have a schema of their own.
"""

import re
from typing import Any

import structlog
from psycopg import Cursor
from sqlalchemy import Connection, event, text

from app.core.sql import split, unquoted

SCHEMA = "extensions"
CREATE = re.compile(
    r"\bcreate\s+extension\s+(?P<exists>if\s+not\s+exists\s+)?"
    r'(?P<name>"[^"]+"|\w+)(?P<rest>[^;]*)',
    re.IGNORECASE,
)
DROP = re.compile(
    r'\s*drop\s+extension\s+(?:if\s+exists\s+)?(?P<name>"[^"]+"|\w+)\s*(?:cascade|restrict)?\s*;?\s*',
    re.IGNORECASE,
)
INSTALLED_IN = (
    "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
    " WHERE e.extname = %s"
)
# What other schemas make of it: columns of its types, indexes with its operators.
USED_BY_OTHERS = (
    "SELECT n.nspname FROM pg_extension e"
    " JOIN pg_depend m ON (m.refclassid, m.refobjid, m.deptype)"
    " = ('pg_extension'::regclass, e.oid, 'e')"
    " JOIN pg_depend d ON (d.refclassid, d.refobjid) = (m.classid, m.objid) AND d.deptype <> 'e'"
    " JOIN pg_class c ON (d.classid, d.objid) = ('pg_class'::regclass, c.oid)"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE e.extname = %s AND n.nspname NOT IN (current_schema(), 'pg_toast') LIMIT 1"
)
ELSEWHERE = (
    "SELECT e.extname, quote_ident(e.extname), quote_ident(n.nspname) FROM pg_extension e"
    " JOIN pg_namespace n ON n.oid = e.extnamespace"
    f" WHERE n.nspname NOT IN ('{SCHEMA}', 'pg_catalog') AND e.extrelocatable"
)

log = structlog.get_logger("migrations")


def search_path(schema: str) -> str:
    """What a connection sees: the schema of the service, then the extensions, if there are any."""
    return f"{schema},{SCHEMA}"


def give_a_home(connection: Connection) -> None:
    """From now on CREATE EXTENSION without a schema makes it in the schema of the extensions.

    One that is there already, because of another schema of this database, is taken as it is; one
    that another schema uses is not dropped.
    """
    paths: list[str] = []

    def before(_c: Any, cursor: Any, statement: str, values: Any, *_: Any) -> tuple[str, Any]:
        server: Cursor[Any] = Cursor(cursor.connection)
        if (drop := DROP.fullmatch(statement)) and (user := _user(server, drop)):
            log.info(f"extension {drop['name']} stays: schema {user} uses it")
            return "SELECT 1", values
        found = CREATE.search(statement)
        if found is None or re.search(r"(?i)\bschema\b", found["rest"]):
            return statement, values
        if server.execute(INSTALLED_IN, [unquoted(found["name"])]).fetchone():
            start, end = found.span("name")
            if not found["exists"]:
                statement = f"{statement[:start]}IF NOT EXISTS {statement[start:]}"
            return statement, values
        if _creates_nothing_else(statement) and _is_there(server):
            (path,) = server.execute("SHOW search_path").fetchone() or ("",)
            paths.append(path)
            _look_in(server, f"{SCHEMA}, {path}")
        return statement, values

    def after(_c: Any, cursor: Any, *_: Any) -> None:
        if paths:
            _look_in(Cursor(cursor.connection), paths.pop())

    event.listen(connection, "before_cursor_execute", before, retval=True)
    event.listen(connection, "after_cursor_execute", after)


def bring_home(connection: Connection, *schemas: str) -> list[tuple[str, str]]:
    """Move the extensions out of these schemas, by default out of any; their names and schemas."""
    moved = []
    for name, quoted, schema in connection.execute(text(ELSEWHERE)).all():
        if not schemas or schema in schemas:
            _is_there(Cursor(connection.connection.driver_connection))  # type: ignore[arg-type]
            connection.exec_driver_sql(f"ALTER EXTENSION {quoted} SET SCHEMA {SCHEMA}")
            moved.append((name, schema))
    return moved


def out_of_sight(connection: Connection) -> str:
    """What to do where a type or an operator is missing: its extension is not on the path."""
    seen = text(f"{ELSEWHERE} AND n.nspname <> ALL (current_schemas(true))")
    return "".join(
        f"\nExtension {name} is in schema {schema}, where this connection does not look. "
        f"Its owner must run:\n  CREATE SCHEMA IF NOT EXISTS {SCHEMA};\n"
        f"  GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC;\n"
        f"  ALTER EXTENSION {quoted} SET SCHEMA {SCHEMA};"
        for name, quoted, schema in connection.execute(seen)
    )


def _user(server: Cursor[Any], drop: re.Match[str]) -> str | None:
    row = server.execute(USED_BY_OTHERS, [unquoted(drop["name"])]).fetchone()
    return row[0] if row else None


def _creates_nothing_else(statement: str) -> bool:
    others = [each for each in split(statement) if not CREATE.search(each)]
    creates = [*re.finditer(r"(?i)\bcreate\s+(\w+)", statement)]
    return not others and all(each[1].lower() == "extension" for each in creates)


def _is_there(server: Cursor[Any]) -> bool:
    """Whether the schema of the extensions takes new ones; it is made when it may be made."""
    row = server.execute(
        "SELECT coalesce(has_schema_privilege(to_regnamespace(%s), 'CREATE'),"
        " has_database_privilege(current_database(), 'CREATE')), to_regnamespace(%s)",
        [SCHEMA, SCHEMA],
    ).fetchone()
    allowed, there = row or (False, None)
    if allowed and there is None:
        server.execute(f"CREATE SCHEMA {SCHEMA}")
        server.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC")
    return bool(allowed)


def _look_in(server: Cursor[Any], path: str) -> None:
    server.execute("SELECT set_config('search_path', %s, false)", [path])
