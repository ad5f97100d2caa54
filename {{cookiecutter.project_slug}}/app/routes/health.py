"""/healthz (is the process alive?) and /readyz (can it serve?)."""

from apiflask import APIBlueprint
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from app.config import Settings
from app.core import migrations
from app.models import db

health = APIBlueprint("health", __name__, enable_openapi=False)


@health.get("/healthz")
def liveness() -> dict[str, str]:
    """200 while the process answers; asks nobody, so that a lost database restarts nothing."""
    return {"status": "alive"}


@health.get("/readyz")
def readiness() -> tuple[dict[str, str | None], int]:
    """200 when the database answers and is at the code's head revision, else 503 and why."""
    current, reason = database_state()
    body = {"status": "not ready" if reason else "ready", "revision": current, "reason": reason}
    return body, 503 if reason else 200


def database_state() -> tuple[str | None, str | None]:
    """The database's revision, and why it cannot serve; None and None: no migrations yet."""
    settings: Settings = current_app.config["SETTINGS"]
    try:
        current = migrations.current(db.session.connection())
    except SQLAlchemyError as error:
        db.session.rollback()
        return None, f"The database does not answer: {str(error).splitlines()[0]}"
    heads = migrations.heads()
    name = ", ".join(sorted(current)) or None
    if current == heads:
        return name, None
    return name, (
        f"Schema {settings.schema_name} is at revision {name or 'none'}, the code at "
        f"{', '.join(sorted(heads)) or 'none'}. Run: flask db upgrade"
    )
