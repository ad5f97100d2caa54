"""Real generated projects: rendered on the command line, installed by the hooks, run by init.sh."""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from warm import Starter

TEMPLATE = Path(__file__).resolve().parent.parent
QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text())
DEFAULTS: dict[str, object] = {
    **{name: value[0] if isinstance(value, list) else value for name, value in QUESTIONS.items()},
    "project_slug": "book-service",
    "install": False,
}
FREE_TEXT = ["project_name", "description", "author_name"]
# What people type when they can type anything.
TYPED = [
    """O'Neil "the \\ back" & <b>co</b>""",
    "{{ 7*7 }} {{cookiecutter.project_slug}} {{ cookiecutter.nothing }}",
    "{% raw %}",
    "{% endraw %}{{ 7*7 }}{% raw %}",
    "{# derived #",
    "${{ secrets.TOKEN }} $HOME $(id) `id` ${x:-y}",
    "'''\"\"\"",
    "</title><script>alert(1)</script>",
    "two\nlines\r\nand\ttabs",
    "1. # not *a* [list](x) | ~~y~~",
    "- no: yaml, %YAML &x *y !z",
    "日本語 🎉 👩‍👩‍👧 \u202eשלום\u202c العربية",
    "trailing \\",
    "\x1b[31mred\x07\x7f\x85\u2028",
    "null",
    "-",
    "a" * 1000,
]

# What a shell starts with & ignores Ctrl-C, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

COOKIECUTTER = [sys.executable, "-m", "cookiecutter", str(TEMPLATE)]
PATIENCE = 120  # seconds: test machines can be slow, and no test is about speed


IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A tester"), ("EMAIL", "tester@example.com"))
}


def clean_environment(**changes: str | None) -> dict[str, str]:
    """The environment without settings of a service; None removes a variable."""
    foreign = {
        "APP_ENV",
        "DATABASE_URL",
        "DATABASE_URL_MIGRATIONS",
        "REHEARSAL_DATABASE_URL",
        "SCHEMA",
        "SECRET_KEY",
        "PORT",
        "METRICS_PORT",
        "SENTRY_DSN",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "UV",
        "BACKUP_DIR",
        "BACKUP_BEFORE_MIGRATE",
    }
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    environment |= IDENTITY
    for name, value in changes.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return environment


def run(*command: str | Path, cwd: Path | None = None, **environment: str | None):
    """Run a command to its end; stdout and stderr are one stream."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=600,
    )


def generate(
    folder: Path, *answers: str, python: str | Path = sys.executable, **environment: str | None
):
    """What a person does: `cookiecutter` on the command line."""
    options = ["--no-input", "--default-config", "--output-dir", folder]
    return run(python, *COOKIECUTTER[1:], *options, *answers, **environment)


def files(folder: Path) -> dict[str, bytes]:
    """The files in the folder that belong to the project, by path."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not {".git", ".venv", ".postgres", "__pycache__"} & set(file.relative_to(folder).parts)
    }


def replay(folder: Path, **answers: object):
    """Generate from a file of answers, which Cookiecutter accepts unchecked."""
    file = folder / "answers.json"
    file.write_text(json.dumps({"cookiecutter": {**DEFAULTS, **answers}}))
    options = ["--default-config", "--replay-file", file, "--output-dir", folder / "out"]
    return run(*COOKIECUTTER, *options)


