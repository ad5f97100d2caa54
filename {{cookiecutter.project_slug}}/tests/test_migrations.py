"""The revisions in migrations/: up, down and up again, and equal to the models."""

import flask_migrate
import pytest
from alembic.script import ScriptDirectory
from apiflask import APIFlask
from sqlalchemy import inspect, text

from app.core import migrations
from app.models import db


@pytest.fixture
def revisions() -> list[str]:
    script = ScriptDirectory(str(migrations.FOLDER))
    return [revision.revision for revision in script.walk_revisions()][::-1]


def tables() -> set[str]:
    return set(inspect(db.engine).get_table_names())


def test_there_is_one_head() -> None:
    assert len(migrations.heads()) == 1


def test_every_revision_goes_up_down_and_up(empty_app: APIFlask, revisions: list[str]) -> None:
    for revision in revisions:
        flask_migrate.upgrade(revision=revision)
        flask_migrate.downgrade(revision="-1")
        flask_migrate.upgrade(revision=revision)
    flask_migrate.check()
    flask_migrate.downgrade(revision="base")
    assert tables() == {"alembic_version"}


def test_a_migration_without_a_change_writes_no_file(empty_app: APIFlask) -> None:
    flask_migrate.upgrade()
    before = sorted(migrations.FOLDER.rglob("*.py"))
    flask_migrate.migrate(message="nothing")
    assert sorted(migrations.FOLDER.rglob("*.py")) == before


def test_everything_lives_in_the_schema(empty_app: APIFlask) -> None:
    schema = empty_app.config["SETTINGS"].schema_name
    flask_migrate.upgrade()
    with db.engine.connect() as connection:
        found = connection.execute(
            text("SELECT relname FROM pg_class WHERE relnamespace = CAST(:schema AS regnamespace)"),
            {"schema": schema},
        )
        assert {"alembic_version", *db.metadata.tables} <= set(found.scalars())
