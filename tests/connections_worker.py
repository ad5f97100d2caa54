"""Runs in a project: tries to log in as each line of stdin says, and says how that went."""

import json
import os
import sys

from app import create_app
from app.config import load_settings
from app.core.database import connect_directly, connect_when_ready
from app.models import db
from sqlalchemy import text

SEEN = (
    "SELECT (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()),"
    " current_schema(), current_setting('statement_timeout')"
)


def attempt(environment: dict[str, str], url: str, schema: str, seconds: float) -> object:
    """What both engines see, or the words with which they gave up."""
    os.environ.update(environment)
    try:
        settings = load_settings(
            app_env="production",
            secret_key="0123456789abcdefghij",
            database_url=url,
            schema_name=schema,
            database_wait_seconds=seconds,
        )
        with create_app(settings).app_context():
            with connect_when_ready(db.engine, settings.database_wait_seconds) as connection:
                seen = [*connection.execute(text(SEEN)).one()]
            db.engine.dispose()
        with connect_directly(settings) as connection:
            assert [*connection.execute(text(SEEN)).one()] == seen
    except SystemExit as error:
        return {"words": str(error)}
    finally:
        for name in environment:
            os.environ.pop(name, None)
    return {"seen": seen}


for line in sys.stdin:
    print(json.dumps(attempt(**json.loads(line))), flush=True)