def copy_template(folder: Path) -> None:
    """Copy the parts of this repository that Cookiecutter reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("cookiecutter.json", "hooks", "{{cookiecutter.project_slug}}"):
        run("cp", "-r", TEMPLATE / part, folder / part)


def commit(folder: Path, message: str) -> None:
    """Commit everything in the folder, which becomes a repository if it is not one yet."""
    for words in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--allow-empty", "--message", message],
    ):
        result = run("git", *words, cwd=folder)
        assert result.returncode == 0, result.stdout


def corrected_command(output: str) -> str:
    """The command line that a refusal prints."""
    return output.split("With these values:")[1].split("\nERROR: ")[0].strip()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s until {what}"
        time.sleep(0.05)


def save_until(file: Path, text: str, condition: Callable[[], object], what: str) -> None:
    """Save the file as a person would, repeatedly in case the reloader is not watching yet."""
    due, pause = 0.0, 1.0

    def condition_after_a_save() -> object:
        nonlocal due, pause
        if time.monotonic() > due:
            pause *= 2
            due = time.monotonic() + pause
            file.write_text(text)
        return condition()

    wait_until(condition_after_a_save, what)


@dataclass
class Server:
    """A service that `init.sh` started."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE)

    def status(self, path: str) -> int | None:
        """The status of the answer, or None while there is no answer."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get(path).status_code
        except requests.RequestException:
            return None

    def says(self, path: str, words: str) -> bool:
        """Whether the answer contains these words, whatever its status."""
        try:
            return words in self.get(path).text
        except requests.RequestException:
            return False

    def answers(self, path: str = "/api/books") -> bool:
        return self.status(path) == 200

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)


# What `Project.sql` and `Project.holding` run in the project.
SQL = """
import sys
from sqlalchemy import text
from app import create_app
from app.models import db

with create_app().app_context():
    with db.engine.connect().execution_options(isolation_level=sys.argv[1]) as connection:
        for statement in sys.argv[2:]:
            result = connection.execute(text(statement))
            print([tuple(row) for row in result] if result.returns_rows else "")
        if sys.argv[1] != "AUTOCOMMIT":
            print("open", flush=True)
            sys.stdin.read()
