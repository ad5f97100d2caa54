"""A first day with the default project and an odd one: hook, init.sh, requests, its own tests."""

import contextlib
import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import (
    FREE_TEXT,
    PATIENCE,
    TYPED,
    Project,
    free_port,
    replay,
    save_until,
    wait_until,
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Project:
    """Every answer differs from the default, and every text is odd."""
    folder = tmp_path_factory.mktemp("odd")
    result = replay(
        folder,
        **dict.fromkeys(FREE_TEXT, " ".join(TYPED[:-1])),
        project_slug="null",
        db_schema="select",
        postgres_version="16",
        python_version="3.12",
        license="Apache-2.0",
        ci="GitLab CI",
        install=True,
    )
    assert "not done" not in result.stdout, result.stdout
    return Project(folder / "out/null")


def test_it_serves_seeded_books(odd: Project):
    with odd.serving() as server:
        books = server.get("/api/books").json()
        assert len(books["items"]) == 4
        assert "Kindred" in [book["title"] for book in books["items"]]
        ready = server.get("/readyz")
        assert (ready.status_code, ready.json()["revision"]) == (200, "0001")
        assert server.get("/healthz").status_code == 200
        schema = "select" if odd.path.name == "null" else "public"
        assert f"<dd>{schema}</dd>" in server.get("/").text
        assert server.get("/docs").status_code == 200
        assert server.get("/openapi.json").json()["openapi"].startswith("3.1")
        missing = server.get("/api/books/0")
        assert missing.status_code == 404
        assert missing.headers["Content-Type"] == "application/problem+json"
        assert server.stop() == 0
    assert odd.postgres_pid() is None


def test_a_users_row_outlives_a_restart(odd: Project):
    with odd.serving() as server:
        response = requests.post(f"{server.url}/api/authors", json={"name": "A user's"}, timeout=60)
        assert response.status_code == 201
    with odd.serving() as server:
        assert server.get(f"/api/authors/{response.json()['id']}").json()["name"] == "A user's"


def test_its_own_checks_pass(odd: Project):
    """The test of the default project's CI runs those of the default project, and mypy.

    No answer changes a Python file.
    """
    for tool in (["ruff", "check"], ["ruff", "format", "--check"], ["pytest", "-n", "2"]):
        result = odd.run(odd.python, "-m", *tool)
        assert result.returncode == 0, result.stdout
    schemas = odd.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'test%'")
    assert schemas == "[]"


@pytest.mark.parametrize("shell", ["bash"])
def test_init_works_in_every_shell_and_from_every_folder(project: Project, shell):
    with project.serving("env", "-C", "/", shell, str(project.path / "init.sh")) as server:
        assert server.get("/readyz").status_code == 200


SLOW_ROUTE = """

@home.get("/slow")
def slow() -> str:
    import time

    time.sleep(2)
    return "done"
"""


def test_a_request_under_way_ends_before_the_service(project: Project):
    home = project.path / "app/routes/home.py"
    home.write_text(home.read_text() + SLOW_ROUTE)
    with project.serving() as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(server.get, "/slow")
        time.sleep(1)
        assert server.stop() == 0
        assert answer.result().text == "done"
    assert project.postgres_pid() is None


def test_ctrl_c_stops_the_service_and_its_database(project: Project):
    with project.serving() as server:
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        assert "Traceback" not in server.log.read_text()
    assert project.postgres_pid() is None


def test_saved_code_is_served_without_a_restart(project: Project):
    page = project.path / "app/routes/health.py"
    changed = page.read_text().replace('"alive"', '"alive and changed"')
    with project.serving() as server:
        save_until(page, changed, lambda: server.says("/healthz", "changed"), "it is served")
        assert project.postgres_pid() is not None


@pytest.mark.parametrize("mistake", ["x: Maped[int]\n", "def (\n"])
def test_a_mistake_is_shown_and_can_be_fixed_while_it_serves(project: Project, mistake):
    model = project.path / "app/models/books.py"
    right = model.read_text()
    with project.serving(WEB_CONCURRENCY="1") as server:
        shown = "the mistake is shown"
        save_until(model, mistake + right, lambda: server.says("/healthz", "Traceback"), shown)
        save_until(model, right, lambda: server.says("/healthz", "alive"), "it serves again")


def test_an_empty_folder_of_revisions(project: Project):
    for revision in (project.path / "migrations/versions").glob("*.py"):
        revision.unlink()
    with project.serving(until="/readyz") as server:
        assert "flask db migrate" in server.log.read_text()


def test_four_starts_at_once(project: Project):
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(project.starting()) for _ in range(4)]
        for server in servers:
            wait_until(server.answers, "all four serve")
        assert len(server.get("/api/books").json()["items"]) == 4
        logs = "".join(server.log.read_text() for server in servers)
        assert logs.count("Running upgrade") == 1
        assert [server.stop() for server in servers] == [0, 0, 0, 0]
    assert project.postgres_pid() is None


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(("host", "shown"), [("::", "[::]"), ("[::1]", "[::1]")])
def test_it_listens_on_ipv6(ready: Project, host, shown):
    with ready.starting(HOST=host) as server:
        server.url = server.url.replace("127.0.0.1", "[::1]")
        wait_until(server.answers, "it serves over IPv6")
        port = server.url.rpartition(":")[2]
        assert f"serving on http://{shown}:{port}" in server.log.read_text()
        second = ready.run("./init.sh", HOST=host, PORT=port)
        assert second.returncode == 1
        assert f"cannot listen on {shown}:{port} (Address already in use)" in second.stdout


