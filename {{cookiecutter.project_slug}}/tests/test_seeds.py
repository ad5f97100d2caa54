"""`flask seed …`: twice, undone, and never at the cost of a user's row."""

from typing import Any

import pytest
from apiflask import APIFlask
from click.testing import Result
from flask.testing import FlaskCliRunner
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import Author, Book, Genre
from app.seeds import SEEDS


def run(cli: FlaskCliRunner, *words: str) -> Result:
    return cli.invoke(args=["seed", *words])


def contents(session: Session) -> list[tuple[Any, ...]]:
    session.expire_all()
    return [
        tuple(row)
        for seed in SEEDS
        for row in session.execute(select(seed.table).order_by(seed.table.c.id))
    ]


@pytest.fixture
def production(app: APIFlask, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = app.config["SETTINGS"].model_copy(update={"app_env": "production"})
    monkeypatch.setitem(app.config, "SETTINGS", settings)


def test_seeds_are_planted_once(cli: FlaskCliRunner, session: Session) -> None:
    assert run(cli, "all").exit_code == 0
    planted = contents(session)
    assert len(planted) == sum(len(seed.rows) for seed in SEEDS)
    again = run(cli, "all")
    assert again.exit_code == 0
    assert f"authors: 0 added, 0 restored, {len(SEEDS[0].rows)} unchanged" in again.output
    assert contents(session) == planted


def test_undo_removes_the_seeds_and_nothing_else(cli: FlaskCliRunner, session: Session) -> None:
    session.add(Author(name="A user's author"))
    session.commit()
    before = contents(session)
    run(cli, "all")
    assert run(cli, "undo").exit_code == 0
    assert contents(session) == before


def test_undo_leaves_what_a_user_refers_to_and_says_so(
    cli: FlaskCliRunner, session: Session
) -> None:
    run(cli, "all")
    author = session.scalars(select(Author).where(Author.name == "Chinua Achebe")).one()
    session.add(Book(isbn="1" * 13, title="Mine", genre=Genre.FICTION, author_id=author.id))
    session.commit()
    result = run(cli, "undo")
    assert "authors: 3 removed; 1 left, other rows refer to it: Chinua Achebe" in result.output
    assert session.scalars(select(Book.title)).all() == ["Mine"]


def test_a_users_row_with_the_key_of_a_seed_is_theirs(
    cli: FlaskCliRunner, session: Session
) -> None:
    session.add(Author(name="Chinua Achebe", born=1))
    session.commit()
    result = run(cli, "all")
    assert "1 not planted, a row of yours has its key: Chinua Achebe" in result.output
    run(cli, "undo")
    assert session.execute(select(Author.name, Author.born)).all() == [("Chinua Achebe", 1)]


def test_reset_restores_a_changed_seed(cli: FlaskCliRunner, session: Session) -> None:
    run(cli, "all")
    session.scalars(select(Book)).first().title = "Changed"  # type: ignore[union-attr]
    session.commit()
    assert run(cli, "reset").exit_code == 0
    assert "Changed" not in session.scalars(select(Book.title)).all()


def test_one_noun_brings_what_it_needs(cli: FlaskCliRunner, session: Session) -> None:
    assert run(cli, "all", "authors").exit_code == 0
    assert session.scalar(select(func.count()).select_from(Book)) == 0
    assert run(cli, "undo", "authors").exit_code == 0
    assert run(cli, "all", "books").exit_code == 0
    assert session.scalar(select(func.count()).select_from(Author)) == len(SEEDS[0].rows)


def test_an_unknown_noun(cli: FlaskCliRunner) -> None:
    result = run(cli, "all", "films")
    assert result.exit_code == 2
    assert "authors" in result.output


@pytest.mark.usefixtures("production")
@pytest.mark.parametrize("command", ["undo", "reset"])
def test_production_deletes_only_when_told_to(cli: FlaskCliRunner, command: str) -> None:
    refused = run(cli, command)
    assert refused.exit_code == 2
    assert "--yes-in-production" in refused.output
    assert run(cli, command, "--yes-in-production").exit_code == 0


def test_a_database_behind_the_models(empty_app: APIFlask) -> None:
    result = empty_app.test_cli_runner().invoke(args=["seed", "all"])
    assert result.exit_code == 1
    assert "flask db upgrade" in result.output
