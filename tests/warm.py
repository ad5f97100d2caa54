"""Start a project's commands in a process that has imported their packages already.

`python -m flask …` spends a second of CPU on importing Flask, SQLAlchemy and Alembic, and the
suite runs it many hundred times. `Starter` keeps a process that has imported the packages, nothing
of a project, and forks it for each command: the same interpreter, packages, arguments, folder and
environment, and the project's own code is imported anew. init.sh, hooks, gunicorn and what a test
starts by itself begin in the ordinary way.
"""

import contextlib
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Not prometheus_client: it reads the environment when it is imported.
PACKAGES = [
    "alembic.autogenerate",
    "alembic.command",
    "apiflask",
    "flask.cli",
    "flask_migrate",
    "flask_sqlalchemy",
    "psycopg",
    "pydantic_settings",
    "sqlalchemy.dialects.postgresql.psycopg",
    "structlog",
]
# Keeps the embedded server of a project up until stdin ends.
HOLDER = "import sys; from app.core import embedded; embedded.start(); print(); sys.stdout.flush()"
HOLDER += "; sys.stdin.read()"


class Starter:
    """Runs `python WORDS` for projects whose environment has the same packages."""

    def __init__(self, python: Path) -> None:
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [str(python), "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )

    def run(self, words: list[str], cwd: Path, env: dict[str, str], timeout: int):
        """Run it to its end; stdout and stderr are one stream."""
        with tempfile.TemporaryFile() as output:
            status = self._order(words, cwd, env, os.devnull, path_of(output.fileno()), timeout)
            text = output.read().decode()
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(words, timeout, text)
        return subprocess.CompletedProcess(words, status, text)

    @contextlib.contextmanager
    def holding_the_server(self, cwd: Path, env: dict[str, str]) -> Iterator[None]:
        """Keep the project's embedded server up, so that not each command starts and stops it."""
        theirs, ours = os.pipe()
        answer, said = os.pipe()
        self._order(["-c", HOLDER], cwd, env, path_of(theirs), path_of(said), 0)
        for fd in (theirs, said):
            os.close(fd)
        try:
            os.read(answer, 1)
            yield
        finally:
            os.close(ours)
            # Nothing comes any more once the holder, and with it the server, has ended.
            while os.read(answer, 4096):
                pass
            os.close(answer)

    def _order(self, *order: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            print(json.dumps(order, default=str), file=self.process.stdin, flush=True)
            return int(self.process.stdout.readline())


def path_of(fd: int) -> str:
    """What a descriptor of this process is to others."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def become(cwd: str, env: dict[str, str], given: int, output: int, timeout: int) -> None:
    """Make the fork what a new process would be."""
    signal.alarm(timeout)
    for fd, source in enumerate((given, output, output)):
        os.dup2(source, fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.executable = os.path.join(cwd, ".venv", "bin", "python")
    # A test may write a file twice in a second, with the same size: its bytecode would be stale.
    sys.dont_write_bytecode = True


def execute(words: list[str], cwd: str) -> None:
    """What `python WORDS` does after its start."""
    how, what, *arguments = words
    sys.argv = [how, *arguments]
    sys.path.insert(0, cwd if how == "-m" else "")
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    for package in PACKAGES:
        __import__(package)
    # What is there is never collected: at its end a fork would go through all of it.
    gc.freeze()
    for line in sys.stdin:
        words, cwd, env, given, output, timeout = json.loads(line)
        streams = os.open(given, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_APPEND)
        if not (child := os.fork()):
            become(cwd, env, *streams, timeout)
            os.closerange(3, max(streams) + 1)
            execute(words, cwd)
            break
        for stream in streams:
            os.close(stream)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if timeout else 0
        print(status, flush=True)
