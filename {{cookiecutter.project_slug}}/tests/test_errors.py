"""Every error is problem+json, also those that no route asks for."""

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import make_url

from app import create_app
from app.config import Settings
from app.core import errors

PROBLEM = "application/problem+json"


def test_no_such_page(client: FlaskClient) -> None:
    response = client.get("/nowhere")
    assert (response.status_code, response.mimetype) == (404, PROBLEM)
    assert response.get_json()["title"] == "Not Found"


def test_method_not_allowed(client: FlaskClient) -> None:
    response = client.put("/api/books")
    assert (response.status_code, response.mimetype) == (405, PROBLEM)
    assert "POST" in response.headers["Allow"]


def test_unreadable_json(client: FlaskClient) -> None:
    response = client.post("/api/books", data="{", content_type="application/json")
    assert (response.status_code, response.mimetype) == (400, PROBLEM)
    assert "JSON" in response.get_json()["detail"]


def test_a_character_that_postgresql_cannot_store(client: FlaskClient) -> None:
    response = client.post("/api/authors", json={"name": "A\0B"})
    assert (response.status_code, response.mimetype) == (422, PROBLEM)


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


def test_a_lost_database(settings: Settings) -> None:
    nowhere = make_url("postgresql+psycopg://user:a-password@127.0.0.1:1/nowhere")
    client = create_app(settings.model_copy(update={"database_url": nowhere})).test_client()
    response = client.get("/api/books")
    assert (response.status_code, response.mimetype) == (503, PROBLEM)
    assert "a-password" not in response.text
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503
    assert client.get("/").status_code == 200


def test_the_openapi_document_knows_the_problem(client: FlaskClient) -> None:
    spec = client.get("/openapi.json").get_json()
    answers = spec["paths"]["/api/books"]["post"]["responses"]
    assert list(answers["422"]["content"]) == [errors.MEDIA_TYPE]
