"""The post-gen hook: whatever is missing, the project stays and one command does the rest."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import cookiecutter
import pytest
import uv
from conftest import (
    COOKIECUTTER,
    DEFAULTS,
    IDENTITY,
    PATIENCE,
    TEMPLATE,
    Project,
    clean_environment,
    commit,
    copy_template,
    corrected_command,
    generate,
    run,
    wait_until,
)

NO_IDENTITY = dict.fromkeys(IDENTITY) | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "user.useConfigOnly",
    "GIT_CONFIG_VALUE_0": "true",
}


def path_without(tmp_path: Path, *hidden: str) -> str:
    """A PATH of links to all programs except these."""
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
    """The command that the hook leaves to the user; the first, if it leaves two."""
    commands = [line.strip() for line in output.splitlines() if line.startswith("  (cd ")]
    assert commands, output
    return commands[0]


def obey(output: str, **environment: str | None) -> None:
    result = run("sh", "-c", printed_command(output), **environment)
    assert result.returncode == 0, result.stdout


def is_installed(project: Project) -> bool:
    check = project.flask("db", "check")
    return check.returncode == 0 and (project.path / "migrations/versions/0001_initial.py").exists()


def test_an_odd_place_and_an_odd_shell(tmp_path):
    """Each step prints one line; the caller's services, settings and home are left alone."""
    folder = tmp_path / "with a space and é"
    folder.mkdir()
    result = generate(
        folder,
        HOME=None,
        DATABASE_URL="postgresql://me@127.0.0.1:1/precious",
        SCHEMA="theirs",
        APP_ENV="production",
        FLASK_APP="theirs",
        PGHOSTADDR="127.0.0.1",
        UV_NO_DEV="1",
    )
    assert [re.split(":| [0-9.]+ s", line)[0] for line in result.stdout.splitlines()] == [
        ".env",
        "environment",
        "dependencies",
        "flask db init",
        "first migration",
        "flask db upgrade",
        "git init",
        "git add",
        "first commit",
        "All this took",
        "Start it",
    ]
    assert "not done" not in result.stdout
    project = Project(folder / "book-service")
    with project.serving() as server:
        assert server.get("/readyz").status_code == 200


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
    for _ in ("once", "and again"):
        obey(result.stdout)
    assert is_installed(project)


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


def test_a_commit_that_fails_is_made_later(tmp_path):
    failing = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "commit.gpgsign",
        "GIT_CONFIG_VALUE_0": "true",
        "GNUPGHOME": str(tmp_path),
    }
    result = generate(tmp_path, "install=no", **failing)
    assert "first commit: not done" in result.stdout
    obey(result.stdout)
    assert run("git", "log", cwd=tmp_path / "book-service").returncode == 0


def test_without_an_identity_for_git(tmp_path):
    result = generate(tmp_path, "install=false", "author_name=Ada O'Neil", **NO_IDENTITY)
    assert result.returncode == 0
    obey(result.stdout, **NO_IDENTITY)
    author = run("git", "log", "--format=%an", cwd=tmp_path / "book-service").stdout
    assert author.strip() == "Ada O'Neil"


def test_inside_somebodys_repository(tmp_path):
    run("git", "init", cwd=tmp_path)
    result = generate(tmp_path, "install=false")
    assert "already inside a repository" in result.stdout
    assert not (tmp_path / "book-service/.git").exists()


def test_a_second_generation_over_the_first_keeps_the_users_files(project, tmp_path):
    secret = (project.path / ".env").read_text()
    (project.path / "migrations/versions/mine.txt").write_text("mine")
    commit(project.path, "mine")
    result = generate(tmp_path, "--overwrite-if-exists")
    assert "not done" not in result.stdout
    assert (project.path / ".env").read_text() == secret
    assert (project.path / "migrations/versions/mine.txt").exists()


def test_an_ordinary_user_whose_home_is_read_only():
    """With the system's own Python and the user `daemon`, which every Linux has."""
    python = ["/usr/bin/python3", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if os.geteuid() or not Path(python[0]).exists() or run(*python).returncode:
        pytest.skip("needs root, and a Python >= 3.11 of the system")
    daemon = ["setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_template(folder / "template")
        run("chown", "-R", "daemon:daemon", folder)
        environment = {
            "HOME": "/usr/share",
            "UV_CACHE_DIR": None,
            "XDG_CACHE_HOME": None,
            "PATH": f"{Path(uv.find_uv_bin()).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(Path(cookiecutter.__file__).parent.parent),
        }
        # Cookiecutter itself saves the answers there.
        (folder / "config.yaml").write_text(f"replay_dir: {folder}")
        options = ["--no-input", "--config-file", folder / "config.yaml", "--output-dir", folder]
        generated = ["/usr/bin/python3", "-m", "cookiecutter", *options, folder / "template"]
        result = run(*daemon, *generated, **environment)
        assert "not done" not in result.stdout, result.stdout
        project = Project(folder / "book-service")
        with project.serving(*daemon, "./init.sh", **environment) as server:
            assert server.get("/readyz").status_code == 200
            assert server.stop() == 0
        assert project.postgres_pid() is None


def ctrl_c(cookiecutter: int) -> None:
    os.killpg(cookiecutter, signal.SIGINT)


def terminate_cookiecutter(cookiecutter: int) -> None:
    os.kill(cookiecutter, signal.SIGTERM)


def terminate_the_hook(cookiecutter: int) -> None:
    hook = Path(f"/proc/{cookiecutter}/task/{cookiecutter}/children").read_text().split()
    os.kill(int(hook[0]), signal.SIGTERM)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("interrupt", "step"),
    [
        (ctrl_c, "dependencies"),
        (terminate_cookiecutter, "first migration"),
        (terminate_the_hook, "flask db upgrade"),
    ],
)
def test_interrupted(tmp_path, interrupt, step):
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*COOKIECUTTER, "--no-input", "--default-config", "--output-dir", tmp_path],
            env=clean_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_until(lambda: f"{step}: " in log.read_text(), f"{step} has begun")
    interrupt(process.pid)
    process.wait(PATIENCE)
    wait_until(lambda: not processes_in(tmp_path), "all processes have ended")
    assert f"{step}: not done. Interrupted." in log.read_text()
    obey(log.read_text())
    assert is_installed(Project(tmp_path / "book-service"))


