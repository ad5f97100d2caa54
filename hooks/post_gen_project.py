"""Finish the new project: keep what was chosen, then install it and write its first migration.

Only the standard library: hooks run in Cookiecutter's own Python. A failing step never fails the
hook, because Cookiecutter would delete the project; it prints a command that does the rest later.
"""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, NamedTuple, Optional

WINDOWS = os.name == "nt"
COOKIECUTTER = os.getppid()
RECEIVED = []
# A signal is only noted, so that none can strike at a bad moment; `interrupted` checks for them.
for number in [signal.SIGINT, signal.SIGTERM, *([] if WINDOWS else [signal.SIGHUP])]:
    signal.signal(number, lambda received, _: RECEIVED.append(received))

# tojson never writes a single quote, and a raw string leaves its backslashes alone.
ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

# Files that depend on an answer: for each, its name in .choices/ and its name in the project.
CHOICES = {
    "license": {
        "MIT": {"LICENSE-MIT": "LICENSE"},
        "BSD-3-Clause": {"LICENSE-BSD-3-Clause": "LICENSE"},
        "Apache-2.0": {"LICENSE-Apache-2.0": "LICENSE"},
        "Proprietary": {},
    },
    "ci": {
        "GitHub Actions": {
            "github-ci.yml": ".github/workflows/ci.yml",
            "github-template.yml": ".github/workflows/template.yml",
            "github-dependabot.yml": ".github/dependabot.yml",
        },
        "GitLab CI": {
            "gitlab-ci.yml": ".gitlab-ci.yml",
            "gitlab-renovate.json": "renovate.json",
        },
        "none": {},
    },
    "deploy": {
        "Docker": {
            "compose.production.yaml": "compose.production.yaml",
            "nginx.conf": "nginx.conf",
        },
        "Render": {"render.yaml": "render.yaml"},
        "AWS": {
            "aws.yaml": "aws.yaml",
            "aws-deploy.sh": "aws-deploy.sh",
            "aws-run.sh": "aws-run.sh",
        },
        "Kubernetes": {
            "k8s-base-kustomization.yaml": "k8s/base/kustomization.yaml",
            "k8s-base-service.yaml": "k8s/base/service.yaml",
            "k8s-base-network.yaml": "k8s/base/network.yaml",
            "k8s-base-migration.yaml": "k8s/base/migration.yaml",
            "k8s-base-backup.yaml": "k8s/base/backup.yaml",
            "k8s-base-console.yaml": "k8s/base/console.yaml",
            "k8s-deploy.sh": "k8s/deploy.sh",
            "k8s-production-kustomization.yaml": "k8s/production/kustomization.yaml",
            "k8s-production-scaling.yaml": "k8s/production/scaling.yaml",
            "k8s-pgbouncer-kustomization.yaml": "k8s/pgbouncer/kustomization.yaml",
            "k8s-pgbouncer-pgbouncer.yaml": "k8s/pgbouncer/pgbouncer.yaml",
            "k8s-pgbouncer.ini": "k8s/pgbouncer/pgbouncer.ini",
        },
        "none": {},
    },
}

