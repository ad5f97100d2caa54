"""/healthz, /readyz and the API's documentation."""

import re

from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.config import PROJECT
from app.core import history


def test_the_process_is_alive(client: FlaskClient) -> None:
    assert client.get("/healthz").get_json() == {"status": "alive"}


def test_ready_at_the_head_revision(client: FlaskClient) -> None:
    response = client.get("/readyz")
    assert response.status_code == 200
    assert {response.get_json()["revision"]} == history.heads()


def test_not_ready_behind_the_code(client: FlaskClient, session: Session) -> None:
    session.execute(text("DELETE FROM alembic_version"))
    session.commit()
    response = client.get("/readyz")
    assert response.status_code == 503
    assert "flask db upgrade" in response.get_json()["reason"]


def test_ready_ahead_of_the_code(client: FlaskClient, session: Session) -> None:
    session.execute(text("UPDATE alembic_version SET version_num = 'newer'"))
    session.commit()
    response = client.get("/readyz")
    assert response.status_code == 200
    assert "ahead of the code" in response.get_json()["reason"]


def test_not_ready_before_the_first_upgrade(empty_app: APIFlask) -> None:
    response = empty_app.test_client().get("/readyz")
    assert response.status_code == 503
    assert "revision none" in response.get_json()["reason"]


def test_the_documentation_needs_no_network(client: FlaskClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert assets
    for asset in assets:
        with client.get(asset) as response:
            assert response.status_code == 200, asset


def test_the_openapi_document(client: FlaskClient) -> None:
    spec = client.get("/openapi.json").get_json()
    assert spec["openapi"].startswith("3.1")
    assert spec["info"]["title"] == PROJECT["title"]