def processes_in(folder: Path) -> list[str]:
    """Processes that run in the folder or have it on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace")
            if str(folder) in words or (process / "cwd").readlink().is_relative_to(folder):
                found.append(words)
    return found


def test_a_console_that_knows_only_ascii(tmp_path):
    """People paste what is printed, so paths and answers must be exact."""
    folder = tmp_path / "é 日本"
    ascii_only = {"PYTHONIOENCODING": "ascii", **NO_IDENTITY}
    result = generate(folder, "install=no", "author_name=日本", "db_schema=PG", **ascii_only)
    result = run("sh", "-c", corrected_command(result.stdout), HOME=str(tmp_path), **ascii_only)
    assert result.returncode == 0, result.stdout
    obey(result.stdout, **NO_IDENTITY)
    author = run("git", "log", "--format=%an", cwd=folder / "book-service").stdout
    assert author.strip() == "日本"


@pytest.mark.parametrize("output", [">/dev/full", ">&-", ">&- 2>&- <&-", "| true"])
def test_nobody_reads_what_it_prints(tmp_path, output):
    command = shlex.join([*COOKIECUTTER, "--no-input", "--default-config", "install=no"])
    run("sh", "-c", f"{command} --output-dir {tmp_path} {output}")
    wait_until(lambda: not processes_in(tmp_path), "it has ended")
    assert run("git", "log", cwd=tmp_path / "book-service").returncode == 0


def test_a_hook_of_git_may_generate(tmp_path):
    """What git tells its hooks about their repository must not affect the new one."""
    theirs = tmp_path / "theirs"
    run("git", "init", "--quiet", theirs)
    index = theirs / ".git/index"
    result = generate(
        tmp_path, "install=no", GIT_INDEX_FILE=str(index), GIT_DIR=str(theirs / ".git")
    )
    assert "not done" not in result.stdout, result.stdout
    assert run("git", "ls-files", cwd=theirs).stdout == ""
    assert run("git", "log", cwd=tmp_path / "book-service").returncode == 0


def test_the_commands_of_windows(generated, tmp_path):
    """As far as other systems can test it: a hook that believes it runs there, with no programs."""
    hook = (TEMPLATE / "hooks/post_gen_project.py").read_text()
    hook = hook.replace("{{ cookiecutter | tojson }}", json.dumps({**DEFAULTS, "install": True}))
    hook = hook.replace('os.name == "nt"', "True")
    folder = tmp_path / "a folder"
    shutil.copytree(TEMPLATE / "{{cookiecutter.project_slug}}", folder)
    result = run(sys.executable, "-c", hook, cwd=folder, PATH="", PYTHONIOENCODING="cp437")
    assert result.returncode == 0, result.stdout
    commands = [line.strip() for line in result.stdout.split("later:\n")[1].splitlines()]
    assert commands[0] == f'cd "{folder}"'
    assert any(
        line.startswith(".venv") and "Scripts" in line and line.endswith("flask db init")
        for line in commands
    ), commands
    assert commands[-1].startswith('git -c "user.name=The team" ')
    assert not set("'&|()$") & set("".join(commands[1:])), commands
    assert result.stdout.isascii()


def test_windows_can_check_it_out():
    names = run("git", "ls-files", cwd=TEMPLATE).stdout.splitlines()
    devices = {"aux", "con", "nul", "prn"}
    for name in names:
        assert not re.search(r'[<>:"|?*\\]', name), name
        for part in name.split("/"):
            assert part.split(".")[0].lower() not in devices, name
            assert not part.endswith((".", " ")), name
    assert len({name.lower() for name in names}) == len(names)
    assert not [path for path in TEMPLATE.rglob("{{*/**/*") if path.is_symlink()]
    attributes = run(
        "git", "check-attr", "eol", "--", "init.sh", cwd=TEMPLATE / "{{cookiecutter.project_slug}}"
    )
    assert attributes.stdout.strip().endswith("lf")


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_cookiecutter_in_another_python(tmp_path, version):
    """With the newest interpreter of that version on this machine."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    python = installed[-1] if installed else shutil.which(f"python{version}")
    if not python:
        pytest.skip(f"this machine has no Python {version}")
    run(python, "-m", "venv", "--without-pip", tmp_path / "venv")
    packages = str(Path(cookiecutter.__file__).parent.parent)
    result = generate(
        tmp_path, "install=no", python=tmp_path / "venv/bin/python", PYTHONPATH=packages
    )
    assert "Rendered. To install it:" in result.stdout, result.stdout
    assert run("git", "log", cwd=tmp_path / "book-service").returncode == 0


def test_a_moved_project_still_works(project: Project, tmp_path):
    moved = Project(tmp_path / "elsewhere")
    project.path.rename(moved.path)
    assert run(moved.path / ".venv/bin/pytest", "--version", cwd=moved.path).returncode == 0
    with moved.serving() as server:
        assert server.get("/readyz").status_code == 200
