"""In production every line of the service is JSON, one for each request, and nothing is told."""

import json
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import PATIENCE, Project, Server, copy_project, free_port, wait_until

SECRET = "hunter2"
# Added to the service: whatever can go wrong with a request, and a line of its own.
ROUTES = """

import structlog
from flask import Response, request
from sqlalchemy import text
from app.core.session import in_transaction
from app.models import db


@home.get("/talk")
def talk() -> str:
    structlog.contextvars.bind_contextvars(tenant="acme")
    structlog.get_logger("mine").info("hello")
    return "hello"


@home.get("/boom")
def boom() -> str:
    raise RuntimeError("boom")


@home.get("/stream")
def stream() -> Response:
    return Response(str(number) for number in range(3))


@home.get("/breaks")
def breaks() -> Response:
    def parts():
        yield "one"
        raise RuntimeError("in the middle")

    return Response(parts())


@home.get("/never")
def never() -> Response:
    def parts():
        raise RuntimeError("before the first part")
        yield ""

    return Response(parts())


@home.get("/row")
@in_transaction
def row() -> str:
    try:
        db.session.execute(
            text("INSERT INTO books (title) VALUES (:title)"),
            {"title": request.args["token"]},
        )
    except Exception as error:
        raise RuntimeError("wrapped") from error
    return ""


@home.get("/timeout")
@in_transaction
def timeout() -> str:
    db.session.execute(text("SET LOCAL statement_timeout = '100ms'"))
    db.session.execute(text("SELECT pg_sleep(60)"))
    return ""


@home.teardown_app_request
def fail(_) -> None:
    if request.path == "/teardown":
        raise RuntimeError("in the teardown")
"""


def records(log: Path) -> list[dict[str, object]]:
    """The lines of a log, each of which must be an object with the fields of every line."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    for record in found:
        assert {"timestamp", "level", "logger", "event"} <= record.keys(), record
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", str(record["timestamp"]))
    return found


@pytest.fixture(scope="module")
def served(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service in production that was started on an empty database."""
    project = copy_project(generated, tmp_path_factory.mktemp("logs") / "book-service")
    home = project.path / "app/routes/home.py"
    home.write_text(home.read_text() + ROUTES)
    with (
        project.in_production() as settings,
        project.serving(RUN_SEEDS="1", WEB_CONCURRENCY="1", **settings) as server,
    ):
        yield server


def of_request(server: Server, request_id: str) -> list[dict[str, object]]:
    """The lines of a request, the last of which is its own."""

    def lines() -> list[dict[str, object]]:
        return [each for each in records(server.log) if each.get("request_id") == request_id]

    wait_until(lambda: any(each["event"] == "request" for each in lines()), "the line is there")
    found = lines()
    assert [each["event"] for each in found].count("request") == 1
    return found


def ask(server: Server, path: str, method: str = "GET", data: str = "") -> requests.Response:
    headers = {"X-Request-ID": secrets.token_hex(8), "Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {SECRET}", "Cookie": f"session={SECRET}"}
    return requests.request(method, server.url + path, data=data, headers=headers, timeout=PATIENCE)


def test_the_steps_of_the_start(served: Server):
    events = [str(each["event"]) for each in records(served.log)]
    steps = [
        "1/4 database: ready",
        "Running upgrade  -> 0001, initial",
        "2/4 migrations: done",
        "books: 4 added, 0 restored, 0 unchanged",
        "3/4 seeds: done",
        f"4/4 serving on {served.url}",
        f"Listening at: {served.url}",
    ]
    found = [next(event for event in events if event.startswith(step)) for step in steps]
    assert found == sorted(found, key=events.index)


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/api/books/1", "/api/books/<int:book_id>", 200),
        ("GET", "/api/books?per_page=1", "/api/books", 200),
        ("GET", f"/api/books?token={SECRET}", "/api/books", 422),
        ("HEAD", "/api/books", "/api/books", 200),
        ("OPTIONS", "/api/books", "/api/books", 200),
        ("GET", "/api/books/999", "/api/books/<int:book_id>", 404),
        ("GET", f"/nowhere?token={SECRET}", None, 404),
        ("PUT", "/healthz", None, 405),
        ("GET", "/healthz", "/healthz", 200),
        ("GET", "/readyz", "/readyz", 200),
        ("GET", "/stream", "/stream", 200),
    ],
)
def test_a_request_is_one_line(served: Server, method, path, route, status):
    response = ask(served, path, method)
    (line,) = of_request(served, response.headers["X-Request-ID"])
    assert line == {
        "timestamp": line["timestamp"],
        "level": "info",
        "logger": "requests",
        "event": "request",
        "request_id": response.headers["X-Request-ID"],
        "method": method,
        "path": path.partition("?")[0],
        "route": route,
        "status": status,
        "ms": line["ms"],
        "wait_ms": line["wait_ms"],
        "db_ms": line["db_ms"],
        "queries": line["queries"],
        "client": "127.0.0.1",
    }
    assert response.status_code == status
    assert 0 <= line["db_ms"] + line["wait_ms"] <= line["ms"]
    assert (line["queries"] > 0) == (line["db_ms"] > 0)
    asks_the_database = status != 422 and method != "OPTIONS"
    assert (line["queries"] > 0) == (asks_the_database and path.startswith(("/api", "/readyz")))
    if response.status_code >= 400:
        assert response.json()["request_id"] == response.headers["X-Request-ID"]


