"""The generated project on a real Docker engine: one stack for most tests, one for `orders`."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = Path(__file__).resolve().parent.parent
SLUG = "book-service"
# Generous, because test machines are busy; only something broken takes this long.
DEADLINE = 180
MIGRATED = "Running upgrade  -> 0001"
# The user who owns the checkout, not necessarily 1000 as in the image.
ME = f"{os.getuid()}:{os.getgid()}"
FOREIGN = {"APP_ENV", "DATABASE_URL", "SCHEMA", "SECRET_KEY", "HOST", "VIRTUAL_ENV"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in FOREIGN}

# A local service is never behind a proxy.
http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    try:
        run("docker", "info")
        run("docker", "compose", "version")
    except (OSError, AssertionError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no Docker engine with compose: {error}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, engine: None) -> Iterator["Stack"]:
    """The default project, started with `docker compose up`."""
    with stack(make_project(tmp_path_factory.mktemp("default"))) as running:
        yield running


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory, engine: None) -> Iterator["Stack"]:
    """The same with PostgreSQL 16 and a schema of its own."""
    folder = tmp_path_factory.mktemp("orders")
    with stack(make_project(folder, postgres_version="16", db_schema="orders")) as running:
        yield running


def test_up_serves_the_seeded_books(service: "Stack") -> None:
    assert get(service.url("/readyz")) == (
        200, {"status": "ready", "revision": "0001", "reason": None},
    )  # fmt: skip
    assert len(get(service.url("/api/books"))[1]["items"]) == 4


def test_up_again_changes_nothing(service: "Stack") -> None:
    before = service.compose("ps", "--quiet")
    service.compose("up", "-d", "--wait")
    assert service.compose("ps", "--quiet") == before


@pytest.mark.parametrize("name", ["service", "orders"])
def test_rows_of_users_outlive_their_containers(name: str, request: pytest.FixtureRequest) -> None:
    running: Stack = request.getfixturevalue(name)
    author = urllib.request.Request(
        running.url("/api/authors"), b'{"name": "A user"}', {"Content-Type": "application/json"}
    )
    with http.open(author, timeout=30) as response:
        path = f"/api/authors/{json.load(response)['id']}"
    running.compose("restart")
    until_ready(running.url("/readyz"))
    assert get(running.url(path))[1]["name"] == "A user"

    running.compose("down")
    running.compose("up", "-d", "--wait")
    assert get(running.url(path))[1]["name"] == "A user"
    assert len(get(running.url("/api/books"))[1]["items"]) == 4


def test_a_database_restarted_while_idle_costs_no_request(service: "Stack") -> None:
    assert get(service.url("/api/books"))[0] == 200
    service.compose("restart", "db")
    service.compose("up", "-d", "--wait", "db")
    assert [get(service.url("/api/books"))[0] for _ in range(10)] == [200] * 10


def test_changed_code_is_served_without_a_restart(service: "Stack") -> None:
    route = service.project / "app/routes/health.py"
    before = route.read_text("utf-8")
    try:
        route.write_text(before.replace('"alive"', '"changed"'), "utf-8")
        until("reloaded", lambda: get(service.url("/healthz"))[1] == {"status": "changed"})
    finally:
        route.write_text(before, "utf-8")
    until("reloaded", lambda: get(service.url("/healthz"))[1] == {"status": "alive"})


def test_compose_keeps_its_own_database_and_takes_the_rest_from_env(service: "Stack") -> None:
    env = service.project / ".env"
    env.write_text(
        "APP_ENV=production\nHOST=127.0.0.1\nSECRET_KEY=mine\n"
        "DATABASE_URL=postgresql://nobody@nowhere/none\n"
        "DATABASE_URL_MIGRATIONS=postgresql://nobody@nowhere/none\n"
    )
    names = ["app_env", "host", "secret_key", "database_url", "database_url_migrations"]
    script = "import app.config as c; s = c.load_settings(); "
    script += f"print([str(getattr(s, name)) for name in {names}])"
    try:
        said = service.compose("run", "--rm", "-T", "--no-deps", "backend", "python", "-c", script)
    finally:
        env.unlink()
    database = "postgresql+psycopg://app:***@db:5432/app"
    assert last_line(said) == str(["development", "0.0.0.0", "mine", database, "None"])


def test_image_has_only_what_it_runs_and_is_not_root(service: "Stack") -> None:
    pyproject = tomllib.loads((service.project / "pyproject.toml").read_text("utf-8"))
    development = {
        name.split(">=")[0].split("==")[0] for name in pyproject["dependency-groups"]["dev"]
    }
    script = (
        "import json, os, shutil; from importlib.metadata import distributions; print(json.dumps(["
        "os.getuid(), sorted(os.listdir('/srv')), [d.name.lower() for d in distributions()],"
        "[tool for tool in ('cc', 'gcc', 'clang', 'make', 'uv') if shutil.which(tool)]]))"
    )
    user, files, installed, tools = json.loads(
        last_line(run("docker", "run", "--rm", service.image, "python", "-c", script))
    )
    assert user != 0
    assert run("docker", "inspect", "-f", "{{.Config.User}}", service.image).strip() == "1000:1000"
    assert files == [
        ".flaskenv", ".venv", "app", "gunicorn.conf.py", "init.sh", "migrations", "pyproject.toml",
    ]  # fmt: skip
    assert {"flask", "gunicorn"} <= set(installed)
    assert development
    assert not development & set(installed)
    assert tools == []


def test_production_runs_read_only_without_privileges_and_stops_at_once(service: "Stack") -> None:
    locked = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    with production(service, "locked", *locked, "--health-interval", "1s") as container:
        until_ready(url_of(container, "/readyz"))
        until("healthy", lambda: inspect(container, "{{.State.Health.Status}}") == "healthy")
        assert get(url_of(container, "/api/books"))[1]["items"] == []
        assert "gunicorn" in run("docker", "exec", container, "cat", "/proc/1/cmdline")

        started = time.monotonic()
        run("docker", "stop", "-t", "60", container)
        assert time.monotonic() - started < 20
        assert inspect(container, "{{.State.ExitCode}}") == "0"


def test_production_refuses_to_start_without_secret(service: "Stack") -> None:
    with pytest.raises(AssertionError, match="SECRET_KEY is not set.*"):
        run("docker", "run", "--rm", "-e", "DATABASE_URL=postgresql://app@db/app", service.image)


@pytest.mark.parametrize("name", ["service", "orders"])
def test_backups_in_the_image(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """With the programs of the server's version, whatever Debian that image is of."""
    running: Stack = request.getfixturevalue(name)
    tmp_path.chmod(0o777)
    options = ["--read-only", "--user", ME, "--network", f"{running.name}_default"]
    options += ["--volume", f"{tmp_path}:/backups", "--env", "BACKUP_DIR=/backups"]
    options += ["--env", "SECRET_KEY=only-for-this-test"]
    options += ["--env", "DATABASE_URL=postgresql://app:app@db/app"]
    options += ["--env", f"SCHEMA={'orders' if name == 'orders' else 'public'}"]
    command = ["docker", "run", "--rm", *options, running.image, "sh", "-euc"]
    said = run(*command, "flask backup create && flask backup prune && flask backup verify latest")
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["level"] for line in lines] == ["info"] * 3
    assert "is whole: restored into database" in lines[-1]["event"]
    (manifest,) = (json.loads(file.read_text()) for file in tmp_path.glob("*.json"))
    server = running.sql("SHOW server_version_num")[0][0]
    assert manifest["server_version"].split(".")[0] == server[:2]
    again = "flask backup restore latest --replace --yes-in-production && psql --version"
    assert "has nothing to do" in run(*command, again)
    if name == "service":
        # In development, from the page and without anything but Docker.
        flask = ["exec", "-T", "backend", "flask"]
        running.compose(*flask, "backup", "create")
        assert "nothing to fix" in running.compose(*flask, "db", "rehearse", "latest")


