"""The revisions in migrations/: up, down and up again, and in agreement with the models."""

import flask_migrate
from alembic.script import ScriptDirectory
from apiflask import APIFlask
from sqlalchemy import inspect, text
from sqlalchemy.orm import Session

from app.config import Settings
from app.core import history
from app.models import db


def tables() -> set[str]:
    return set(inspect(db.engine).get_table_names())


def test_there_is_one_head() -> None:
    assert len(history.heads()) == 1


def test_every_revision_goes_up_down_and_up(empty_app: APIFlask) -> None:
    script = ScriptDirectory(str(history.FOLDER))
    for revision in reversed([*script.walk_revisions()]):
        flask_migrate.upgrade(revision=revision.revision)
        if not revision.is_merge_point:
            flask_migrate.downgrade(revision=revision.down_revision or "base")
            flask_migrate.upgrade(revision=revision.revision)
    flask_migrate.downgrade(revision="base")
    assert tables() == {"alembic_version"}


def test_models_and_migrations_agree(app: APIFlask) -> None:
    with app.app_context():
        flask_migrate.check()


def test_everything_lives_in_the_schema(settings: Settings, session: Session) -> None:
    found = session.scalars(
        text("SELECT tablename FROM pg_tables WHERE schemaname = :schema"),
        {"schema": settings.schema_name},
    )
    assert {"alembic_version", *db.metadata.tables} == set(found)
