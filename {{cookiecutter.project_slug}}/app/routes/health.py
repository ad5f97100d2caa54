"""/healthz (is the process alive?) and /readyz (can it serve?)."""

import structlog
from apiflask import APIBlueprint
from flask import current_app
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.core import extensions, history, privileges
from app.core.database import missing_connect
from app.models import db

log = structlog.get_logger("health")

health = APIBlueprint("health", __name__, enable_openapi=False)


@health.get("/healthz")
def liveness() -> dict[str, str]:
    """200 while the process answers; a lost database must not restart anything."""
    return {"status": "alive"}


@health.get("/readyz")
def readiness() -> tuple[dict[str, str | None], int]:
    """200 if the database answers and is at the code's head revision, otherwise 503 and why."""
    current, reason = database_state()
    body = {"status": "not ready" if reason else "ready", "revision": current, "reason": reason}
    return body, 503 if reason else 200


def database_state() -> tuple[str | None, str | None]:
    """The database's revision, and why it cannot serve; both None if there are no migrations."""
    schema = current_app.config["SETTINGS"].schema_name
    try:
        connection = db.session.connection()
        if shortage := privileges.of_service(connection, schema):
            log.error("privileges are missing", reason=str(shortage))
            return None, str(shortage)
        current = history.current(connection)
        search_path = connection.scalar(text("SELECT current_schema()"))
    except SQLAlchemyError as error:
        db.session.rollback()
        refused = isinstance(error, DBAPIError) and missing_connect(error)
        log.warning("database unavailable", error=refused or str(error).splitlines()[0])
        return None, refused or "The database does not answer; the log says why."
    name = ", ".join(sorted(current)) or None
    try:
        heads = history.heads()
    except Exception as error:
        return name, f"migrations/ cannot be read: {error}"
    if search_path not in (schema, extensions.SCHEMA, None):
        return name, f"The connection uses schema {search_path}, not {schema}: see DATABASE_POOLED."
    if current == heads:
        return name, None
    return name, (
        f"Schema {schema} is at revision {name or 'none'}, the code at "
        f"{' and '.join(sorted(heads)) or 'none'}. "
        f"Run: flask db {'upgrade' if len(heads) < 2 else 'merge heads'}"
    )
