"""Every error is problem+json, even those that no route raises itself."""

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import Enum, literal, make_url, select, text

from app import create_app
from app.config import Settings
from app.models import db

PROBLEM = "application/problem+json"


def test_no_such_page(client: FlaskClient) -> None:
    response = client.get("/nowhere")
    assert (response.status_code, response.mimetype) == (404, PROBLEM)
    assert response.get_json()["title"] == "Not Found"


def test_method_not_allowed(client: FlaskClient) -> None:
    response = client.put("/healthz")
    assert (response.status_code, response.mimetype) == (405, PROBLEM)
    assert "GET" in response.headers["Allow"]


def test_an_unhandled_exception_tells_the_client_nothing(
    app: APIFlask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("a secret of the service")

    monkeypatch.setitem(app.view_functions, "health.liveness", fail)
    monkeypatch.setitem(app.config, "PROPAGATE_EXCEPTIONS", False)
    response = client.get("/healthz")
    assert (response.status_code, response.mimetype) == (500, PROBLEM)
    assert "secret" not in response.text


def test_a_text_that_an_enum_does_not_have(settings: Settings) -> None:
    app = create_app(settings)
    genre = Enum("fiction", native_enum=False, validate_strings=True)

    @app.route("/echo/<word>", methods=["GET", "POST"])
    def echo(word: str) -> str:
        return str(db.session.scalar(select(literal(word, genre))))

    client = app.test_client()
    assert client.get("/echo/fiction").text == "fiction"
    response = client.get("/echo/poetry")
    assert (response.status_code, response.mimetype) == (404, PROBLEM)
    response = client.post("/echo/poetry", json={})
    assert response.status_code == 422
    assert "poetry" in response.get_json()["detail"]
    with app.app_context():
        db.engine.dispose()


def test_a_lost_database(settings: Settings) -> None:
    nowhere = make_url("postgresql+psycopg://user:a-password@127.0.0.1:1/nowhere")
    app = create_app(settings.model_copy(update={"database_url": nowhere}))
    app.add_url_rule("/query", view_func=lambda: str(db.session.scalar(text("SELECT 1"))))
    client = app.test_client()
    response = client.get("/query")
    assert (response.status_code, response.mimetype) == (503, PROBLEM)
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503
    first_page = client.get("/")
    assert first_page.status_code == 200
    assert "a-password" not in response.text + first_page.text