def test_three_replicas_migrate_an_empty_database_once(service: "Stack") -> None:
    service.sql("CREATE DATABASE replicas")
    with contextlib.ExitStack() as running:
        containers = [running.enter_context(replica(service, "replicas")) for _ in range(3)]
        for container in containers:
            until_ready(url_of(container, "/readyz"))
        logs = [run("docker", "logs", container) for container in containers]
    assert sum(log.count(MIGRATED) for log in logs) == 1


def test_orders_has_its_tables_in_its_schema(orders: "Stack") -> None:
    assert len(get(orders.url("/api/books"))[1]["items"]) == 4
    tables = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('orders', 'public')"
    assert sorted(orders.sql(tables)) == [
        ["orders", "alembic_version"], ["orders", "authors"], ["orders", "books"],
    ]  # fmt: skip
    assert orders.sql("SHOW server_version_num")[0][0].startswith("16")


def test_a_migration_can_be_written_and_applied_with_docker_alone(orders: "Stack") -> None:
    model = orders.project / "app/models/authors.py"
    born = "    born: Mapped[int | None]\n"
    model.write_text(
        model.read_text("utf-8").replace(born, f"{born}    died: Mapped[int | None]\n")
    )
    migrate = ["flask", "db", "migrate", "-m", "authors die"]
    orders.compose("exec", "-T", "--user", ME, "backend", *migrate)

    (written,) = (orders.project / "migrations/versions").glob("*_authors_die.py")
    assert written.stat().st_uid == os.getuid()
    orders.compose("restart", "backend")
    revision = written.name.split("_")[0]
    until("upgraded", lambda: get(orders.url("/readyz"))[1].get("revision") == revision)


