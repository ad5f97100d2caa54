"""The revisions in migrations/ go up, down and up again, are safe, and match the models."""

from collections.abc import Iterator
from functools import partial

import flask_migrate
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep
from alembic.script import ScriptDirectory
from apiflask import APIFlask
from flask.testing import FlaskCliRunner
from sqlalchemy import inspect, text
from sqlalchemy.orm import Session

from app.config import Settings
from app.core import history, releases
from app.models import db


def last_release() -> str:
    """The newest revision in the last tag or, without tags, the main branch; otherwise `base`."""
    names = releases.released_revisions()
    released = [each for each in history.load().walk_revisions() if each.revision in names]
    followed = {parent for each in released for parent in each._all_down_revisions}
    newest = names - followed
    return newest.pop() if len(newest) == 1 else "base"


def tables() -> set[str]:
    return set(inspect(db.engine).get_table_names())


def test_there_is_one_head() -> None:
    assert len(history.heads()) == 1


def test_every_revision_goes_up_down_and_up(empty_app: APIFlask) -> None:
    """Run as `flask db upgrade` and `downgrade` do, but all in one run of migrations/env.py."""
    config = empty_app.extensions["migrate"].migrate.get_config()
    script = ScriptDirectory.from_config(config)
    newest_first = [*script.walk_revisions()]
    up = partial(MigrationStep.upgrade_from_script, script.revision_map)
    down = partial(MigrationStep.downgrade_from_script, script.revision_map)

    def steps(*_: object) -> Iterator[MigrationStep]:
        for revision in reversed(newest_first):
            yield up(revision)
            yield down(revision)
            yield up(revision)
        yield from map(down, newest_first)

    with EnvironmentContext(config, script, fn=steps, destination_rev="head"):
        script.run_env()
    assert tables() == {"alembic_version"}


def test_models_and_migrations_agree(app: APIFlask) -> None:
    with app.app_context():
        flask_migrate.check()


def test_what_is_not_released_is_safe(cli: FlaskCliRunner) -> None:
    """`flask db lint` for revisions that the last tag or, without tags, the main branch lacks.

    The others were judged before they got there, and nobody edits them any more. If git cannot say
    what is released (no git, or a clone without the main branch), all revisions are judged.
    """
    result = cli.invoke(args=["db", "lint", f"{last_release()}:head"])
    assert result.exit_code == 0, result.output


def test_everything_lives_in_the_schema(settings: Settings, session: Session) -> None:
    found = session.scalars(
        text("SELECT tablename FROM pg_tables WHERE schemaname = :schema"),
        {"schema": settings.schema_name},
    )
    models = {name for name, table in db.metadata.tables.items() if not table.info.get("is_view")}
    assert {"alembic_version", *models} <= set(found)
