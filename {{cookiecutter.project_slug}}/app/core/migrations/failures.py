"""What went wrong in a migration, in plain words with the next step."""

from alembic.util import CommandError
from flask import current_app
from psycopg import errors
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.core import extensions, history, privileges
from app.core.database import quote
from app.core.database_errors import explained, is_without_privilege, reason

BAD_DATA = (errors.CheckViolation, errors.ForeignKeyViolation, errors.UniqueViolation)
JOIN_THE_HEADS = 'Join them: flask db merge heads -m "join two branches"'


def blocker(connection: Connection, statement: str, schema: str) -> str:
    """Who holds a table that the statement names, the oldest transaction first."""
    query = text(
        "SELECT c.relname, a.pid, extract(epoch FROM clock_timestamp() - a.xact_start),"
        " a.state, left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80)"
        " FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.granted AND l.locktype = 'relation' AND a.pid <> pg_backend_pid()"
        " AND c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('r', 'p', 'm')"
        " ORDER BY position(c.relname IN :statement) = 0, a.xact_start LIMIT 1"
    )
    with connection.begin():
        row = connection.execute(query, {"schema": quote(schema), "statement": statement}).first()
    if row is None:
        return "a transaction that has ended by now"
    table, pid, age, state, words = row
    since = "of another role" if age is None else f"{age:.0f} s old, {state}"
    return f"process {pid} on {table} ({since}: {words})"


def plain(error: CommandError, connection: Connection) -> str:
    """Alembic's message, or a plainer one with the safe command."""
    words = str(error)
    if "Multiple head revisions" in words or "Multiple heads" in words:
        return _several_heads()
    if "Target database is not up to date" not in words:
        return words
    connection.rollback()
    with connection.begin():
        at, tables = history.current(connection), history.tables_of_models(connection)
    if not at and tables:
        return _no_version(tables)
    heads = history.heads()
    if len(heads) > 1:
        return _several_heads()
    return (
        f"The database is behind the code: it is at {', '.join(sorted(at)) or 'nothing'}, the code "
        f"at {', '.join(sorted(heads))}. Run: flask db upgrade"
    )


def failure(error: DBAPIError, connection: Connection) -> str:
    if is_without_privilege(error):
        schema = current_app.config["SETTINGS"].schema_name
        with connection.begin():
            shortage = privileges.of_migrations(connection, schema)
        return f"The role lacks a privilege: {reason(error)}. {shortage or ''}"
    with connection.begin():
        revisions, tables = history.current(connection), history.tables_of_models(connection)
    if isinstance(error.orig, errors.DuplicateTable) and not revisions:
        return _no_version(tables)
    at = ", ".join(sorted(revisions)) or "nothing"
    heading, hint = "A failed migration", ""
    if isinstance(error.orig, BAD_DATA):
        heading = "Bad data found by VALIDATE"
    if isinstance(error.orig, errors.UndefinedObject | errors.UndefinedFunction):
        with connection.begin():
            hint = extensions.out_of_sight(connection)
    statement = " ".join((error.statement or "").split())[:300]
    return (
        f"The revision after {at} failed: {explained(error)}\n  in: {statement}\n"
        f"The database is at {at}; nothing of a failed transaction stays. "
        f"See docs/recovery.md, {heading}.{hint}"
    )


def _several_heads() -> str:
    return f"There are several heads: {', '.join(sorted(history.heads()))}. {JOIN_THE_HEADS}"


def _no_version(tables: list[str]) -> str:
    if len(history.heads()) > 1:
        return _several_heads()
    head = ", ".join(sorted(history.heads()))
    return (
        f"The schema has tables ({', '.join(tables)}) but no revision: these "
        "migrations did not make them. Nothing was changed. If the tables are what revision "
        f"{head} says: flask db stamp {head}, then flask db check. If nobody needs them, use an "
        "empty schema. See docs/recovery.md, Database out of sync."
    )