PYTHON = os.path.join(".venv", *(["Scripts", "python.exe"] if WINDOWS else ["bin", "python"]))
FLASK = [PYTHON, "-m", "flask", "db"]
# Settings of other services in the caller's shell; their database is none of our business.
FOREIGN = ["APP_ENV", "DATABASE_URL", "DATABASE_URL_MIGRATIONS", "DATABASE_POOLED", "SCHEMA"]
FOREIGN += ["PORT", "LOG_LEVEL", "FLASK_APP", "FLASK_SKIP_DOTENV", "FLASK_DB_INIT_TEMPLATE"]
FOREIGN += ["VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "UV_NO_DEV", "UV_FROZEN", "UV_LOCKED"]
FOREIGN += ["PYTHONHOME", "PYTHONPATH"]
FOREIGN += ["METRICS_PORT", "SENTRY_DSN", "OTEL_EXPORTER_OTLP_ENDPOINT"]
# From a repository whose own git hook generates this project.
FOREIGN += ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"]
FOREIGN += ["GIT_PREFIX"]


class Step(NamedTuple):
    """One command. `unless`: a path that shows it is done. `later`: what to run instead later."""

    name: str
    command: List[str]
    unless: str = ""
    later: Optional[List[List[str]]] = None

    def commands(self):
        return [self.command] if self.later is None else self.later


def main():
    started = time.monotonic()
    keep_what_was_chosen()
    if is_compared():
        help_the_merge(os.environ.get("PWD", ""))
        return
    write_env()
    installing, committing = install_steps(), git_steps()
    if not ANSWERS["install"]:
        if run_steps(committing):
            say("Rendered. To install it:")
            say(later(installing))
    elif run_steps(installing + committing):
        say(f"All this took {time.monotonic() - started:.1f} s.")
        if "_commit" in ANSWERS:
            say("cruft now writes .cruft.json: commit it, since later versions need it.")
        say(f"Start it: cd {quoted(os.getcwd())} && ./init.sh")


def is_compared():
    """Whether this is for `cruft update` or `cruft diff`, which only compare and discard it."""
    if "_commit" not in ANSWERS:
        return False
    try:
        words = Path(f"/proc/{COOKIECUTTER}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        words = shutil.which("ps") and run(["ps", "-ww", "-o", "args=", "-p", str(COOKIECUTTER)])
        words = words.stdout.split() if words else []
    commands = [word for word in words if word in ("create", "diff", "update")]
    return commands[:1] in (["diff"], ["update"])


def help_the_merge(project):
    """Give cruft what it needs to bring all changes to the project as one merge."""
    if os.path.exists(os.path.join(project, ".cruft.json")):
        keep_changes_of_removed_files(Path(project))
        remember_for_the_merge(project)


def keep_changes_of_removed_files(project):
    """Keep a file as NAME.ours if this version no longer has it but the project changed it.

    git cannot merge a change into a removal, and then cruft merges none of the other files either.
    To git, a copy of the old file is a rename, which takes the project's changes along. cruft runs
    this hook in its clone of the template, next to the old version.
    """
    old = Path(f"/proc/{COOKIECUTTER}/cwd").resolve().parent / "current_template"
    if not old.exists():
        return
    options = ["--no-index", "--name-status", "--diff-filter=D", "-z"]
    removed = run(["git", "diff", *options, str(old), "."]).stdout.split("\0")[1::2]
    for file in map(Path, removed):
        name = file.relative_to(old)
        changed = project / name
        if changed.is_file() and changed.read_bytes() != file.read_bytes():
            name.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file), f"{name}.ours")
            say(f"{name}: this version no longer has it; your changed file is kept as {name}.ours")


def remember_for_the_merge(project):
    """Give the updated project's git the files as the template made them.

    cruft applies its changes with `git apply --3way`, which can only merge a file whose original
    git has. A clone on another machine does not have it.
    """
    files = [str(path.resolve()) for path in Path().rglob("*") if path.is_file()]
    run(["git", "-C", project, "hash-object", "-w", "--no-filters", *files])


def keep_what_was_chosen():
    """Move the files of the chosen answers into place, unless the user already has one there."""
    for question, answers in CHOICES.items():
        for answer, files in answers.items():
            for choice, name in files.items():
                source, target = Path(".choices", choice), Path(name)
                if answer != ANSWERS[question]:
                    source.unlink()
                elif target.exists():
                    source.unlink()
                    say(f"{name}: kept as it was")
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source.replace(target)
    with contextlib.suppress(OSError):  # somebody's own folder of that name
        Path(".choices").rmdir()


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
    """The commands that lead from a rendered project to an upgraded database."""
    if shutil.which("uv"):
        # Relocatable: the scripts still work after the project is moved.
        venv = ["uv", "venv", "--quiet", "--clear", "--relocatable"]
        sync = ["uv", "sync", "--quiet", "--compile-bytecode"]
        # Later from scratch: an interrupted installation leaves half a package that looks whole.
        steps = [
            Step("environment", venv, unless=PYTHON, later=[]),
            Step("dependencies", sync, later=[venv, sync]),
        ]
    else:
        pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        venv = [find_python(), "-m", "venv", "--clear", ".venv"]
        new_pip, project = [*pip, "pip>=25.1"], [*pip, "--group", "dev", "."]
        steps = [
            Step("environment", venv, later=[]),
            Step("pip that knows dependency groups", new_pip, later=[]),
            Step("dependencies", project, later=[venv, new_pip, project]),
        ]
    initial = [*FLASK, "migrate", "-m", "initial", "--rev-id", "0001"]
    return [
        *steps,
        Step("flask db init", [*FLASK, "init"], unless="migrations"),
        Step("first migration", initial, unless="migrations/versions/0001_initial.py"),
        Step("flask db upgrade", [*FLASK, "upgrade"]),
    ]


def git_steps():
    """The commands that make the first commit; none inside somebody's repository."""
    template = f"cookiecutter-flask-postgres {ANSWERS['_version']}"
    commit = ["commit", "--quiet", "-m", f"Generate the project from {template}"]
    if shutil.which("git"):
        inside = run(["git", "rev-parse", "--is-inside-work-tree"])
        if inside.returncode == 0 or "dubious ownership" in inside.stdout:
            say("git: skipped, this folder is already inside a repository")
            return []
        knows_me = run(["git", "var", "GIT_COMMITTER_IDENT"]).returncode == 0
    else:
        knows_me = False
    # git does not accept a name without a letter or digit.
    name = ANSWERS["author_name"] if re.search(r"\w", ANSWERS["author_name"]) else "The team"
    me = ["-c", f"user.name={' '.join(name.split())}", "-c", "user.email=you@example.com"]
    later_commit = [["git", *([] if knows_me else me), *commit]]
    return [
        Step("git init", ["git", "init", "--quiet"]),
        Step("git add", ["git", "add", "--all"]),
        # git creates this file with the first commit.
        Step("first commit", ["git", *commit], unless=".git/logs/HEAD", later=later_commit),
    ]


