"""The post-gen hook: what is missing costs no project, and the printed command does the rest."""

import os
import stat
import tempfile
from pathlib import Path

import cookiecutter
import pytest
import uv
from conftest import IDENTITY, Project, copy_template, generate, run

NO_IDENTITY = dict.fromkeys(IDENTITY) | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "user.useConfigOnly",
    "GIT_CONFIG_VALUE_0": "true",
}


def path_without(tmp_path: Path, *hidden: str) -> str:
    """A PATH of links to all programs but those."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for directory in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(directory).glob("*") if Path(directory).is_dir() else []:
            link = folder / program.name
            link.unlink(missing_ok=True)
            if program.name not in hidden:
                link.symlink_to(program)
    return str(folder)


def printed_command(output: str) -> str:
    """The command that the hook left to the user, the first if it left two."""
    commands = [line.strip() for line in output.splitlines() if line.startswith("  (cd ")]
    assert commands, output
    return commands[0]


def obey(output: str, **environment: str | None) -> None:
    command = printed_command(output)
    for _ in ("once", "and again"):
        result = run("sh", "-c", command, **environment)
        assert result.returncode == 0, result.stdout


def is_installed(project: Project) -> bool:
    check = project.flask("db", "check")
    return check.returncode == 0 and (project.path / "migrations/versions/0001_initial.py").exists()


def test_every_step_is_one_line(tmp_path):
    result = generate(tmp_path)
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        ".env",
        "environment",
        "dependencies",
        "flask db init",
        "first migration",
        "flask db upgrade",
        "git init",
        "git add",
        "first commit",
        "Start it",
    ]


def test_env_has_a_secret_of_its_own_and_is_not_tracked(generated):
    env = generated / ".env"
    example = (generated / ".env.example").read_text()
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    different = set(env.read_text().splitlines()) - set(example.splitlines())
    assert [line.split("=")[0] for line in different] == ["SECRET_KEY"]
    assert len(different.pop()) > 40
    tracked = run("git", "ls-files", cwd=generated).stdout.splitlines()
    assert {"uv.lock", "migrations/versions/0001_initial.py", ".env.example"} <= set(tracked)
    assert not {".env", ".venv", ".postgres"} & {name.split("/")[0] for name in tracked}
    assert run("git", "status", "--short", cwd=generated).stdout == ""


def test_render_only(tmp_path):
    result = generate(tmp_path, "install=false")
    assert result.returncode == 0
    names = {file.name for file in (tmp_path / "book-service").iterdir()}
    assert ".env" in names
    assert not {".venv", "migrations", "uv.lock"} & names


def test_offline(tmp_path):
    result = generate(tmp_path, UV_OFFLINE="1", UV_CACHE_DIR=str(tmp_path / "empty"))
    assert result.returncode == 0
    project = Project(tmp_path / "book-service")
    assert not (project.path / "migrations").exists()
    obey(result.stdout)
    assert is_installed(project)


def test_without_uv(tmp_path):
    path = path_without(tmp_path, "uv")
    result = generate(tmp_path, PATH=path)
    assert "not done" not in result.stdout
    assert is_installed(Project(tmp_path / "book-service"))


def test_without_uv_and_offline(tmp_path):
    path = path_without(tmp_path, "uv")
    result = generate(tmp_path, PATH=path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert result.returncode == 0
    assert "not done" in result.stdout
    obey(result.stdout, PATH=path)
    assert is_installed(Project(tmp_path / "book-service"))


def test_without_git(tmp_path):
    result = generate(tmp_path, "install=false", PATH=path_without(tmp_path, "git"))
    assert result.returncode == 0
    assert "git was not found" in result.stdout
    obey(result.stdout)
    assert run("git", "log", "--oneline", cwd=tmp_path / "book-service").returncode == 0


def test_without_an_identity_for_git(tmp_path):
    result = generate(tmp_path, "install=false", "author_name=Ada O'Neil", **NO_IDENTITY)
    assert result.returncode == 0
    obey(result.stdout, **NO_IDENTITY)
    author = run("git", "log", "--format=%an", cwd=tmp_path / "book-service").stdout
    assert author.strip() == "Ada O'Neil"


def test_inside_somebodys_repository(tmp_path):
    run("git", "init", cwd=tmp_path)
    result = generate(tmp_path, "install=false")
    assert "inside a repository already" in result.stdout
    assert not (tmp_path / "book-service/.git").exists()


def test_a_space_in_the_path(tmp_path):
    folder = tmp_path / "with a space and é"
    folder.mkdir()
    assert "not done" not in generate(folder).stdout
    project = Project(folder / "book-service")
    with project.serving() as server:
        assert server.get("/readyz").status_code == 200


def test_the_callers_database_is_left_alone(tmp_path):
    result = generate(
        tmp_path,
        DATABASE_URL="postgresql://me@127.0.0.1:1/precious",
        SCHEMA="theirs",
        APP_ENV="production",
        FLASK_APP="theirs",
        PGHOSTADDR="127.0.0.1",
        UV_NO_DEV="1",
    )
    assert "not done" not in result.stdout


def test_a_second_generation_over_the_first_keeps_what_is_the_users(tmp_path):
    generate(tmp_path)
    project = Project(tmp_path / "book-service")
    secret = (project.path / ".env").read_text()
    (project.path / "migrations/versions/mine.txt").write_text("mine")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--message", "mine")
    result = generate(tmp_path, "--overwrite-if-exists")
    assert "not done" not in result.stdout
    assert (project.path / ".env").read_text() == secret
    assert (project.path / "migrations/versions/mine.txt").exists()


def test_an_ordinary_user():
    """The system's own Python and the user `daemon`, whom every Linux knows."""
    python = ["/usr/bin/python3", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if os.geteuid() or not Path(python[0]).exists() or run(*python).returncode:
        pytest.skip("needs root, and a Python >= 3.11 of the system")
    daemon = ["setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_template(folder / "template")
        run("chown", "-R", "daemon:daemon", folder)
        environment = {
            "HOME": name,
            "UV_CACHE_DIR": f"{name}/cache",
            "PATH": f"{Path(uv.find_uv_bin()).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(Path(cookiecutter.__file__).parent.parent),
        }
        options = ["--no-input", "--default-config", "--output-dir", folder]
        generated = ["/usr/bin/python3", "-m", "cookiecutter", *options, folder / "template"]
        result = run(*daemon, *generated, **environment)
        assert "not done" not in result.stdout, result.stdout
        project = Project(folder / "book-service")
        with project.serving(*daemon, "./init.sh", **environment) as server:
            assert server.get("/readyz").status_code == 200
            assert server.stop() == 0
        assert project.postgres_pid() is None


def test_a_moved_project_still_works(project: Project, tmp_path):
    moved = Project(tmp_path / "elsewhere")
    project.path.rename(moved.path)
    assert run(moved.path / ".venv/bin/pytest", "--version", cwd=moved.path).returncode == 0
    with moved.serving() as server:
        assert server.get("/readyz").status_code == 200
