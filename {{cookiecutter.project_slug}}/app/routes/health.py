"""/healthz (is the process alive?) and /readyz (can it serve?)."""

from dataclasses import dataclass

import structlog
from apiflask import APIBlueprint
from flask import current_app
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from app.config import Settings
from app.core import drain, extensions, history, privileges, refusals
from app.core.database import probe
from app.core.database_errors import READ_ONLY, reason
from app.core.embedded import EmbeddedPostgresError

log = structlog.get_logger("health")

health = APIBlueprint("health", __name__, enable_openapi=False)


@dataclass(frozen=True)
class State:
    """Whether the database can serve this code; `detail` is for those who run the service.

    `revision` is "" before the first, None if nobody could look; `command` is what to do next.
    """

    is_ready: bool
    reason: str | None = None
    detail: str = ""
    revision: str | None = None
    command: str = "flask doctor"
    answers: bool = True


@health.get("/healthz")
def liveness() -> dict[str, str]:
    """200 while the process answers; a lost database must not restart anything."""
    return {"status": "alive"}


@health.get("/readyz")
def readiness() -> tuple[dict[str, str | None], int]:
    """200 if the database answers and is at or ahead of the code, otherwise 503 and why."""
    if drain.is_on():
        return {"status": "draining", "reason": "The service has been told to stop."}, 503
    state = database_state()
    body = {"status": "ready" if state.is_ready else "not ready", "reason": state.reason}
    if not current_app.config["SETTINGS"].production:  # where strangers may ask
        body["reason"] = f"{state.reason} {state.detail}".strip() if state.reason else None
        body["revision"] = state.revision or None
    return body, 200 if state.is_ready else 503


def database_state() -> State:
    """Look at the database, on a connection that no request can take away."""
    try:
        with probe().connect() as connection:
            state = _state(connection, current_app.config["SETTINGS"])
    except (SQLAlchemyError, EmbeddedPostgresError) as error:
        refused = refusals.instruction(error)
        why = refused or "The database does not answer; the log says why."
        state = State(False, why, detail="" if refused else reason(error), answers=False)
    if not state.is_ready:
        log.warning("not ready", reason=state.reason, detail=state.detail)
    return state


def _state(connection: Connection, settings: Settings) -> State:
    schema = settings.schema_name
    if shortage := privileges.of_service(connection, schema):
        return State(False, str(shortage), command="\n".join(shortage.statements()))
    if connection.scalar(text("SHOW transaction_read_only")) == "on":
        connection.invalidate()  # the next look may find the server that takes writes
        return State(False, READ_ONLY, "Is this a standby? See target_session_attrs.")
    found = connection.scalar(text("SELECT current_schema()"))
    if found not in (schema, extensions.SCHEMA, None):
        words = f"The connection uses schema {found}, not {schema}."
        return State(False, "The connection is in the wrong schema.", words)
    where = schema if found == schema else f"{schema}, which does not exist yet,"
    return _revision(history.current(connection), where)


def _revision(current: set[str], schema: str) -> State:
    name = ", ".join(sorted(current))
    try:
        heads, is_ahead = history.heads(), history.is_ahead(current)
    except Exception as error:
        return State(False, "The revision files cannot be read.", str(error), name)
    code = " and ".join(sorted(heads)) or "none"
    where = f"Schema {schema} is at revision {name or 'none'}, the code at {code}."
    if current == heads:
        return State(True, revision=name, command="")
    if is_ahead:
        return State(True, "The database is ahead of the code.", where, name)
    command = f"flask db {'upgrade' if len(heads) < 2 else 'merge heads'}"
    words = f"{where} Run: {command}"
    return State(False, "The database is behind the code.", words, name, command)
