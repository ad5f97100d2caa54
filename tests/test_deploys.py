"""Rolling out and back: nobody notices, whatever the balancer looks at."""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
import requests
from conftest import PATIENCE, Project, Server, copy_project, wait_until
from production import SECRET, Database, Load, producing, running

pytestmark = pytest.mark.faults

REVISION = '''
"""A column more."""

import sqlalchemy as sa
from alembic import op

revision = "20300101000000"
down_revision = "0001"


def upgrade():
    op.add_column("authors", sa.Column("died", sa.BigInteger()))


def downgrade():
    op.drop_column("authors", "died")
'''


@pytest.fixture(scope="module")
def old(generated: Path, seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copy_project(generated, tmp_path_factory.mktemp("old") / "book-service")
    shutil.copytree(seeded, project.path / ".postgres")
    return project


@pytest.fixture
def new(old: Project, generated: Path, tmp_path: Path) -> Project:
    """The next release, with one more revision."""
    project = copy_project(generated, tmp_path / "new")
    (project.path / "migrations/versions/20300101000000_more.py").write_text(REVISION)
    return project


@pytest.fixture
def database(old: Project) -> Iterator[Database]:
    with running(old) as server:
        server.sql("DROP DATABASE IF EXISTS rollout WITH (FORCE)")
        server.sql("CREATE DATABASE rollout")
        yield Database(server.host, "rollout")


def test_old_code_serves_from_a_newer_database(old: Project, new: Project, database: Database):
    settings = {"APP_ENV": "production", "SECRET_KEY": SECRET, "DATABASE_URL": database.url}
    with producing(old, database.url, RUN_SEEDS="1") as server:
        assert server.get("/readyz").json()["reason"] is None
        assert new.flask("db", "upgrade", **settings).returncode == 0
        ready = server.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert ready.json()["reason"] == "The database is ahead of the code."
        assert "20300101000000" not in ready.text
        assert server.get("/api/books").status_code == 200

    # A replica is started again, or the release is rolled back.
    database.sql("UPDATE authors SET born = 1 WHERE seeded")
    with producing(old, database.url, RUN_SEEDS="1") as server:
        assert server.get("/api/books").status_code == 200
    log = server.log.read_text()
    assert "20300101000000, which is newer than this code" in log
    assert "because the database is ahead of this code" in log
    assert database.sql("SELECT DISTINCT born FROM authors WHERE seeded") == [(1,)]

    refused = old.flask("db", "upgrade", **settings)
    assert refused.returncode != 0
    assert "Deploy the code that has the revision" in refused.stdout
    told = old.flask("doctor", **settings)
    assert told.returncode == 1
    assert "a revision file was deleted" in " ".join(told.stdout.split())


def test_a_stopping_service_serves_until_the_balancer_has_noticed(old: Project, database: Database):
    with producing(old, database.url, RUN_SEEDS="1", DRAIN_SECONDS="2") as server:
        patched: list[int] = []

        def patch() -> None:
            change = {"born": 1900}
            url = f"{server.url}/api/authors/1"
            patched.append(requests.patch(url, json=change, timeout=PATIENCE).status_code)

        waiting = threading.Thread(target=patch)
        with database.holding("SELECT FROM authors WHERE id = 1 FOR UPDATE"):
            waiting.start()
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            wait_until(lambda: database.sql(blocked) == [(1,)], "the PATCH waits")
            server.process.terminate()
            wait_until(lambda: server.status("/readyz") == 503, "it says so")
            assert server.get("/readyz").json()["status"] == "draining"
            assert server.get("/api/books").status_code == 200
            wait_until(
                lambda: server.get("/healthz").headers.get("Connection") == "close",
                "clients are asked to connect elsewhere",
            )

            def is_closed() -> bool:
                with contextlib.suppress(OSError):
                    return requests.get(f"{server.url}/healthz", timeout=5).status_code != 200
                return True

            wait_until(is_closed, "the door is closed")
            assert server.process.poll() is None
        waiting.join(PATIENCE)
        assert patched == [200]
        assert server.process.wait(PATIENCE) == 0


class Balancer:
    """Sends each request to the next replica that it believes in."""

    def __init__(self, replicas: list[Server]) -> None:
        self.replicas = replicas
        self.turn = 0

    def ask(self, client: int) -> object:
        """The status of an answer, over a connection of its own."""
        self.turn += 1
        for n in range(len(self.replicas)):
            replica = self.replicas[(self.turn + n) % len(self.replicas)]
            host, port = replica.url.removeprefix("http://").split(":")
            connection = HTTPConnection(host, int(port), timeout=PATIENCE)
            with contextlib.closing(connection):
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    continue  # It is gone, and was asked for nothing.
                if client % 2:
                    body = f'{{"born": {client}}}'
                    kind = {"Content-Type": "application/json"}
                    connection.request("PATCH", f"/api/authors/{client % 4 + 1}", body, kind)
                else:
                    connection.request("GET", "/api/books")
                response = connection.getresponse()
                response.read()
                return response.status
        return "nobody"


@pytest.mark.parametrize("looks_at", ["readiness", "connection"])
def test_no_request_fails_while_three_replicas_are_replaced(
    looks_at: str, old: Project, new: Project, database: Database
):
    """With a migration in the middle, under load."""

    def start(project: Project) -> contextlib.AbstractContextManager[Server]:
        return producing(project, database.url, RUN_SEEDS="1", DRAIN_SECONDS="1.5")

    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(start(old)) for _ in range(3)]
        balancer = Balancer([*running])
        with Load(6, balancer.ask) as load:
            load.until(100)
            for replica in running:
                fresh = stack.enter_context(start(new))
                balancer.replicas = [*balancer.replicas, fresh]
                replica.process.terminate()
                if looks_at == "readiness":
                    wait_until(lambda r=replica: r.status("/readyz") == 503, "it drains")
                    balancer.replicas = [each for each in balancer.replicas if each != replica]
                assert replica.process.wait(PATIENCE) == 0
                if looks_at == "connection":
                    load.until(50)
                    balancer.replicas = [each for each in balancer.replicas if each != replica]
                load.until(100)
    assert set(load.results) == {"200"}, load.results
    assert database.sql("SELECT version_num FROM alembic_version") == [("20300101000000",)]
