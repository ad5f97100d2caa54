"""The seeds of app/seeds: planted once, undone, and never at the cost of a user's row."""

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
        for row in session.execute(select(seed.table).order_by(*seed.table.primary_key))
    ]


@pytest.fixture
def production(app: APIFlask, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = app.config["SETTINGS"].model_copy(update={"app_env": "production"})
    monkeypatch.setitem(app.config, "SETTINGS", settings)


def test_seeds_are_planted_once(cli: FlaskCliRunner, session: Session) -> None:
    planted = run(cli, "all")
    assert planted.exit_code == 0, planted.output
    before = contents(session)
    assert len(before) == sum(len(seed.rows) for seed in SEEDS)
    again = run(cli, "all")
    assert again.exit_code == 0
    for seed in SEEDS:
        assert f"{seed.noun}: 0 added, 0 restored, {len(seed.rows)} unchanged" in again.output
    assert contents(session) == before


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
    assert "authors: 3 removed; 1 left: other rows refer to it (Chinua Achebe)" in result.output
    assert session.scalars(select(Book.title)).all() == ["Mine"]


def test_a_users_row_with_the_key_of_a_seed_is_theirs(
    cli: FlaskCliRunner, session: Session
) -> None:
    session.add(Author(name="Chinua Achebe", born=1))
    session.commit()
    result = run(cli, "all")
    assert "1 skipped: an existing row has this key (Chinua Achebe)" in result.output
    run(cli, "undo")
    assert session.execute(select(Author.name, Author.born)).all() == [("Chinua Achebe", 1)]


def test_a_changed_seed_is_restored(cli: FlaskCliRunner, session: Session) -> None:
    run(cli, "all")
    book = session.scalars(select(Book)).first()
    assert book is not None
    before = book.id, book.title
    book.title = "Changed"
    session.commit()
    assert "1 restored" in run(cli, "all").output
    assert (book.id, book.title) == before


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
