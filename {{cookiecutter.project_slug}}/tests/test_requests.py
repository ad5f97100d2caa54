"""Each request has an id, which comes back, and is counted and measured until it has ended."""

from collections.abc import Iterator

import pytest
import structlog
from apiflask import APIFlask
from flask import Response
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.orm import Session

from app import create_app
from app.config import Settings
from app.core.requests import Tally, current
from app.models import db

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def ended(app: APIFlask) -> Iterator[list[Tally]]:
    """The requests that have ended."""
    tallies: list[Tally] = []
    observers = app.extensions["requests"].observers
    observers.append(tallies.append)
    yield tallies
    observers.remove(tallies.append)


@pytest.mark.parametrize("given", ["1", "0b1e-4_2.7:a/b+c=", "a" * 128])
def test_a_well_formed_id_comes_back(client: FlaskClient, given: str) -> None:
    response = client.get("/healthz", headers={"X-Request-ID": given})
    assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize(
    "given", ["", "a" * 129, "a b", "a,b", "é", '"', "<b>", "{}", "a@b", "a;b"]
)
def test_another_one_is_replaced(client: FlaskClient, given: str) -> None:
    made = {
        client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"]
        for _ in range(2)
    }
    assert len(made) == 2
    assert all(len(each) == 32 and each.isalnum() for each in made)


@pytest.mark.parametrize(
    ("parent", "is_used"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", True),
        (f"ff-{TRACE}-b7ad6b7169203331-01", False),
        (f"00-{TRACE}-0000000000000000-01", False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", False),
        (TRACE, False),
    ],
)
def test_the_id_of_a_trace(client: FlaskClient, parent: str, is_used: bool) -> None:
    headers = {"traceparent": parent}
    assert (client.get("/healthz", headers=headers).headers["X-Request-ID"] == TRACE) == is_used
    headers["X-Request-ID"] = "mine"
    assert client.get("/healthz", headers=headers).headers["X-Request-ID"] == "mine"


def test_a_problem_has_the_id(client: FlaskClient) -> None:
    response = client.get("/nowhere", headers={"X-Request-ID": "mine"}, buffered=True)
    assert response.get_json()["request_id"] == "mine"
    assert response.headers["X-Request-ID"] == "mine"
    assert structlog.contextvars.get_contextvars() == {}


def test_statements_are_counted(client: FlaskClient, ended: list[Tally]) -> None:
    client.get("/healthz", buffered=True)
    client.get("/readyz", buffered=True)
    quiet, busy = ended
    assert (quiet.route, quiet.queries, quiet.db_seconds) == ("/healthz", 0, 0)
    assert busy.queries > 0
    assert 0 < busy.db_seconds < busy.seconds


def test_outside_of_requests_nothing_is_counted(session: Session, ended: list[Tally]) -> None:
    session.execute(text("SELECT 1"))
    assert current.get() is None
    assert ended == []


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("HEAD", "/healthz", "/healthz", 200),
        ("PUT", "/healthz", None, 405),
        ("GET", "/a", None, 404),
    ],
)
def test_every_request_is_seen_once(
    client: FlaskClient, ended: list[Tally], method: str, path: str, route: str, status: int
) -> None:
    client.open(path, method=method, buffered=True)
    (tally,) = ended
    assert (tally.route, tally.status) == (route, status)


def test_a_request_ends_with_its_last_byte_or_its_teardown(settings: Settings) -> None:
    app = create_app(settings)
    seen: list[Tally] = []
    app.extensions["requests"].observers.append(seen.append)

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[str]:
            with app.app_context():
                for _ in range(2):
                    yield str(db.session.scalar(text("SELECT 1")))

        return Response(parts())

    @app.teardown_request
    def fail(_: BaseException | None) -> None:
        if seen:
            raise RuntimeError("a secret of the service")

    client = app.test_client()
    assert client.get("/stream", buffered=True).text == "11"
    assert (seen[0].route, seen[0].status, seen[0].queries) == ("/stream", 200, 2)
    response = client.get("/healthz", headers={"X-Request-ID": "mine"}, buffered=True)
    assert (response.status_code, response.mimetype) == (500, "application/problem+json")
    assert response.get_json()["request_id"] == "mine"
    assert "secret" not in response.text
    assert (seen[1].route, seen[1].status) == ("/healthz", 500)
    with app.app_context():
        seen.clear()
        db.engine.dispose()
