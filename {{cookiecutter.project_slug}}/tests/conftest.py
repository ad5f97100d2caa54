"""One migrated schema per run, one transaction per test.

The database is the embedded PostgreSQL, or that of DATABASE_URL.
"""

import os
import traceback
from collections.abc import Iterator
from typing import Any

import alembic.command
import pytest
from alembic.util import CommandError
from apiflask import APIFlask
from flask import current_app
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import Connection, StaticPool
from sqlalchemy.orm import Session
from sqlalchemy.schema import DropSchema

from app import create_app
from app.config import ROOT, Settings, load_settings
from app.core.database import connect_directly, direct_engine
from app.models import db


def pytest_configure() -> None:
    """Say once why no test can run."""
    if not (ROOT / "migrations/env.py").exists():
        pytest.exit(
            "There is no migrations/ folder yet. Create it first: "
            "uv run flask db init && uv run flask db migrate -m initial",
            returncode=1,
        )
    try:
        connect_directly(load_settings(app_env="test")).close()
    except SystemExit as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def settings() -> Iterator[Settings]:
    """Settings with a schema for this process alone; your development data is left alone."""
    settings = load_settings(app_env="test", schema_name=f"test_{os.getpid()}")
    yield settings
    drop_schema(settings)


@pytest.fixture(scope="session")
def app(settings: Settings, request: pytest.FixtureRequest) -> Iterator[APIFlask]:
    """The service, on a schema built by the real migrations."""
    app = create_app(settings)
    app.testing = True
    with app.app_context():
        migrate(request.session)
    yield app
    with app.app_context():
        db.engine.dispose()


def migrate(run: pytest.Session) -> None:
    """Run the migrations. If they fail, no test can run, so say why, once."""
    config = current_app.extensions["migrate"].migrate.get_config()
    try:
        alembic.command.upgrade(config, "head")
    except CommandError as error:
        reason = f"The migrations fail. {error}"
    except (Exception, SystemExit):
        reason = f"The migrations fail.\n{traceback.format_exc(limit=-1).strip()}"
    else:
        return
    if hasattr(run.config, "workerinput"):
        run.shouldstop = reason  # pytest-xdist prints this once for all processes
    pytest.exit(reason, returncode=1)


@pytest.fixture
def session(app: APIFlask) -> Iterator[Session]:
    """A session in the transaction that the service uses during this test; it is rolled back.

    `db.session` and `db.engine` share one connection, on which a commit only ends a savepoint.
    """
    with app.app_context():
        engine = db.engine
    with engine.connect() as connection, pytest.MonkeyPatch.context() as patch:
        Savepoints(connection).replace_transactions(patch)
        with Session(engine) as session:
            yield session
        patch.undo()
        connection.rollback()


class Savepoints:
    """Begin, commit and rollback on a test's one connection, whose own transaction stays open."""

    def __init__(self, connection: Connection) -> None:
        self.engine = connection.engine
        self.psycopg: Any = connection.connection.driver_connection
        self.open = 0

    def replace_transactions(self, patch: pytest.MonkeyPatch) -> None:
        """Make the engine use only this connection, with savepoints instead of transactions."""
        dialect = self.engine.dialect
        pool = StaticPool(lambda: self.psycopg, reset_on_return=None, dialect=dialect)
        patch.setattr(self.engine, "pool", pool)
        patch.setattr(dialect, "do_begin", lambda _: self.begin())
        patch.setattr(self.psycopg, "commit", self.commit)
        patch.setattr(self.psycopg, "rollback", self.rollback)

    def begin(self) -> None:
        """Begin a transaction, possibly inside another one."""
        self.open += 1
        self.psycopg.execute(f"SAVEPOINT level_{self.open}")

    def commit(self) -> None:
        """Keep everything done so far, even if an outer transaction is rolled back later."""
        if self.open:
            self.psycopg.execute("RELEASE SAVEPOINT level_1")
            still_open, self.open = self.open - 1, 0
            for _ in range(still_open):
                self.begin()

    def rollback(self) -> None:
        """Undo the innermost transaction."""
        if self.open:
            self.psycopg.execute(f"ROLLBACK TO SAVEPOINT level_{self.open}")
            self.psycopg.execute(f"RELEASE SAVEPOINT level_{self.open}")
            self.open -= 1


@pytest.fixture
def client(app: APIFlask, session: Session) -> FlaskClient:
    """An HTTP client of the service."""
    return app.test_client()


@pytest.fixture
def cli(app: APIFlask, session: Session) -> FlaskCliRunner:
    """Run `flask …` commands in this process."""
    return app.test_cli_runner()


@pytest.fixture
def empty_app(settings: Settings) -> Iterator[APIFlask]:
    """The service on a separate schema that has not been migrated, inside its app context."""
    other = settings.model_copy(update={"schema_name": f"{settings.schema_name}_empty"})
    app = create_app(other)
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()
    drop_schema(other)


def drop_schema(settings: Settings) -> None:
    """Remove the schema of `settings` and everything in it."""
    with direct_engine(settings).begin() as connection:
        connection.execute(DropSchema(settings.schema_name, cascade=True, if_exists=True))
