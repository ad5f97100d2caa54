"""Trouble with the database, in production: the right answer, and nothing else suffers."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import PATIENCE, Project, Server, copy_project, wait_until
from production import ROUTES, SECRET, Database, Load, Relay, frozen, processes, producing, running

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def shop(generated: Path, seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with more routes, whose database is migrated and seeded."""
    project = copy_project(generated, tmp_path_factory.mktemp("trouble") / "book-service")
    project.run("cp", "-r", seeded, project.path / ".postgres")
    (project.path / "app/routes/trouble.py").write_text(ROUTES)
    file = project.path / "app/routes/__init__.py"
    routes = file.read_text().replace("books]", "books, trouble]")
    file.write_text("from app.routes.trouble import trouble\n" + routes)
    return project


@pytest.fixture(scope="module")
def database(shop: Project) -> Iterator[Database]:
    with running(shop) as database:
        yield database


def post(server: Server, path: str, body: dict | None = None, method: str = "POST"):
    return requests.request(method, server.url + path, json=body or {}, timeout=PATIENCE)


def problem(response: requests.Response, status: int = 503) -> dict:
    """The problem that the response must be."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert status != 503 or response.headers["Retry-After"]
    for words in ("SELECT", "INSERT", "psycopg", "flask db"):
        assert words not in response.text
    return response.json()


def lines(server: Server) -> list[dict]:
    """The JSON lines of the log."""
    return [json.loads(line) for line in server.log.read_text().splitlines() if line[:1] == "{"]


@pytest.mark.parametrize(
    ("cut", "how", "expected"),
    [
        # The end of the session of a request that failed: its answer stands.
        (b"ROLLBACK", "cut", {409, 503}),
        # It is not known whether this was committed.
        (b"\x0bCOMMIT", "cut", {503}),
        (b"INSERT", "cut", {503}),
    ],
)
def test_a_connection_that_is_lost(
    shop: Project, database: Database, cut: bytes, how: str, expected: set[int]
):
    with Relay(database) as relay, producing(shop, relay.url) as server:
        name = f"lost at {cut.decode().strip()}"
        assert post(server, "/api/authors", {"name": "first"}).status_code in (201, 409)
        relay.judge = lambda data: how if cut in data else "pass"
        sent = {"name": "first"} if cut == b"ROLLBACK" else {"name": name}
        answer = post(server, "/api/authors", sent)
        assert answer.status_code in expected, answer.text
        problem(answer, answer.status_code)
        relay.judge = lambda data: "pass"
        assert server.status("/api/authors/1") == 200


def test_nothing_is_read_after_the_commit(shop: Project, database: Database):
    committed = threading.Event()

    def judge(data: bytes) -> str:
        if committed.is_set():
            return "cut"
        if b"\x0bCOMMIT" in data:
            committed.set()
        return "pass"

    with Relay(database) as relay, producing(shop, relay.url) as server:
        made = post(server, "/api/authors", {"name": "read after"}).json()
        relay.judge = judge
        answer = post(server, "/api/authors", {"name": "committed"})
        assert (answer.status_code, committed.is_set()) == (201, True)
        relay.judge = lambda data: "pass"
        server.get("/api/authors/1")
        committed.clear()
        relay.judge = judge
        answer = post(server, f"/api/authors/{made['id']}", {"born": 1900}, "PATCH")
        assert answer.status_code == 200, server.log.read_text()
        assert answer.json()["updated_at"] > made["updated_at"]


def test_connections_that_are_ended_again_and_again(shop: Project, database: Database):
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'book-service' AND pid <> pg_backend_pid()"
    )
    numbers = iter(range(10**9))

    def ask(client: int) -> int:
        if client == 0:
            return post(server, "/api/authors", {"name": f"ended {next(numbers)}"}).status_code
        if client == 1:
            return post(
                server, "/api/authors/2", {"born": next(numbers) % 2000}, "PATCH"
            ).status_code
        return server.get("/api/authors/1").status_code

    with producing(shop, database.url, WEB_CONCURRENCY="2") as server, Load(5, ask) as load:
        for _ in range(20):
            load.until(20)
            database.sql(end)
    assert set(load.results) <= {"200", "201", "503"}, load.results
    assert load.results["200"]


def test_a_server_that_crashes(shop: Project, seeded: Path, generated: Path, tmp_path: Path):
    project = copy_project(generated, tmp_path / "book-service")
    project.run("cp", "-r", seeded, project.path / ".postgres")
    with running(project) as database:
        url = database.url
        with producing(project, url) as server:
            for pid in processes(project):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: server.status("/readyz") == 503, "it is dead")
            assert problem(server.get("/api/books"))["detail"] == "The database is not available."
            assert server.get("/healthz").status_code == 200
            with running(project):
                assert {server.get("/api/books").status_code for _ in range(20)} == {200}
                assert server.get("/readyz").status_code == 200
        errors = [line for line in lines(server) if line["level"] == "error"]
        assert any("list_books" in where for line in errors for where in line.get("where", []))


def test_a_server_that_becomes_read_only(shop: Project, database: Database):
    with producing(shop, database.url) as server:
        assert post(server, "/api/authors", {"name": "before"}).status_code == 201
        try:
            database.sql(
                "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
            )
            wait_until(lambda: server.status("/readyz") == 503, "it is read-only")
            detail = problem(post(server, "/api/authors", {"name": "meanwhile"}))["detail"]
            assert detail == "The database is read-only."
            assert server.get("/api/authors/1").status_code == 200
            assert "read-only" in server.get("/readyz").json()["reason"]
        finally:
            database.sql(
                "SET default_transaction_read_only = off",
                "ALTER SYSTEM RESET default_transaction_read_only",
                "SELECT pg_reload_conf()",
            )
        wait_until(lambda: server.status("/readyz") == 200, "it takes writes again")
        assert post(server, "/api/authors", {"name": "after"}).status_code == 201


def test_the_service_follows_a_failover(
    shop: Project, database: Database, seeded: Path, generated: Path, tmp_path: Path
):
    """With target_session_attrs: the first write after it is lost, the next finds the new one."""
    other = copy_project(generated, tmp_path / "book-service")
    other.run("cp", "-r", seeded, other.path / ".postgres")
    database.sql("DROP TABLE IF EXISTS here", "CREATE TABLE here ()")
    with running(other) as second:
        url = (
            f"postgresql://postgres@/postgres?host={database.host},{second.host}"
            "&target_session_attrs=read-write"
        )
        with producing(shop, url) as server:
            assert post(server, "/api/authors", {"name": "on the first"}).status_code == 201
            try:
                database.sql(
                    "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
                )
                wait_until(
                    lambda: (
                        post(server, "/api/authors", {"name": "on the second"}).status_code
                        in (201, 409)
                    ),
                    "it has found the second",
                )
            finally:
                database.sql(
                    "SET default_transaction_read_only = off",
                    "ALTER SYSTEM RESET default_transaction_read_only",
                    "SELECT pg_reload_conf()",
                )
        assert second.sql("SELECT count(*) FROM authors WHERE name = 'on the second'") == [(1,)]


def test_a_frozen_server_costs_a_request_its_time_and_no_more(shop: Project, database: Database):
    limits = {"DATABASE_STATEMENT_TIMEOUT_MS": "500", "DATABASE_POOL_TIMEOUT": "1"}
    with producing(shop, database.url, **limits) as server:
        assert server.status("/api/authors/1") == 200
        with frozen(shop):
            waiting = Load(3, lambda _: problem(server.get("/api/authors/1"))["status"])
            with waiting:
                # Their answer is not waited for; a probe's client has gone by then.
                probes = [
                    threading.Thread(target=server.status, args=("/readyz",)) for _ in range(5)
                ]
                for probe in probes:
                    probe.start()
                for _ in range(10):
                    assert requests.get(f"{server.url}/healthz", timeout=5).status_code == 200
                    time.sleep(0.1)
                for probe in probes:
                    probe.join(PATIENCE)
                assert server.get("/readyz").status_code == 503
                waiting.until(1)
            assert set(waiting.results) == {"503"}
        wait_until(lambda: server.status("/api/authors/1") == 200, "it serves again")


def test_a_row_that_somebody_holds(shop: Project, database: Database):
    limits = {"DATABASE_LOCK_TIMEOUT_MS": "700", "DATABASE_POOL_TIMEOUT": "0.2"}
    pool = {"DATABASE_POOL_SIZE": "1", "DATABASE_POOL_OVERFLOW": "1"}
    held = "SELECT FROM authors WHERE id = 1 FOR UPDATE"

    def ask(_: int) -> str:
        return problem(post(server, "/api/authors/1", {"born": 1}, "PATCH"))["detail"]

    with producing(shop, database.url, **limits, **pool) as server:
        with database.holding(held), Load(6, ask) as load:
            for _ in range(8):
                load.until(1)
                assert server.get("/healthz").status_code == 200
                assert server.get("/readyz").status_code == 200
        assert set(load.results) == {
            "Another transaction holds what this request needs.",
            "The service has no free database connection.",
        }
        assert post(server, "/api/authors/1", {"born": 1931}, "PATCH").status_code == 200


def test_limits_of_statements_and_transactions(shop: Project, database: Database):
    limits = {"DATABASE_STATEMENT_TIMEOUT_MS": "400", "DATABASE_IDLE_TIMEOUT_MS": "400"}
    with producing(shop, database.url, **limits) as server:
        answer = problem(post(server, "/trouble/long"))
        assert answer["detail"] == "The database took too long."
        answer = problem(post(server, "/trouble/sleep"))
        assert answer["detail"] == "The database is not available."
    # A command may take its time.
    production = {"APP_ENV": "production", "SECRET_KEY": SECRET, "DATABASE_URL": database.url}
    assert shop.flask("trouble", "limit", **production, **limits).stdout.strip() == "0"


def test_a_migration_changes_a_type_under_a_running_service(shop: Project, database: Database):
    """The plans that PostgreSQL has prepared for the old replicas are of no use any more."""
    with producing(shop, database.url, WEB_CONCURRENCY="2") as server:

        def answers() -> set[int]:
            change = {"born": 1900}
            asked = {server.get("/api/authors").status_code for _ in range(20)}
            return asked | {post(server, "/api/authors/1", change, "PATCH").status_code}

        assert answers() == {200}
        database.sql("ALTER TABLE authors ALTER name TYPE varchar(500)")
        assert answers() == {200}
        database.sql("ALTER TABLE authors ALTER name TYPE varchar(200)")
        assert answers() == {200}


def test_a_get_may_only_read(shop: Project, database: Database):
    with producing(shop, database.url) as server:
        for path in ("add", "update", "lock", "cte", "stream"):
            problem(server.get(f"/trouble/{path}"), 500)
        assert server.get("/trouble/callback").status_code == 200
        assert server.get("/trouble/words").status_code == 200
    assert database.sql("SELECT name FROM authors WHERE name LIKE 'by %'") == [("by callback",)]
    assert server.log.read_text().count("@in_transaction, from app.core.session") >= 5


def test_every_kind_of_transaction(shop: Project, database: Database):
    left = (
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        " AND application_name = 'book-service'"
    )
    before = database.sql(left)
    with producing(shop, database.url, DATABASE_POOL_SIZE="1") as server:
        # The second time, on connections that have had other isolation levels.
        for _ in range(2):
            database.sql("DELETE FROM authors WHERE name LIKE '%: %'")
            answer = post(server, "/trouble/transactions")
            assert (answer.status_code, answer.json()) == (200, {"level": "serializable"})
            rows = database.sql("SELECT name FROM authors WHERE name LIKE '%: %' ORDER BY name")
            kinds = ("autocommit", "begin", "serializable", "session")
            assert rows == [(f"stays: {kind}",) for kind in kinds]
            assert server.get("/api/authors/1").status_code == 200
        assert database.sql(left) == before


def test_what_the_client_is_not_told(shop: Project, database: Database):
    with producing(shop, database.url) as server:
        for kind in ("null", "check"):
            assert "hash" not in json.dumps(problem(post(server, f"/trouble/row/{kind}"), 409))
        answer = post(server, "/api/authors", {"name": "Ursula K. Le Guin"})
        assert "Ursula K. Le Guin" in problem(answer, 409)["detail"]
        assert problem(answer, 409)["errors"][0]["where"] == "json.name"
        problem(post(server, "/trouble/mistake"), 500)
    log = server.log.read_text()
    assert "a password hash" not in log
    assert "471147" not in log
    assert any("exception" in line and "division" in line["exception"] for line in lines(server))
