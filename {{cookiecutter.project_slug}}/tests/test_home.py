"""/: the state of the service in words and, except in production, what there is of it."""

from html import unescape

from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session

from app import create_app
from app.config import PROJECT, Settings
from app.core import history


def test_the_first_page(client: FlaskClient, app: APIFlask, settings: Settings) -> None:
    page = client.get("/").text
    for words in (PROJECT["version"], "test", settings.schema_name, *history.heads()):
        assert words in page
    assert "<h2>Ready</h2>" in page
    assert 'href="/healthz"' in page
    for seed in app.extensions["seeds"]:
        assert f"<b>{seed.noun}</b>" in page


def test_behind_the_code(client: FlaskClient, session: Session) -> None:
    session.execute(text("DELETE FROM alembic_version"))
    session.commit()
    page = client.get("/").text
    assert "<h2>Not ready</h2>" in page
    assert "<pre>uv run flask db upgrade</pre>" in page
    assert "to apply." in page


def test_ahead_of_the_code(client: FlaskClient, session: Session) -> None:
    session.execute(text("UPDATE alembic_version SET version_num = 'newer'"))
    session.commit()
    page = client.get("/").text
    assert "<h2>Ready</h2>" in page
    assert "ahead of the code" in page


def test_before_the_first_upgrade(empty_app: APIFlask) -> None:
    page = empty_app.test_client().get("/").text
    assert "which does not exist yet" in page
    assert "<pre>uv run flask db upgrade</pre>" in page


def test_without_a_database(settings: Settings) -> None:
    nowhere = make_url("postgresql+psycopg://user:a-password@127.0.0.1:1/nowhere")
    app = create_app(settings.model_copy(update={"database_url": nowhere}))
    page = app.test_client().get("/").text
    assert "<h2>Not ready</h2>" in page
    assert "<pre>uv run flask doctor</pre>" in page
    assert "a-password" not in page
    assert "/readyz" in page


def test_tables_and_their_rows(client: FlaskClient, session: Session) -> None:
    session.execute(text('CREATE TABLE "<i>odd</i>" AS SELECT generate_series(1, 3)'))
    session.execute(text("CREATE TABLE large AS SELECT generate_series(1, 10001)"))
    session.commit()
    page = client.get("/").text
    assert "<b>&lt;i&gt;odd&lt;/i&gt;</b> <span>3 rows, no model</span>" in page
    assert "<b>large</b> <span>more than 10,000 rows, no model</span>" in page


def test_production_tells_title_and_state_only(settings: Settings) -> None:
    production = {"app_env": "production", "show_pages": True}
    page = create_app(settings.model_copy(update=production)).test_client().get("/").text
    assert f"<h1>{PROJECT['title']}</h1>" in unescape(page)
    assert "Ready" in page
    inside = (settings.schema_name, PROJECT["version"], PROJECT["template"], "/docs", "PostgreSQL")
    assert not [words for words in (*inside, *history.heads()) if words in page]
