"""Who waits for a migration, for which table and how long: asked of the server all the time."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg

from app.core.rehearsal.scratch import CannotRehearse

NAME = "rehearsal watch"
EVERY_SECONDS = 0.02
# A look takes an instant; on a machine that is very busy, a little more.
LOOK_SECONDS = 60
# What keeps readers out, and what keeps writers out.
STRONG = {
    "AccessExclusiveLock": "readers and writers",
    "ExclusiveLock": "writers",
    "ShareRowExclusiveLock": "writers",
    "ShareLock": "writers",
}
# The server's own clock says since when: a program that gets no turn makes no wait longer.
WAITS = """
    SELECT pid, relation, waitstart::text,
        extract(epoch FROM clock_timestamp() - waitstart)::float8, pg_blocking_pids(pid)
    FROM pg_locks WHERE NOT granted AND waitstart IS NOT NULL
"""
HELD = """
    SELECT l.relation, l.mode, extract(epoch FROM clock_timestamp())::float8
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.granted AND l.locktype = 'relation' AND l.mode = ANY (%s)
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND a.backend_type = 'client backend' AND NOT l.pid = ANY (%s)
"""


@dataclass
class Wait:
    """What happened to one table."""

    # The longest that a statement of the load waited, and how many of them waited.
    waited: float = 0
    statements: int = 0
    # The longest that a lock was held that keeps others out, whether somebody came or not.
    locked: float = 0
    keeps_out: str = ""

    @property
    def seconds(self) -> float:
        """How long somebody who came at the worst moment would have had to wait."""
        return max(self.waited, self.locked)


@dataclass
class Watch:
    """A thread that samples the locks of the scratch database."""

    conninfo: str
    # The processes of the load, and the table that each is working on.
    load: Callable[[], dict[int, str]]
    # The tables that somebody uses, by object id, which a rename does not change.
    names: dict[int, str]
    waits: dict[str, Wait] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._has_looked = threading.Event()
        self._fault = ""
        self._seen: set[tuple[int, str]] = set()
        self._since: dict[tuple[int, str], float] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join(5)

    def begin(self) -> None:
        """A revision begins."""
        self._look_once_more()
        with self._lock:
            self.waits = {}
            self._seen, self._since = set(), {}

    def end(self) -> dict[str, Wait]:
        """It has ended: who had to wait, by table. Raises `CannotRehearse` if nobody looked."""
        self._look_once_more()
        with self._lock:
            return self.waits

    def _look_once_more(self) -> None:
        self._has_looked.clear()
        if self._fault or not self._has_looked.wait(LOOK_SECONDS) or self._fault:
            fault = self._fault or "the server does not answer"
            raise CannotRehearse(
                f"The waits could not be measured: {fault}\nRun it again; if it stays so, see what "
                "ends connections to this server, and whether it has enough of them."
            )

    def _run(self) -> None:
        """Look until the end; who loses the connection gets another one, or has missed waits."""
        while not self._stop.is_set():
            try:
                connection = psycopg.connect(self.conninfo, autocommit=True, application_name=NAME)
            except psycopg.Error as error:
                self._fault = " ".join(str(error).split())
                self._has_looked.set()
                return
            with suppress(psycopg.OperationalError), connection:
                self._look(connection)

    def _look(self, connection: psycopg.Connection) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            load = self.load()
            waiting = connection.execute(WAITS).fetchall()
            own = [*load, connection.info.backend_pid]
            held = connection.execute(HELD, [[*STRONG], own]).fetchall()
            with self._lock:
                self._take_waits(waiting, load)
                self._take_held(held)
            self._has_looked.set()

    def _take_waits(self, waiting: list[tuple], load: dict[int, str]) -> None:  # type: ignore[type-arg]
        blockers = {pid: {*by} for pid, _, _, _, by in waiting}
        for pid, relation, since, seconds, _ in waiting:
            if pid in load and _everybody(pid, blockers) - load.keys():
                wait = self._of(self.names.get(relation) or load[pid])
                wait.waited = max(wait.waited, seconds)
                if (pid, since) not in self._seen:
                    self._seen.add((pid, since))
                    wait.statements += 1

    def _take_held(self, held: list[tuple]) -> None:  # type: ignore[type-arg]
        since = {}
        for relation, mode, now in held:
            if name := self.names.get(relation):
                place = relation, mode
                since[place] = self._since.get(place, now)
                wait, seconds = self._of(name), now - since[place]
                if seconds >= wait.locked:
                    wait.locked, wait.keeps_out = seconds, STRONG[mode]
        self._since = since

    def _of(self, table: str) -> Wait:
        return self.waits.setdefault(table, Wait())


def _everybody(pid: int, blockers: dict[int, set[int]]) -> set[int]:
    """All that it waits for, also by way of others."""
    found: set[int] = set()
    ahead = {pid}
    while ahead:
        ahead = {each for one in ahead for each in blockers.get(one, ())} - found
        found |= ahead
    return found
