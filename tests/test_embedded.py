"""The embedded PostgreSQL: shared, stopped with its last user, and back after a kill -9."""

import os
import signal
import subprocess

import pytest
from conftest import PATIENCE, Project, wait_until

USE_IT = """
from app.core import embedded
embedded.start()
print("started", flush=True)
input()
"""


class User:
    """A process that uses the embedded server until it is told to go."""

    def __init__(self, project: Project) -> None:
        self.process = project.popen(project.python, "-c", USE_IT)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "started\n"

    def leave(self) -> None:
        self.process.communicate("\n", timeout=PATIENCE)
        assert self.process.returncode == 0

    def end_by(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.communicate(timeout=PATIENCE)


def test_it_is_shared_and_stops_with_the_last(project: Project):
    first, second = User(project), User(project)
    pid = project.postgres_pid()
    first.leave()
    assert project.postgres_pid() == pid
    second.leave()
    assert project.postgres_pid() is None


def test_data_is_kept_between_runs(project: Project):
    project.sql("CREATE TABLE kept AS SELECT 42 AS answer")
    assert project.postgres_pid() is None
    assert project.sql("SELECT answer FROM kept") == "[(42,)]"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_it_stops_when_its_user_is_terminated(project: Project, how):
    User(project).end_by(how)
    assert project.postgres_pid() is None


def test_a_killed_user_does_not_keep_it_running_forever(project: Project):
    User(project).end_by(signal.SIGKILL)
    assert project.postgres_pid() is not None
    User(project).leave()
    assert project.postgres_pid() is None


def test_a_killed_server_is_back_with_its_data_at_the_next_start(project: Project):
    project.sql("CREATE TABLE kept AS SELECT 42 AS answer")
    user = User(project)
    pid = project.postgres_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    user.end_by(signal.SIGKILL)
    wait_until(lambda: project.postgres_pid() is None, "the server is dead")
    assert project.sql("SELECT answer FROM kept") == "[(42,)]"
    assert project.postgres_pid() is None


def test_the_pid_of_a_dead_server_may_belong_to_another_program(project: Project):
    project.sql("CREATE TABLE kept AS SELECT 42 AS answer")
    user = User(project)
    pid_file = project.path / ".postgres/data/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    user.leave()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:], ""]))
    assert project.sql("SELECT answer FROM kept") == "[(42,)]"


def test_a_killed_service_leaves_no_server_behind(project: Project):
    with project.serving() as server:
        server.process.kill()
        wait_until(lambda: project.postgres_pid() is None, "its workers have left")


def test_a_running_service_gets_its_killed_server_back(project: Project):
    with project.serving() as server:
        pid = project.postgres_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.status("/readyz") == 200, "it answers from the new one")
        assert project.postgres_pid() not in (None, pid)


def test_database_url_wins(project: Project):
    with (project.path / ".env").open("a") as env:
        env.write("\nDATABASE_URL=postgresql://me@127.0.0.1:1/nowhere\nDATABASE_WAIT_SECONDS=0\n")
    result = project.flask("db", "current")
    assert result.returncode == 1
    assert "127.0.0.1:1" in result.stdout
    assert not (project.path / ".postgres").exists()


def test_a_path_longer_than_a_socket_may_be(project: Project):
    deep = project.path.parent / ("d" * 120)
    deep.mkdir()
    moved = Project(deep / "book-service")
    project.path.rename(moved.path)
    assert moved.sql("SELECT 42") == "[(42,)]"


def test_a_copy_of_a_running_project_leaves_the_original_alone(project: Project):
    project.sql("CREATE TABLE kept AS SELECT 42 AS answer")
    with project.serving() as server:
        copy = project.path.parent / "copy"
        subprocess.run(["cp", "-r", project.path, copy], check=False)
        assert Project(copy).sql("SELECT answer FROM kept") == "[(42,)]"
        assert server.get("/readyz").status_code == 200
        assert Project(copy).postgres_pid() is None


def test_a_first_start_that_was_killed(project: Project):
    half = project.path / ".postgres/data.new"
    half.mkdir(parents=True, mode=0o700)
    (half / "PG_VERSION").write_text("18\n")
    assert project.sql("SELECT 42") == "[(42,)]"


@pytest.mark.parametrize("name", ["O'Brien, & sons", "per%cent é"])
def test_paths_that_need_quotes(project: Project, name):
    moved = Project(project.path.parent / name)
    project.path.rename(moved.path)
    assert moved.flask("db", "upgrade").returncode == 0
    assert moved.sql("SELECT count(*) FROM books") == "[(0,)]"


def test_the_callers_postgresql_variables_are_about_other_servers(project: Project):
    elsewhere = {"PGPORT": "1", "PGHOSTADDR": "127.0.0.1", "PGUSER": "nobody", "PGDATA": "/x"}
    assert project.sql("SELECT 42", **elsewhere) == "[(42,)]"


def test_a_copied_project_has_a_copy_of_the_data(project: Project):
    project.sql("CREATE TABLE kept AS SELECT 42 AS answer")
    copy = project.path.parent / "copy"
    subprocess.run(["cp", "-r", project.path, copy], check=True)
    assert Project(copy).sql("SELECT answer FROM kept") == "[(42,)]"