def test_a_body_that_is_refused(served: Server):
    """What it said is looked for at the end, in test_nothing_secret_is_in_the_log."""
    for body, status in ((f'{{"name": "{SECRET}"', 400), (f'{{"nam": "{SECRET}"}}', 422)):
        response = ask(served, "/api/authors", "POST", data=body)
        (line,) = of_request(served, response.headers["X-Request-ID"])
        assert (response.status_code, line["status"]) == (status, status)
        assert response.json()["request_id"] == line["request_id"]


def test_other_lines_of_a_request_have_its_id(served: Server):
    for _ in range(2):
        lines = of_request(served, ask(served, "/talk").headers["X-Request-ID"])
        assert [each["event"] for each in lines] == ["hello", "request"]
        assert {each["tenant"] for each in lines} == {"acme"}
    others = [each for each in records(served.log) if each["event"] not in ("hello", "request")]
    assert not any("tenant" in each for each in others)
    (line,) = of_request(served, ask(served, "/healthz").headers["X-Request-ID"])
    assert "tenant" not in line


@pytest.mark.parametrize(
    ("path", "event", "status", "said"),
    [
        ("/boom", "Exception on /boom [GET]", 500, "RuntimeError: boom"),
        ("/row", "Exception on /row [GET]", 500, "DETAIL:  (hidden)"),
        ("/teardown", "a request failed outside of its route", 500, "in the teardown"),
        ("/never", "an answer broke off", 500, "before the first part"),
    ],
)
def test_an_exception_has_the_id_too(served: Server, path, event, status, said):
    response = ask(served, f"{path}?token={SECRET}")
    assert (response.status_code, response.headers["Content-Type"]) == (
        status,
        "application/problem+json",
    )
    assert response.json()["request_id"] == response.headers["X-Request-ID"]
    *before, line = of_request(served, response.headers["X-Request-ID"])
    failed = next(each for each in before if each["event"] == event)
    assert said in str(failed["exception"])
    assert str(failed["exception"]).startswith("Traceback")
    assert (failed["level"], line["level"], line["status"]) == ("error", "error", status)


def test_a_statement_that_fails_has_its_time(served: Server):
    response = ask(served, "/timeout")
    assert response.status_code == 503
    *_, line = of_request(served, response.headers["X-Request-ID"])
    assert (line["level"], line["queries"]) == ("warning", 2)
    assert line["db_ms"] >= 100


def test_an_answer_that_breaks_off(served: Server):
    def lines() -> list[dict[str, object]]:
        return [each for each in records(served.log) if "in the middle" in str(each)]

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        ask(served, f"/breaks?token={SECRET}")
    wait_until(lines, "it is logged")
    failed, line = of_request(served, str(lines()[0]["request_id"]))
    assert (failed["event"], failed["level"]) == ("an answer broke off", "error")
    assert (line["event"], line["status"]) == ("request", 200)
    assert len(lines()) == 1


def test_what_gunicorn_refuses_is_its_own_line(served: Server):
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n")
        assert b" 400 " in client.recv(1000)
    lines = [each for each in records(served.log) if "Invalid request" in str(each["event"])]
    assert {each["logger"] for each in lines} == {"gunicorn.error"}
    assert not any("request_id" in each for each in lines)


def test_nothing_secret_is_in_the_log(served: Server):
    """The last test of this service, after everything that was asked of it."""
    assert SECRET not in served.log.read_text()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SECRET_KEY": "", "SCHEMA": "Orders"}, "SCHEMA is 'Orders'"),
        ({"DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/nowhere"}, "No login at"),
        ({"HOST": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
        ({"SENTRY_DSN": "https://key@127.0.0.1/1"}, "uv sync --group sentry"),
    ],
)
def test_the_last_words_of_a_start_are_a_line_too(ready: Project, environment, said):
    with ready.in_production() as settings:
        settings |= {"PORT": str(free_port()), "DATABASE_WAIT_SECONDS": "0.5", **environment}
        result = ready.run("./init.sh", **settings)
    assert result.returncode == 1
    log = ready.path / "log"
    log.write_text(result.stdout)
    *_, last = records(log)
    assert last["level"] == "error"
    assert said in str(last["event"])
    assert SECRET not in result.stdout


@pytest.mark.parametrize("body", ["mistake()"])
def test_a_migration_that_fails_is_a_line_too(ready: Project, body):
    file = ready.path / "migrations/versions/20300101000000_broken.py"
    file.write_text(
        "from alembic import op\n"
        'revision, down_revision = "20300101000000", "0001"\n'
        f"def upgrade():\n    {body}\n"
    )
    with ready.in_production() as settings:
        result = ready.run("./init.sh", PORT=str(free_port()), **settings)
    assert result.returncode == 1
    log = ready.path / "log"
    log.write_text(result.stdout)
    *_, last = records(log)
    assert last["level"] == "error"
    assert "nowhere" in result.stdout or "mistake" in result.stdout


def test_in_development_people_read_it(ready: Project):
    with ready.serving() as server:
        requests.get(f"{server.url}/api/books/1", timeout=PATIENCE)
        requests.get(f"{server.url}/nowhere?q={SECRET}", timeout=PATIENCE)
        log = server.log.read_text()
    assert "1/4 database: ready\n" in log
    assert re.search(r"\[info +\] GET /api/books/1 200 .*queries=1", log)
    assert SECRET not in log
    assert not any(line.startswith("{") for line in log.splitlines())


def test_the_page_explains_every_field(generated: Path, served: Server):
    page = (generated / "docs/operating.md").read_text()
    (line,) = of_request(served, ask(served, "/healthz").headers["X-Request-ID"])
    named = {name for row in re.findall(r"^\| (`.*?) \|", page, re.M) for name in row.split("`")}
    assert line.keys() <= named
