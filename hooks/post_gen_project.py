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
from typing import List, NamedTuple, Optional

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
# Settings of other services in the caller's shell: the first migration is not about their database.
FOREIGN = ["APP_ENV", "DATABASE_URL", "DATABASE_URL_MIGRATIONS", "DATABASE_POOLED", "SCHEMA"]
FOREIGN += ["PORT", "LOG_LEVEL", "FLASK_APP", "FLASK_SKIP_DOTENV", "FLASK_DB_INIT_TEMPLATE"]
FOREIGN += ["VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "UV_NO_DEV", "UV_FROZEN", "UV_LOCKED"]
FOREIGN += ["PYTHONHOME", "PYTHONPATH"]


class Step(NamedTuple):
    """One command; `unless` is a path that says it was done, `later` what a person runs instead."""

    name: str
    command: List[str]
    unless: str = ""
    later: Optional[List[str]] = None


def main():
    remove_what_was_not_chosen()
    write_env()
    installing, committing = install_steps(), git_steps()
    if not ANSWERS["install"]:
        run_steps(committing)
        say("Rendered. To install it:")
        say(f"  {later(installing)}")
    elif run_steps(installing + committing):
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
    """The commands from a rendered project to an upgraded database."""
    if shutil.which("uv"):
        steps = [
            # Relocatable: its scripts work after the project is moved.
            Step("environment", ["uv", "venv", "--quiet", "--relocatable"], unless=".venv"),
            Step("dependencies", ["uv", "sync", "--quiet", "--compile-bytecode"]),
        ]
    else:
        pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        steps = [
            Step("environment", [find_python(), "-m", "venv", ".venv"]),
            Step("pip that knows dependency groups", [*pip, "pip>=25.1"]),
            Step("dependencies", [*pip, "--group", "dev", "."]),
        ]
    initial = [*FLASK, "migrate", "-m", "initial", "--rev-id", "0001"]
    return [
        *steps,
        Step("flask db init", [*FLASK, "init"], unless="migrations"),
        Step("first migration", initial, unless="migrations/versions/0001_initial.py"),
        Step("flask db upgrade", [*FLASK, "upgrade"]),
    ]


def git_steps():
    """The commands to a first commit, none inside somebody's repository."""
    commit = ["commit", "--quiet", "-m", "Generate the project from cookiecutter-flask-postgres"]
    if shutil.which("git"):
        if run(["git", "rev-parse", "--is-inside-work-tree"]).returncode == 0:
            say("git: left alone, this folder is inside a repository already")
            return []
        knows_me = run(["git", "var", "GIT_COMMITTER_IDENT"]).returncode == 0
    else:
        knows_me = False
    me = ["-c", f"user.name={ANSWERS['author_name']}", "-c", "user.email=you@example.com"]
    later_commit = ["git", *([] if knows_me else me), *commit]
    return [
        Step("git init", ["git", "init", "--quiet"]),
        Step("git add", ["git", "add", "--all"]),
        # git leaves this file behind with the first commit.
        Step("first commit", ["git", *commit], unless=".git/COMMIT_EDITMSG", later=later_commit),
    ]


def run_steps(steps):
    """Run the commands; at the first that fails say why, and what does the rest."""
    for number, step in enumerate(steps):
        if step.unless and Path(step.unless).exists():
            continue
        started = time.monotonic()
        print(f"{step.name}: ", end="", flush=True)
        reason = failure_of(step.command)
        if reason:
            say(f"not done. {reason}")
            say("The project stays; this does the rest later:")
            say(f"  {later(steps[number:])}")
            return False
        say(f"done ({time.monotonic() - started:.1f} s)")
    return True


def failure_of(command):
    """The reason in one line, empty when the command did its work."""
    try:
        result = run(command)
    except FileNotFoundError:
        return f"{command[0]} was not found."
    except KeyboardInterrupt:
        return "Interrupted."
    if result.returncode == 0:
        return ""
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)[\w.]*(error|fatal|failed)\b", line)]
    return " ".join(errors[-1:] or lines[-3:] or ["It says nothing."])[:500]


def run(command):
    return subprocess.run(
        command,
        env={name: value for name, value in os.environ.items() if name not in FOREIGN},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )


def later(steps):
    """One command line that does these steps from anywhere, and may be run again."""
    words = [shlex.join(["cd", os.getcwd()]), "unset " + " ".join(FOREIGN)]
    for step in steps:
        command = shlex.join(step.later or step.command)
        words.append(f"( [ -e {step.unless} ] || {command} )" if step.unless else command)
    return f"({' && '.join(words)})"


def find_python():
    """This Python if it is new enough for the project, else the newest on the PATH."""
    if sys.version_info >= (3, 11):
        return sys.executable
    names = ["python3.14", "python3.13", "python3.12", "python3.11"]
    return next(filter(shutil.which, names), "python3.11")


def say(line):
    print(line, flush=True)


try:
    main()
except Exception as error:  # noqa: BLE001 - a failing hook loses the project
    say(f"The project is here, but not finished: {error!r}")
except KeyboardInterrupt:
    say("Interrupted. The project stays; this does the rest later:")
    say(f"  {later(install_steps())}")
