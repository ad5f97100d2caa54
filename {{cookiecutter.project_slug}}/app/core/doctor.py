"""`flask doctor`: the state of service and database that docs/recovery.md starts from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.config import PROJECT, Settings
from app.core import capacity, history, privileges
from app.core.database import (
    DatabaseUnavailable,
    connect_directly,
    connect_when_ready,
    quote,
)
from app.core.database_errors import reason
from app.core.migrations.autogenerate import differences
from app.core.safety import judge
from app.core.safety.catalog import INVALID_INDEXES
from app.models import db

PAGE = "docs/recovery.md"
LOCKS = (
    "SELECT c.relname, a.pid, l.mode, l.granted, extract(epoch FROM now() - a.xact_start), a.state"
    " FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
    " JOIN pg_stat_activity a ON a.pid = l.pid"
    " WHERE l.locktype = 'relation' AND a.pid <> pg_backend_pid() AND c.relkind IN ('r', 'p')"
    " AND c.relnamespace = to_regnamespace(:schema) ORDER BY a.xact_start, c.relname LIMIT 20"
)
NOT_VALID = (
    "SELECT conrelid::regclass::text || '.' || conname FROM pg_constraint"
    " WHERE NOT convalidated AND connamespace = to_regnamespace(:schema)"
)
LONG_TRANSACTION_SECONDS = 30
MISSING_PRIVILEGE = "A missing privilege"


@dataclass(frozen=True)
class Line:
    """One thing that was looked at; `heading` of the runbook where it needs fixing."""

    what: str
    found: str
    heading: str = ""

    def __str__(self) -> str:
        hint = f"\n{'':30}! see {PAGE}, {self.heading}" if self.heading else ""
        # However long a name is, there is a space behind it.
        return f"{self.what:29} {self.found}{hint}"


def examine(settings: Settings, replicas: int = 1) -> Iterator[Line]:
    """Look at everything; a database that does not answer ends it."""
    yield Line("service", f"{PROJECT['name']} {PROJECT['version']}, APP_ENV {settings.app_env}")
    for name in sorted(type(settings).model_fields):
        value = getattr(settings, name)
        shown = _without_secret(name, value)
        label = "SCHEMA" if name == "schema_name" else name.upper()
        yield Line(f"  {label}", shown)
    yield _threads(settings)
    try:
        # A locked table must not stop the look at who locks it.
        options = "lock_timeout=1s", "statement_timeout=10s"
        seconds = min(settings.database_wait_seconds, 5)
        connection = connect_directly(settings, *options, wait_seconds=seconds)
    except DatabaseUnavailable as error:
        yield Line("database", " ".join(str(error).split("\n")), "No connection")
        return
    with connection:
        yield from _database(connection, settings, replicas)


def _without_secret(name: str, value: Any) -> str:
    if value is None:
        return "not set"
    if name in ("secret_key", "sentry_dsn"):
        return "set"
    # SQLAlchemy shows a URL without its password; what stands after ? may hold one too.
    return str(value.set(query={})) if name.startswith("database_url") else str(value)


def _database(connection: Connection, settings: Settings, replicas: int) -> Iterator[Line]:
    schema = {"schema": quote(settings.schema_name)}
    with connection.begin():
        version = connection.scalar(text("SHOW server_version"))
        database = connection.scalar(text("SELECT current_database() || ' as ' || current_user"))
        there = connection.scalar(text("SELECT to_regnamespace(:schema)::text"), schema)
        shortage = privileges.of_migrations(connection, settings.schema_name)
    yield Line("database", f"{database}, PostgreSQL {version}")
    if there is None:
        yield Line("schema", f"{settings.schema_name} does not exist", "Database out of sync")
    else:
        yield Line("schema", settings.schema_name)
    yield from _roles(shortage, settings)
    if shortage and shortage.hides_the_revision():
        return
    with connection.begin():
        at = history.current(connection)
    yield from _revisions(connection, settings, at)
    with connection.begin():
        for name in connection.scalars(text(INVALID_INDEXES), schema):
            yield Line("invalid index", name, "A failed migration")
        for name in connection.scalars(text(NOT_VALID), schema):
            yield Line("not validated", name, "Bad data found by VALIDATE")
        for table, pid, mode, granted, age, state in connection.execute(text(LOCKS), schema):
            seconds = f"{age or 0:.0f} s"
            stuck = not granted or (age or 0) > LONG_TRANSACTION_SECONDS
            found = f"process {pid} {'has' if granted else 'waits for'} {mode} on {table}"
            heading = "A database that is stuck" if stuck else ""
            yield Line("lock", f"{found}, {seconds}, {state}", heading)
        yield _connections(connection, settings, replicas)


def _roles(of_migrations: privileges.Shortage | None, settings: Settings) -> Iterator[Line]:
    """What the roles of migrations and of the service may do."""
    if of_migrations:
        yield Line("role of migrations", str(of_migrations), MISSING_PRIVILEGE)
    else:
        yield Line("role of migrations", "may create tables, and owns those of the models")
    try:
        with connect_when_ready(db.engine, seconds=0) as connection:
            of_service = privileges.of_service(connection, settings.schema_name)
    except DatabaseUnavailable as error:
        yield Line("role of the service", " ".join(str(error).split("\n")), "No connection")
        return
    if of_service:
        yield Line("role of the service", str(of_service), MISSING_PRIVILEGE)
    else:
        yield Line("role of the service", "has the privileges that the models need")


def _revisions(connection: Connection, settings: Settings, at: set[str]) -> Iterator[Line]:
    try:
        script = history.load()
        heads = set(script.get_heads())
        known = {each.revision for each in script.walk_revisions()}
    except Exception as error:
        yield Line("revision files", f"{type(error).__name__}: {error}", "Database out of sync")
        return
    where = ", ".join(sorted(at)) or "none"
    code = ", ".join(sorted(heads)) or "none"
    found = f"{where}, the code's head is {code}"
    if at - known:
        why = "newer code migrated the database, or a revision file was deleted"
        yield Line("revision", f"{found}: {why}", "The database is ahead of the code")
        return
    if len(heads) > 1:
        yield Line("revision", f"{found}: several heads", "Several heads")
        return
    if at == heads:
        yield Line("revision", found)
        yield _drift(connection, settings)
        return
    with connection.begin():
        out_of_sync = not at and history.tables_of_models(connection)
    yield Line("revision", found, "Database out of sync" if out_of_sync else "")
    report = judge(settings, None, at)
    for verdict in report.verdicts:
        hazards = ", ".join(each.key for each in verdict.hazards)
        if hazards:
            yield Line("pending", f"{verdict.file}: {hazards}", "A pending revision with hazards")
        else:
            state = f"could not be judged ({verdict.not_judged})" if verdict.not_judged else "clean"
            yield Line("pending", f"{verdict.file}: {state}", "The database is behind the code")


def _drift(connection: Connection, settings: Settings) -> Line:
    """Whether models and database agree."""
    try:
        with connection.begin():
            found = differences(connection, settings)
    except CommandError as error:
        return Line("drift", str(error), "Database out of sync")
    except DBAPIError as error:
        return Line("drift", f"not known: {reason(error)}")
    if not found:
        return Line("drift", "none: models and database agree")
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return Line("drift", f"{'; '.join(found[:5])}{more}", "Database out of sync")


def _connections(connection: Connection, settings: Settings, replicas: int) -> Line:
    found = capacity.of(connection, settings, replicas)
    is_fine = found.fits or settings.database_pooled
    return Line("connections", str(found), "" if is_fine else "Too many connections")


def _threads(settings: Settings) -> Line:
    """Whether those who wait for the database leave a thread to the others."""
    threads, connections = settings.web_threads, settings.connections_of_a_worker
    found = f"{threads} for {connections} connections in each worker"
    if threads > connections:
        return Line("threads", found)
    why = "so that no request ever waits for a connection, and a stuck database holds every thread"
    return Line("threads", f"{found}, {why}", "Threads and connections")