def run_steps(steps):
    """Run the commands; if one fails, say why and print the command that does the rest."""
    for number, step in enumerate(steps):
        if step.unless and Path(step.unless).exists():
            continue
        started = time.monotonic()
        say(f"{step.name}: ", end="")
        reason = failure_of(step.command)
        if reason:
            say(f"not done. {reason}")
            say_later(steps[number:])
            return False
        say(f"done ({time.monotonic() - started:.1f} s)")
    return True


def failure_of(command):
    """The reason in one line, or nothing if the command succeeded."""
    try:
        result = run(command)
    except FileNotFoundError:
        return f"{command[0]} was not found."
    if result.returncode == 0:
        return ""
    if interrupted():
        return "Interrupted."
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)[\w.]*(error|fatal|failed)\b", line)]
    return " ".join(errors[-1:] or lines[-3:] or ["It printed nothing."])[:500]


def run(command):
    """Run a command; if this hook is interrupted, end the command and everything it started."""
    if interrupted():
        return subprocess.CompletedProcess(command, 1, "")
    process = subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # POSIX only, for `end`
    )
    told = started = time.monotonic()
    while True:
        try:
            output, _ = process.communicate(timeout=0.2)
            return subprocess.CompletedProcess(command, process.returncode, output)
        except subprocess.TimeoutExpired:
            if interrupted():
                end(process)
                return subprocess.CompletedProcess(command, 1, "")
            if time.monotonic() - told > 10:
                what = f"({shlex.join(command)}) " if told == started else ""
                told = time.monotonic()
                say(f"{what}{told - started:.0f} s ... ", end="")


def end(process):
    if WINDOWS:
        process.kill()
    for how in [] if WINDOWS else [signal.SIGTERM, signal.SIGKILL]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


def environment():
    values = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return {**values, **cacheless()}


def cacheless():
    """What uv needs where it cannot write its cache."""
    told = {"UV_CACHE_DIR", "XDG_CACHE_HOME"} & set(os.environ)
    writable = os.access(os.path.expanduser("~"), os.W_OK)
    return {} if told or writable else {"UV_NO_CACHE": "1"}


def say_later(steps):
    say("The project stays. This command does the rest later:")
    say(later(steps))


def later(steps):
    """A command line that runs these steps from anywhere, and can be run again."""
    if WINDOWS:
        steps = [step for step in steps if not (step.unless and Path(step.unless).exists())]
        commands = [command for step in steps for command in step.commands()]
        lines = [subprocess.list2cmdline(command) for command in [["cd", os.getcwd()], *commands]]
        return "\n".join(f"  {line}" for line in lines)
    words = [shlex.join(["cd", os.getcwd()]), "unset " + " ".join(FOREIGN)]
    words += [f"export {name}={value}" for name, value in cacheless().items()]
    for step in steps:
        for command in map(shlex.join, step.commands()):
            words.append(f"( [ -e {step.unless} ] || {command} )" if step.unless else command)
    return f"  ({' && '.join(words)})"


def quoted(path):
    return subprocess.list2cmdline([path]) if WINDOWS else shlex.quote(path)


def find_python():
    """This Python if it is new enough for the project, otherwise the newest on the PATH."""
    if sys.version_info >= (3, 11):
        return sys.executable
    names = ["python3.14", "python3.13", "python3.12", "python3.11"]
    return next(filter(shutil.which, names), "python3.11")


def say(line, end="\n"):
    try:
        print(line, end=end, flush=True)
    except OSError:  # nobody is reading, or the disk is full
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open to the end


def interrupted():
    """Whether to stop: a signal arrived here, or one has ended Cookiecutter."""
    return bool(RECEIVED) or os.getppid() != COOKIECUTTER


for standard in range(3):  # the next file would take the place of a closed one
    try:
        os.fstat(standard)
    except OSError:
        os.open(os.devnull, os.O_RDWR)
sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open to the end
# People paste what is printed: paths and names must be exact, whatever the locale.
sys.stdout.reconfigure(
    encoding=sys.stdout.encoding if WINDOWS else "utf-8",
    errors="backslashreplace" if WINDOWS else "surrogateescape",
)

try:
    main()
except Exception as error:  # noqa: BLE001 - if the hook fails, the project is lost
    say(f"The project is here, but not finished: {error!r}")
