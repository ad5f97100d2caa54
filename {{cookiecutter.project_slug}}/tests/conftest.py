"""One migrated schema per run, one transaction per test.

The database is the embedded PostgreSQL, or that of DATABASE_URL.
"""

import os
from collections.abc import Iterator
from typing import Any, cast

import flask_migrate
import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient, FlaskCliRunner
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
            "There is no migrations/ yet. Make it first: "
            "flask db init && flask db migrate -m initial",
            returncode=1,
        )
    try:
        connect_directly(load_settings(app_env="test")).close()
    except SystemExit as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def settings() -> Iterator[Settings]:
    """Settings with a schema of this process's own: the data of development is not touched."""
    settings = load_settings(app_env="test", schema_name=f"test_{os.getpid()}")
    yield settings
    drop_schema(settings)


@pytest.fixture(scope="session")
def app(settings: Settings) -> Iterator[APIFlask]:
    """The service, its schema built by the real migrations."""
    app = create_app(settings)
    app.testing = True
    with app.app_context():
        flask_migrate.upgrade()
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def session(app: APIFlask) -> Iterator[Session]:
    """A session in the transaction that the service uses in this test, rolled back at its end.

    Commits of the service and of the test only end savepoints.
    """
    with app.app_context():
        engines = cast(dict[str | None, Any], db.engines)
        db.session.configure(join_transaction_mode="create_savepoint")
    engine = engines[None]
    with engine.connect() as connection:
        connection.begin()
        engines[None] = connection
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        engines[None] = engine
        connection.rollback()


@pytest.fixture
def client(app: APIFlask, session: Session) -> FlaskClient:
    """An HTTP client of the service."""
    return app.test_client()


@pytest.fixture
def cli(app: APIFlask, session: Session) -> FlaskCliRunner:
    """Runs `flask …` commands in this process."""
    return app.test_cli_runner()


@pytest.fixture
def empty_app(settings: Settings) -> Iterator[APIFlask]:
    """The service with a schema of its own that has not been migrated, inside its app context."""
    other = settings.model_copy(update={"schema_name": f"{settings.schema_name}_empty"})
    app = create_app(other)
    with app.app_context():
        yield app
        db.session.remove()
        db.engine.dispose()
    drop_schema(other)


def drop_schema(settings: Settings) -> None:
    """Remove the schema of `settings` and all that is in it."""
    with direct_engine(settings).begin() as connection:
        connection.execute(DropSchema(settings.schema_name, cascade=True, if_exists=True))
