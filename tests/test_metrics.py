"""METRICS_PORT answers Prometheus for all workers, and nothing else; off, it costs nothing."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import PATIENCE, Project, Server, copy_project, free_port, wait_until

BOOKS = 'method="GET",route="/api/books/<int:book_id>"'
POOL = {"DATABASE_POOL_SIZE": "6", "DATABASE_POOL_OVERFLOW": "3"}
IMPORTED = """
import sys
from app import create_app
create_app()
print("prometheus_client" in sys.modules)
"""


@pytest.fixture(scope="module")
def busy(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(generated, tmp_path_factory.mktemp("metrics") / "book-service")


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def served(busy: Project, port: int) -> Iterator[Server]:
    """Two workers in production."""
    with (
        busy.in_production() as settings,
        busy.serving(
            RUN_SEEDS="1",
            WEB_CONCURRENCY="2",
            METRICS_PORT=str(port),
            PROXY_HOPS="1",
            **POOL,
            **settings,
        ) as server,
    ):
        yield server


@pytest.fixture
def scrape(served: Server, port: int):
    """Read the metrics, as series and number."""

    def read() -> dict[str, float]:
        answer = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE)
        assert answer.status_code == 200
        lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    return read


def count(numbers: dict[str, float], labels: str = BOOKS, status: int = 200) -> float:
    return numbers.get(f'http_request_duration_seconds_count{{{labels},status="{status}"}}', 0)


def test_all_workers_are_counted_together(served: Server, scrape):
    before = scrape()
    for _ in range(40):
        served.get("/api/books/1")
    served.get("/api/books/999")
    # A request is counted when its last byte is sent: the client may be ahead.
    wait_until(lambda: count(scrape(), status=404) - count(before, status=404) == 1, "all are in")
    wait_until(lambda: count(scrape()) - count(before) == 40, "all are in")
    served.get("/nowhere")
    wait_until(lambda: count(scrape(), 'method="GET",route="none"', 404) == 1, "all are in")
    after = scrape()
    assert after[f"http_request_queries_total{{{BOOKS}}}"] >= 41
    assert after[f"http_request_db_seconds_total{{{BOOKS}}}"] > 0
    assert after["db_pool_wait_seconds_count"] >= 41
    assert after["http_request_wait_seconds_count"] >= 42
    assert after["db_pool_connections_in_use"] == 0
    assert after["db_pool_connections_max"] == 18
    assert (after["db_revision_behind"], after["db_revision_ahead"]) == (0, 0)
    assert any(re.match('service_build_info{name="book-service",', name) for name in after)


def test_a_word_of_a_client_is_no_series(served: Server, scrape):
    for word in ("HACK", "GE"):
        requests.request(word, f"{served.url}/api/books", timeout=PATIENCE)
    wait_until(lambda: 'method="other"' in " ".join(scrape()), "it is counted")
    assert "HACK" not in " ".join(scrape())


def test_each_port_has_its_own(served: Server, port: int):
    metrics = f"http://127.0.0.1:{port}"
    for path in ("/", "/healthz", "/api/books", "/docs/", "/metrics/x", "/openapi.json"):
        answer = requests.get(metrics + path, timeout=PATIENCE)
        assert (answer.status_code, answer.text) == (404, "Only /metrics is here.\n")
    for name in ("Host", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server"):
        forged = {name: str(port) if name.endswith("Port") else f"127.0.0.1:{port}"}
        answer = requests.get(f"{served.url}/metrics", headers=forged, timeout=PATIENCE)
        assert answer.status_code == 404, name
        assert "http_request" not in answer.text
    assert '"path": "/metrics/x"' not in served.log.read_text()


def test_a_killed_worker_takes_nothing_with_it(served: Server, scrape):
    for _ in range(40):
        served.get("/api/books/1")
    # A request is counted when its last byte is sent.
    wait_until(lambda: count(scrape()) >= 40, "they are counted")
    before = count(scrape())
    assert before >= 40
    workers = re.findall(r"Booting worker with pid: (\d+)", served.log.read_text())
    os.kill(int(workers[0]), signal.SIGKILL)

    def another() -> bool:
        found = re.findall(r"Booting worker with pid: (\d+)", served.log.read_text())
        return len(found) > len(workers)

    wait_until(another, "gunicorn has started another one")
    assert count(scrape()) == before
    served.get("/api/books/1")
    wait_until(lambda: count(scrape()) == before + 1, "it goes on from there")


def test_the_revision_of_the_database(busy: Project, served: Server, scrape):
    for revision, behind, ahead in (("20991231235959", 0, 1), (None, 1, 0), ("0001", 0, 0)):
        insert = f"INSERT INTO alembic_version VALUES ('{revision}')" if revision else "SELECT 1"
        busy.sql("DELETE FROM alembic_version", insert)
        numbers = scrape()
        assert (numbers["db_revision_behind"], numbers["db_revision_ahead"]) == (behind, ahead)


def test_the_page_explains_every_metric(busy: Project, scrape):
    page = (busy.path / "docs/operating.md").read_text()
    explained = set(re.findall(r"^\| `((?:http|db|service)_\w+)` \|", page, re.MULTILINE))
    found = {re.sub(r"(_count|_sum|_bucket)$", "", name.partition("{")[0]) for name in scrape()}
    assert found == explained
    alerts = page.split("## What to alert on")[1].split("\n## ")[0]
    used = set(re.findall(r"\b(?:http|db)_\w+", alerts))
    assert {re.sub(r"(_count|_sum|_bucket)$", "", name) for name in used} <= explained


def test_the_folder_goes_with_the_service(ready: Project):
    """It is in memory, because the root file system may be read-only."""
    (ready.path / "pyproject.toml").write_text(
        (ready.path / "pyproject.toml").read_text().replace('"book-service"', '"of-this-test"', 1)
    )
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("this machine has no /dev/shm")
    with ready.in_production() as settings:
        with ready.serving(METRICS_PORT=str(free_port()), **settings) as server:
            (folder,) = shared.glob("of-this-test-metrics-*")
            assert folder.stat().st_mode & 0o077 == 0
            server.process.send_signal(signal.SIGHUP)
            again = "Hang up: Master"
            wait_until(lambda: again in server.log.read_text(), "it reloads its settings")
            wait_until(lambda: server.answers("/api/books"), "it serves")
            assert [*shared.glob("of-this-test-metrics-*")] == [folder]
            server.stop()
        assert not folder.exists()


def test_off_it_is_not_even_imported(ready: Project):
    for environment in ({}, {"METRICS_PORT": str(free_port())}):
        result = ready.run(ready.python, "-c", IMPORTED, **environment)
        assert result.stdout == "False\n"


def test_a_port_that_is_taken_is_refused(ready: Project, served: Server):
    taken = served.url.rpartition(":")[2]
    result = ready.run("./init.sh", PORT=str(free_port()), METRICS_PORT=taken)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{taken}" in result.stdout
    assert "METRICS_PORT" in result.stdout
    result = ready.run("./init.sh", PORT="5999", METRICS_PORT="5999")
    assert "METRICS_PORT is 5999, like PORT" in result.stdout