"""


@functools.cache
def starter(environment: Path) -> Starter:
    """The process that starts commands with the packages of this environment."""
    return Starter(environment / "bin" / "python")


@dataclass
class Project:
    """A generated project."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / ".venv" / "bin" / "python"

    def run(self, *command: str | Path, **environment: str | None):
        return run(*command, cwd=self.path, **environment)

    def flask(self, *words: str, **environment: str | None):
        return self.python_runs("-m", "flask", *words, **environment)

    def python_runs(self, *words: str, **environment: str | None):
        """Run `python WORDS`, in a process with the packages in it if that makes no difference."""
        env = clean_environment(**environment)
        library = self.path / ".venv" / "lib"
        if env.get("APP_ENV") == "production" or not library.is_symlink():
            return self.run(self.python, *words, **environment)
        return starter(library.resolve().parent).run([*words], self.path, env, 600)

    def popen(self, *command: str | Path, **environment: str | None) -> subprocess.Popen[str]:
        """Start a command; the caller reads its output."""
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=self.path,
            env=clean_environment(**environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def holding_the_server(self) -> contextlib.AbstractContextManager[None]:
        """Keep the embedded server up while the block runs."""
        packages = (self.path / ".venv/lib").resolve().parent
        return starter(packages).holding_the_server(self.path, clean_environment())

    def sql(self, *statements: str, **environment: str | None) -> str:
        """Run SQL on the service's own connection, one statement at a time; return the rows."""
        result = self.python_runs("-c", SQL, "AUTOCOMMIT", *statements, **environment)
        assert result.returncode == 0, result.stdout
        return result.stdout.strip()

    @contextlib.contextmanager
    def holding(self, statement: str, *, until_held: bool = True) -> Iterator[None]:
        """Run a statement in a transaction that stays open until the block ends."""
        with self.popen(self.python, "-c", SQL, "READ COMMITTED", statement) as process:
            assert process.stdout is not None
            try:
                assert not until_held or any(line == "open\n" for line in process.stdout)
                yield
            finally:
                if until_held and process.stdin:
                    # Ends by itself, so that the embedded server ends with the last who use it.
                    process.stdin.close()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(10)
                process.kill()

    @contextlib.contextmanager
    def in_production(self) -> Iterator[dict[str, str]]:
        """The settings of production, with the embedded server as if it were any other."""
        holder = "from app.core import embedded; embedded.start(); "
        holder += "print(embedded.url().query['host'], flush=True); input()"
        with self.popen(self.python, "-c", holder) as process:
            assert process.stdout is not None
            folder = quote(process.stdout.readline().strip(), safe="")
            try:
                yield {
                    "APP_ENV": "production",
                    "SECRET_KEY": secrets.token_hex(32),
                    "DRAIN_SECONDS": "0",
                    "DATABASE_URL": f"postgresql://postgres@{folder}/postgres",
                }
            finally:
                process.communicate("\n", PATIENCE)

    @contextlib.contextmanager
    def starting(self, *command: str, **environment: str | None) -> Iterator[Server]:
        """Run init.sh on a free port; stop it when the block ends."""
        port = free_port()
        log = self.path.parent / f"log of {port}"
        with log.open("w") as output:
            process = subprocess.Popen(
                command or ["./init.sh"],
                cwd=self.path,
                env=clean_environment(PORT=str(port), **environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        try:
            yield Server(process, f"http://127.0.0.1:{port}", log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE)

    @contextlib.contextmanager
    def serving(
        self, *command: str, until: str = "/api/books", **environment: str | None
    ) -> Iterator[Server]:
        """Run init.sh on a free port and wait until it answers."""
        with self.starting(*command, **environment) as server:
            wait_until(lambda: server.answers(until), "init.sh serves")
            yield server

    def postgres_pid(self) -> int | None:
        """The process id of the embedded server, or None if it is not running."""
        try:
            lines = (self.path / ".postgres/data/postmaster.pid").read_text().splitlines()
            os.kill(int(lines[0]), 0)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            return None
        return int(lines[0])


# These take longest, in this order: with them first, no process is left alone with one at the end.
LONG = [
    "test_backups.py",
    "test_docker.py",
    "test_hook.py",
    "test_upgrade.py",
    "test_docs.py",
    "test_production_compose.py",
    "test_rehearsal.py",
    "test_deploys.py",
    "test_first_day.py",
    "test_written.py",
    "test_platform_commands.py",
    "test_trouble.py",
    "test_ci.py",
    "test_answers.py",
    "test_dry_run.py",
    "test_migrations.py",
    "test_seeds.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[bool]:
    """Whether this process is to make the folder; the others wait until it is there."""
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def generated(shared: Path) -> Path:
    """The default project, generated once. Tests change copies of it: `project`."""
    folder = shared / "generated"
    with made_once(folder) as here:
        if here:
            result = generate(folder)
            assert result.returncode == 0, result.stdout
            assert "not done" not in result.stdout, result.stdout
            project = Project(folder / "book-service")
            # Compiled for all copies, and current by more than the second and the size.
            compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "checked-hash"]
            result = project.run(project.python, *compile_all, "app", "migrations")
            assert result.returncode == 0, result.stdout
    return folder / "book-service"


def copy_project(original: Path, copy: Path) -> Project:
    """A copy without the database, whose environment shares the 10,000 files of the packages."""
    ignored = shutil.ignore_patterns(".postgres", ".venv")
    shutil.copytree(original, copy, ignore=ignored, symlinks=True)
    here, there = original / ".venv", copy / ".venv"
    ignored = shutil.ignore_patterns("lib")
    shutil.copytree(here, there, ignore=ignored, symlinks=True, copy_function=os.link)
    (there / "lib").symlink_to(here / "lib")
    return Project(copy)


@pytest.fixture
def project(generated: Path, tmp_path: Path) -> Project:
    """A copy of the default project, with its environment but without a database."""
    return copy_project(generated, tmp_path / "book-service")


@pytest.fixture(scope="session")
def seeded(generated: Path, shared: Path) -> Path:
    """The files of an embedded database that is migrated and seeded, made once."""
    folder = shared / "seeded"
    with made_once(folder) as here:
        if here:
            project = copy_project(generated, folder)
            assert project.flask("db", "upgrade").returncode == 0
            assert project.flask("seed", "all").returncode == 0
    return folder / ".postgres"


@pytest.fixture
def ready(project: Project, seeded: Path) -> Iterator[Project]:
    """A copy of the default project whose database is migrated and seeded, and up."""
    shutil.copytree(seeded, project.path / ".postgres")
    with project.holding_the_server():
        yield project
