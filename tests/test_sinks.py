"""Sentry and OpenTelemetry: what arrives at a server of this test, and what must not."""

import gzip
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from conftest import PATIENCE, Project, Server, copy_project, wait_until
from test_logs import records

SECRET = "hunter2"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
ROUTES = """

from flask import request
from sqlalchemy import text
from app.core.session import in_transaction
from app.models import db


@home.post("/row")
def row() -> str:
    password = request.json["password"]
    try:
        db.session.execute(
            text("INSERT INTO books (title) VALUES (:title)"), {"title": password}
        )
    except Exception as error:
        raise RuntimeError("wrapped") from error
    return ""
"""


class Sink(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    received: list[tuple[str, bytes]] = []

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        self.received.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def sink() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def bodies(path: str) -> list[bytes]:
    return [body for where, body in Sink.received if where == path]


@pytest.fixture(scope="module")
def project(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with an environment of its own, into which it installs both groups."""
    project = copy_project(generated, tmp_path_factory.mktemp("sinks") / "book-service")
    shutil.rmtree(project.path / ".venv")
    result = project.run("uv", "sync", "--group", "sentry", "--group", "otel")
    assert result.returncode == 0, result.stdout
    home = project.path / "app/routes/home.py"
    home.write_text(home.read_text() + ROUTES)
    return project


@pytest.fixture(scope="module")
def served(project: Project) -> Iterator[Server]:
    with sink() as address, project.in_production() as settings:
        settings |= {
            "SENTRY_DSN": f"http://key@{address}/7",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "NO_PROXY": "127.0.0.1",
            "WEB_CONCURRENCY": "2",
            "RUN_SEEDS": "1",
        }
        with project.serving(**settings) as server:
            yield server


def fail(server: Server) -> str:
    """A request with everything that must not be told; its id."""
    answer = requests.post(
        f"{server.url}/row?token={SECRET}",
        json={"password": SECRET},
        headers={"Authorization": f"Bearer {SECRET}", "Cookie": f"session={SECRET}"},
        timeout=PATIENCE,
    )
    assert answer.status_code == 500
    return str(answer.json()["request_id"])


def test_an_exception_arrives_at_sentry(served: Server):
    request_id = fail(served)

    def events() -> list[dict]:
        lines = [line for body in bodies("/api/7/envelope/") for line in body.splitlines()]
        found = [json.loads(line) for line in lines if line.startswith(b"{")]
        return [each for each in found if each.get("tags", {}).get("request_id") == request_id]

    wait_until(events, "the event has arrived")
    (event,) = events()
    assert [each["type"] for each in event["exception"]["values"]][-1] == "RuntimeError"
    assert event["environment"] == "production"
    assert event["request"]["method"] == "POST"
    assert SECRET not in json.dumps(event)
    assert SECRET.encode() not in b"".join(bodies("/api/7/envelope/"))
    assert "vars" not in json.dumps(event["exception"])


def test_a_request_joins_the_trace_of_its_caller(served: Server):
    for path in (f"/nowhere?token={SECRET}", "/api/books/1"):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        requests.get(served.url + path, headers=headers, timeout=PATIENCE)

    def sent() -> bytes:
        return b"".join(bodies("/v1/traces"))

    # The worker of each request sends its spans when it likes.
    wait_until(lambda: sent().count(bytes.fromhex(PARENT)) >= 2, "both requests have arrived")
    wait_until(lambda: b"FROM books" in sent(), "the SELECT has arrived")
    assert bytes.fromhex(TRACE) in sent()
    assert b"GET /api/books/<int:book_id>" in sent()
    assert b"book-service" in sent()
    assert TRACE.encode() in sent(), "request_id, an attribute of the span"


def test_the_words_of_an_error_stay_here(served: Server):
    request_id = fail(served)
    wait_until(lambda: request_id.encode() in b"".join(bodies("/v1/traces")), "it has arrived")
    sent = b"".join(bodies("/v1/traces"))
    assert b"RuntimeError" in sent
    assert SECRET.encode() not in sent


def test_what_is_off_is_not_imported(project: Project):
    script = "import sys; from app import create_app; create_app(); "
    script += (
        "print({'sentry_sdk', 'opentelemetry'} & {name.split('.')[0] for name in sys.modules})"
    )
    assert project.run(project.python, "-c", script).stdout == "set()\n"


def test_its_types_are_right_with_the_groups_too(project: Project):
    result = project.run(project.python, "-m", "mypy", "app/core", "gunicorn.conf.py")
    assert result.returncode == 0, result.stdout


def test_the_service_stops_while_nobody_listens(project: Project):
    with project.in_production() as settings:
        settings |= {
            "SENTRY_DSN": "http://key@127.0.0.1:1/7",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
            "NO_PROXY": "127.0.0.1",
        }
        with project.serving(**settings) as server:
            fail(server)
            assert server.stop() == 0
            records(server.log)
