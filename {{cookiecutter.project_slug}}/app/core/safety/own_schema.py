"""A connection for a dry run, that looks in an empty schema of its own."""

import secrets

from psycopg import errors
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import extensions
from app.core.database import connect_directly, quote
from app.core.safety.observed import CannotJudge


def connected(settings: Settings) -> tuple[Connection, str]:
    """A connection, and the empty schema that it looks in: made now, or made for us once."""
    # No two dry runs wait for each other's schema.
    schema = f"dry_run_{secrets.token_hex(4)}"
    connection = _connect(settings, schema)
    try:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    except DBAPIError as error:
        connection.close()
        if not isinstance(error.orig, errors.InsufficientPrivilege):
            raise
    else:
        return connection, schema
    schema = f"{settings.schema_name[:55]}_dry_run"
    connection = _connect(settings, schema)
    _check_prepared(connection, schema)
    return connection, schema


def _connect(settings: Settings, schema: str) -> Connection:
    connection = connect_directly(
        settings,
        f"search_path={extensions.search_path(schema)}",
        f"lock_timeout={settings.migration_lock_timeout_ms}",
        "client_min_messages=debug1",
        # Only elsewhere than in UTC is timestamp -> timestamptz a rewrite.
        "TimeZone=Asia/Tokyo",
    )
    # One snapshot: what others do meanwhile is no change of the revision.
    return connection.execution_options(isolation_level="REPEATABLE READ")


def _check_prepared(connection: Connection, schema: str) -> None:
    query = text(
        "SELECT current_user, current_database(), to_regnamespace(:schema),"
        " has_schema_privilege(to_regnamespace(:schema), 'CREATE'),"
        " EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace(:schema))"
    )
    name = quote(schema)
    role, database, there, allowed, full = connection.execute(query, {"schema": name}).one()
    if there is None or not allowed:
        raise CannotJudge(
            f"a dry run works in a schema of its own, and the role {role} may not create one in "
            f"the database {database}. Somebody who has that privilege must run this once:\n"
            f"  CREATE SCHEMA {name} AUTHORIZATION {quote(role)};\n"
            "It stays empty: what a dry run does there is rolled back."
        )
    if full:
        raise CannotJudge(f"the schema {schema} is for dry runs, and it is not empty")
    # Two dry runs would wait for each other's names; so the second one waits here.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '10min'")
    lock = text("SELECT pg_advisory_xact_lock(hashtext(:schema))")
    connection.execute(lock, {"schema": f"dry run in {schema}"})
    connection.exec_driver_sql("RESET lock_timeout")


def bring_extensions_home(connection: Connection, settings: Settings) -> None:
    """The real schema is out of sight, and so must be no extension that stands in it."""
    # The embedded server's are moved by the upgrade itself.
    schemas = [settings.schema_name] if settings.database_url else []
    try:
        with connection.begin_nested():
            extensions.bring_home(connection, *schemas)
    except DBAPIError:
        pass  # it may not be moved; a statement that needs it says so