def test_a_host_that_is_not_this_machine_is_named(ready: Project):
    for host in ("192.0.2.1", "nowhere.invalid"):
        result = ready.run("./init.sh", HOST=host, PORT=str(free_port()))
        assert result.returncode == 1
        assert f"cannot listen on {host}" in result.stdout
        assert "Set another HOST" in result.stdout


def test_its_tests_say_once_why_none_can_run(project: Project):
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/nowhere", "DATABASE_WAIT_SECONDS": "0"}
    for environment, why in (({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL is 'LOUD'"), (nowhere, "No login")):
        for words in ([], ["-n", "2"]):
            result = project.run(project.python, "-m", "pytest", *words, **environment)
            assert result.returncode == 1
            assert len(result.stdout.splitlines()) < 5, result.stdout
            assert why in result.stdout
    shutil.rmtree(project.path / "migrations")
    result = project.run(project.python, "-m", "pytest")
    assert "Create it first: uv run flask db init" in result.stdout


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('op.execute("SELECT 1 FROM nowhere")', 'relation "nowhere" does not exist'),
    ],
)
def test_its_tests_say_once_that_a_migration_fails(project: Project, body, why):
    revision = ["db", "revision", "-m", "broken", "--rev-id", "20300101000000"]
    assert project.flask("db", "upgrade").returncode == 0
    assert project.flask(*revision).returncode == 0
    (file,) = (project.path / "migrations/versions").glob("*_broken.py")
    file.write_text(file.read_text().replace("pass", body, 1))
    for words in ([], ["-n", "2"]):
        result = project.run(project.python, "-m", "pytest", *words, "tests/test_health.py")
        assert result.returncode != 0
        assert result.stdout.count(why) == 1, result.stdout
        assert "AssertionError" not in result.stdout


TESTS_OF_CODE_WITH_THE_ENGINE = """
import pytest
from apiflask import APIFlask
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.models import Author, db

COUNT = select(func.count()).select_from(Author)


def add(name: str) -> None:
    with db.engine.begin() as connection:
        connection.execute(text("INSERT INTO authors (name) VALUES (:name)"), {"name": name})


@pytest.fixture(autouse=True)
def context(app: APIFlask, session: Session):
    with app.app_context():
        yield


def test_what_is_committed_stays_until_the_end_of_the_test(session: Session) -> None:
    assert db.session.scalar(COUNT) == 0
    add("by the engine")
    db.session.rollback()
    session.rollback()
    assert db.session.scalar(COUNT) == session.scalar(COUNT) == 1


def test_nothing_of_another_test_is_left(session: Session) -> None:
    assert session.scalar(COUNT) == 0


def test_what_fails_or_is_not_committed_is_rolled_back(session: Session) -> None:
    session.add(Author(name="flushed"))
    session.flush()
    add("first")
    with pytest.raises(Exception, match="unique"):
        add("first")
    with db.engine.connect() as connection:
        connection.execute(text("DELETE FROM authors"))
    session.commit()
    assert session.scalar(COUNT) == 2


def test_a_raw_connection(session: Session) -> None:
    raw = db.engine.raw_connection()
    raw.cursor().execute("INSERT INTO authors (name) VALUES ('raw')")
    raw.commit()
    raw.close()
    assert session.scalar(COUNT) == 1
"""


def test_code_that_uses_the_engine_is_in_the_transaction_of_its_test(project: Project):
    (project.path / "tests/test_engine.py").write_text(TESTS_OF_CODE_WITH_THE_ENGINE)
    result = project.run(project.python, "-m", "pytest", "tests/test_engine.py")
    assert "4 passed" in result.stdout, result.stdout


def test_a_database_that_is_not_there(project: Project):
    result = project.run(
        "./init.sh",
        DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/nowhere",
        DATABASE_WAIT_SECONDS="1",
        PORT=str(free_port()),
    )
    assert result.returncode == 1
    assert "waiting for the database" in result.stdout
    assert "DATABASE_WAIT_SECONDS" in result.stdout
    assert "Traceback" not in result.stdout
    assert "hunter2" not in result.stdout


def test_without_an_environment_init_says_what_to_run(project: Project):
    (project.path / ".venv").rename(project.path / "gone")
    result = project.run("./init.sh", PATH="/usr/bin:/bin")
    assert result.returncode == 1
    assert "uv sync" in result.stdout


@pytest.mark.parametrize("setting", ["RUN_MIGRATIONS", "RUN_SEEDS"])
def test_steps_of_init_that_are_switched_off(project: Project, setting):
    project.flask("db", "upgrade")
    with project.serving(**{setting: "0"}) as server:
        assert f"skipped ({setting})" in server.log.read_text()
        assert len(server.get("/api/books").json()["items"]) == (0 if setting == "RUN_SEEDS" else 4)


def test_production_refuses_to_start_without_what_it_needs(project: Project):
    (project.path / ".env").unlink()
    for command in (
        ["./init.sh"],
        [project.python, "-m", "gunicorn"],
        [project.python, "-m", "flask", "db", "current"],
    ):
        result = project.run(*command, APP_ENV="production")
        assert result.returncode != 0
        assert "DATABASE_URL is not set" in result.stdout
        assert "SECRET_KEY is not set" in result.stdout
        assert "Traceback" not in result.stdout
