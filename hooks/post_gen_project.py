"""Finish the new project: drop what was not chosen, then install it and write its first migration.

Only the standard library: hooks run in Cookiecutter's own Python. A step that fails never fails the
hook, because Cookiecutter would delete the project; it prints the command that does the rest later.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

# tojson writes no single quote, and a raw string leaves its backslashes alone.
ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

# What each answer removes.
LICENSES = ["MIT", "BSD-3-Clause", "Apache-2.0"]
UNWANTED = {
    "license": {
        name: [f"LICENSE-{other}" for other in LICENSES if other != name]
        for name in [*LICENSES, "Proprietary"]
    }
}
# What is kept under another name.
RENAMED = {f"LICENSE-{name}": "LICENSE" for name in LICENSES}

PYTHON = os.path.join(".venv", "Scripts" if os.name == "nt" else "bin", "python")
FLASK = [PYTHON, "-m", "flask", "db"]
COMMIT = ["commit", "--quiet", "-m", "Generate the project from cookiecutter-flask-postgres"]


def main():
    remove_what_was_not_chosen()
    write_env()
    if ANSWERS["install"]:
        run_steps(install_steps())
    if is_own_repository():
        run_steps(git_steps())
    say(f"Start it: cd {shlex.quote(os.getcwd())} && ./init.sh")


def remove_what_was_not_chosen():
    for question, removed in UNWANTED.items():
        for name in removed[ANSWERS[question]]:
            Path(name).unlink()
    for name, new_name in RENAMED.items():
        if Path(name).exists():
            Path(name).replace(new_name)


def write_env():
    if Path(".env").exists():
        say(".env: kept as it was")
        return
    example = Path(".env.example").read_text(encoding="utf-8")
    secret = f"SECRET_KEY={secrets.token_hex(32)}"
    descriptor = os.open(".env", os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(re.sub("(?m)^SECRET_KEY=.*", secret, example))
    say(".env: written, with a random SECRET_KEY")


def install_steps():
    """The commands from a rendered project to an upgraded database, each with what it is for."""
    steps = []
    if shutil.which("uv"):
        if not Path(".venv").exists():
            # Relocatable: its scripts work after the project is moved.
            steps += [("environment", ["uv", "venv", "--quiet", "--relocatable"])]
        steps += [("dependencies", ["uv", "sync", "--quiet", "--compile-bytecode"])]
    else:
        pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        steps += [
            ("environment", [find_python(), "-m", "venv", ".venv"]),
            ("pip that knows dependency groups", [*pip, "pip>=25.1"]),
            ("dependencies", [*pip, "--group", "dev", "."]),
        ]
    if not Path("migrations").exists():
        steps += [
            ("flask db init", [*FLASK, "init"]),
            ("first migration", [*FLASK, "migrate", "-m", "initial", "--rev-id", "0001"]),
            ("flask db upgrade", [*FLASK, "upgrade"]),
        ]
    return steps


def git_steps():
    steps = [
        ("git init", ["git", "init", "--quiet"]),
        ("git add", ["git", "add", "--all"]),
        ("first commit", ["git", *COMMIT]),
    ]
    if shutil.which("git") and run(["git", "var", "GIT_COMMITTER_IDENT"]).returncode:
        identity = [f"user.name={ANSWERS['author_name']}", "user.email=you@example.com"]
        options = [word for setting in identity for word in ("-c", setting)]
        run_steps(steps[:2])
        say("first commit: left to you, git does not know who you are. Put in your address:")
        say(f"  {later([('', ['git', *options, *COMMIT])])}")
        return []
    return steps


def run_steps(steps):
    """Run the commands; at the first that fails say why, and the command that does the rest."""
    for number, (name, command) in enumerate(steps):
        started = time.monotonic()
        print(f"{name}: ", end="", flush=True)
        reason = failure_of(command)
        if reason:
            say(f"not done. {reason}")
            say("The project stays; this does the rest later:")
            say(f"  {later(steps[number:])}")
            return
        say(f"done ({time.monotonic() - started:.1f} s)")


def failure_of(command):
    try:
        result = run(command)
    except FileNotFoundError:
        return f"{command[0]} was not found."
    except KeyboardInterrupt:
        return "Interrupted."
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    return " ".join(lines[-3:] or ["It says nothing."])[:600] if result.returncode else ""


def run(command):
    # The service's settings in the caller's environment are not meant for this project, nor is
    # the virtual environment that Cookiecutter may run in.
    foreign = set(re.findall("(?m)^#? ?([A-Z_]+)=", Path(".env.example").read_text("utf-8")))
    foreign |= {"VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "PYTHONHOME", "PYTHONPATH"}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in foreign and not name.startswith("FLASK_")
    }
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )


def later(steps):
    """One command line that does these steps from anywhere."""
    return shlex.join(["cd", os.getcwd()]) + "".join(f" && {shlex.join(step)}" for _, step in steps)


def find_python():
    """This Python if it is new enough for the project, else the newest on the PATH."""
    if sys.version_info >= (3, 11):
        return sys.executable
    names = ["python3.14", "python3.13", "python3.12", "python3.11"]
    return next(filter(shutil.which, names), "python3.11")


def is_own_repository():
    """False inside somebody's work tree: the project is theirs to commit."""
    try:
        inside = run(["git", "rev-parse", "--is-inside-work-tree"]).returncode == 0
    except FileNotFoundError:
        return True
    if inside:
        say("git: left alone, this folder is inside a repository already")
    return not inside


def say(line):
    print(line, flush=True)


try:
    main()
except Exception as error:  # noqa: BLE001 - a failing hook loses the project
    say(f"The project is here, but it is not finished: {error!r}")