def test_image_of_a_project_without_lock(service: "Stack", tmp_path: Path) -> None:
    project = copy_of(service.project, tmp_path, without="uv.lock")
    image = f"{service.image}-without-lock"
    try:
        run("docker", "build", "--tag", image, str(project))
        run("docker", "run", "--rm", image, "python", "-c", "import app, gunicorn")
    finally:
        run("docker", "rmi", "--force", image)


def test_image_without_migrations_says_what_to_do(service: "Stack", tmp_path: Path) -> None:
    project = copy_of(service.project, tmp_path, without="migrations")
    with pytest.raises(AssertionError, match=r"\d There is no migrations/ .* flask db init"):
        run("docker", "build", str(project))


@dataclass(frozen=True)
class Stack:
    """A project under `docker compose`, with its own name and ports."""

    project: Path
    name: str
    port: int
    database_port: int

    @property
    def image(self) -> str:
        return f"{self.name}-backend"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def compose(self, *words: str) -> str:
        ports = {"PORT": str(self.port), "DB_PORT": str(self.database_port)}
        return run("docker", "compose", "-p", self.name, *words, cwd=self.project, **ports)

    def sql(self, statement: str) -> Any:
        """The rows of a statement; psycopg sends it, since not every PostgreSQL image has psql."""
        script = (
            "import json, os, sys, psycopg;"
            "connection = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True);"
            "result = connection.execute(sys.argv[1]);"
            "print(json.dumps(result.fetchall() if result.description else []))"
        )
        said = self.compose("exec", "-T", "backend", "python", "-c", script, statement)
        return json.loads(last_line(said))


@contextlib.contextmanager
def stack(project: Path) -> Iterator[Stack]:
    running = Stack(project, f"test-{uuid.uuid4().hex[:12]}", *free_ports(2))
    try:
        try:
            running.compose("up", "-d", "--build", "--wait")
        except AssertionError:
            print(running.compose("logs"))
            raise
        yield running
    finally:
        running.compose("down", "--volumes", "--rmi", "local", "--remove-orphans")


@contextlib.contextmanager
def production(service: Stack, database: str, *options: str) -> Iterator[str]:
    """A container in production, on an empty database of the stack's server."""
    service.sql(f"CREATE DATABASE {database}")
    with replica(service, database, *options) as container:
        yield container


@contextlib.contextmanager
def replica(service: Stack, database: str, *options: str) -> Iterator[str]:
    name = f"{service.name}-{uuid.uuid4().hex[:12]}"
    url = f"postgresql://app:app@db/{database}"
    command = ["docker", "run", "--detach", "--name", name, "--network", f"{service.name}_default"]
    command += ["--publish", "127.0.0.1::5000", "--env", f"DATABASE_URL={url}"]
    try:
        run(*command, "--env", "SECRET_KEY=only-for-this-test", *options, service.image)
        try:
            yield name
        except BaseException:
            print(run("docker", "logs", name))
            raise
    finally:
        run("docker", "rm", "--force", "--volumes", name)


def make_project(folder: Path, **answers: str) -> Path:
    """Generate a project without a `.env`, like a clone of its repository."""
    extra = [f"{name}={value}" for name, value in answers.items()]
    cookiecutter = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input"]
    said = run(*cookiecutter, "--default-config", "--output-dir", str(folder), *extra)
    project = folder / SLUG
    assert (project / "migrations/versions/0001_initial.py").is_file(), said
    (project / ".env").unlink()
    return project


def copy_of(project: Path, folder: Path, without: str) -> Path:
    """What the image is built from, minus one file or folder."""
    names = ["Dockerfile", ".dockerignore", ".flaskenv", "app", "gunicorn.conf.py", "init.sh"]
    names += ["migrations", "pyproject.toml", "uv.lock"]
    present = [str(project / name) for name in names if (project / name).exists()]
    run("cp", "-R", *(path for path in present if Path(path).name != without), str(folder))
    return folder


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a command; return what it wrote to both streams."""
    result = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT | environment, timeout=2 * DEADLINE, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
    return result.stdout


def last_line(text: str) -> str:
    return text.splitlines()[-1]


def inspect(container: str, template: str) -> str:
    return run("docker", "inspect", "--format", template, container).strip()


def url_of(container: str, path: str) -> str:
    return f"http://{last_line(run('docker', 'port', container, '5000/tcp'))}{path}"


def get(url: str) -> tuple[int, Any]:
    """Status and JSON of an answer; 0 and {} if there is none."""
    try:
        with http.open(url, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except (OSError, ValueError):
        return 0, {}


def until(what: str, ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not ask():
        assert time.monotonic() < deadline, f"not {what} after {DEADLINE} s"
        time.sleep(0.2)


def until_ready(url: str) -> None:
    until("ready", lambda: get(url)[0] == 200)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]
