"""Readers and writers that work on all tables, as the service would while it is migrated.

They name the columns that the release before names. Each statement is one transaction in one round
trip, and what it writes is rolled back: so it holds its locks for an instant, and data stay as
they are.
"""

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import psycopg
from psycopg import sql

from app.core.rehearsal.scratch import CannotRehearse
from app.core.rehearsal.tables import Table

NAME = "rehearsal load"
# What a statement cannot help: it waited too long, or its server or its table goes away.
PASSING = ("08", "55", "57", "XX")
LAP_SECONDS = 60
# The migration, its lock, the watch and the models of a release connect besides.
OTHERS = 6
FREE = """
    SELECT current_setting('max_connections')::int - count(*)
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int
    FROM pg_stat_activity WHERE backend_type = 'client backend'
"""


@dataclass
class Statement:
    """One thing that the service does to a table."""

    table: Table
    kind: str
    keys: list[tuple[str, ...]]
    is_used: bool = True
    last_started: float = 0

    def text(self) -> sql.Composed:
        """The statement for one of the rows."""
        key = random.choice(self.keys) if self.keys else None
        return getattr(self.table, self.kind)(key)  # type: ignore[no-any-return]


@dataclass
class Failure:
    """A statement that the migration has broken."""

    table: Table
    kind: str
    words: str


class Wanted(Protocol):
    """How much load: so many readers and writers, each sending so many statements a second."""

    readers: int
    writers: int
    rate: int


def check_room(connection: psycopg.Connection, wanted: Wanted) -> None:
    """Refuse a load that the server has no connections for: no revision is to blame for it."""
    row = connection.execute(FREE).fetchone()
    room = max(0, (int(row[0]) if row else 0) - OTHERS)
    count = wanted.readers + wanted.writers
    if count <= room:
        return
    readers = wanted.readers * room // count
    raise CannotRehearse(
        f"The server has room for {room} connections of the load, not for {count}: use --readers "
        f"{readers} --writers {min(room - readers, wanted.writers)}, or raise its max_connections."
    )


@dataclass
class Load:
    """All readers and writers."""

    conninfo: str
    wanted: Wanted
    tables: list[Table]
    failures: list[Failure] = field(default_factory=list)
    slowest: float = 0
    # What the load cannot do to begin with, and why.
    left_out: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._settling = True
        self._lock = threading.Lock()
        self.workers: list[Worker] = []
        self.statements: list[Statement] = []

    def start(self) -> None:
        """Begin, and let each statement show that it works before anything is migrated."""
        with self.connect() as connection:
            for table in self.tables:
                keys = table.sample(connection)
                kinds = ["select"] * bool(self.wanted.readers) + ["update", "insert"] * bool(
                    self.wanted.writers
                )
                self.statements += [Statement(table, kind, keys) for kind in kinds]
        reading = [each for each in self.statements if each.kind == "select"]
        writing = [each for each in self.statements if each.kind != "select"]
        for number in range(self.wanted.readers + self.wanted.writers):
            mine = reading if number < self.wanted.readers else writing
            if mine:
                random.shuffle(mine)
                self.workers.append(Worker(self, [*mine]))
        for each in self.workers:
            each.start()
        self.lap()
        self.slowest = 0
        self.lap()
        time.sleep(0.5 if self.workers else 0)
        self._settling = False

    def lap(self) -> None:
        """Wait until each statement has run once more."""
        begun = time.monotonic()
        while time.monotonic() < begun + LAP_SECONDS and self.workers:
            if all(it.last_started > begun for it in self.statements if it.is_used):
                return
            time.sleep(0.01)

    def stop(self) -> None:
        """End all of it; whoever waits for a lock is called back."""
        self._stop.set()
        for each in self.workers:
            each.cancel()
        for each in self.workers:
            each.join(5)

    def connect(self) -> psycopg.Connection:
        """A connection of the service."""
        return psycopg.connect(
            self.conninfo,
            autocommit=True,
            application_name=NAME,
            cursor_factory=psycopg.ClientCursor,
        )

    def pids(self) -> dict[int, str]:
        """The server's processes of the load, and the table that each is working on."""
        return {each.pid: each.table for each in self.workers if each.pid}

    @property
    def per_second(self) -> float:
        """How many statements are sent in all."""
        return self.wanted.rate * len(self.workers)

    def is_over(self, seconds: float) -> bool:
        """Wait so long; True if the load is to end."""
        return self._stop.wait(seconds)

    def failed(self, statement: Statement, error: psycopg.Error) -> None:
        """A statement ended with an error that is its own: leave it out from now on."""
        with self._lock:
            if not statement.is_used:
                return
            statement.is_used = False
            words = f"{type(error).__name__}: {error.diag.message_primary or error}"
            failure = Failure(statement.table, statement.kind, words)
            (self.left_out if self._settling else self.failures).append(failure)


class Worker(threading.Thread):
    """One reader or writer with its own connection."""

    def __init__(self, load: Load, statements: list[Statement]) -> None:
        super().__init__(daemon=True)
        self.load = load
        self.statements = deque(statements)
        self.pid = 0
        self.table = ""
        self.connection: psycopg.Connection | None = None

    def run(self) -> None:
        """Send one statement after the other until the load ends."""
        pause = 1 / self.load.wanted.rate
        while not self.load.is_over(random.random() * pause):
            try:
                with self.load.connect() as self.connection:
                    self.pid = self.connection.info.backend_pid
                    self._work(self.connection, pause)
            except psycopg.Error:
                self.pid = 0  # the connection is gone: get another one

    def cancel(self) -> None:
        """Call back the statement that is running."""
        if self.connection and not self.connection.closed:
            self.connection.cancel_safe(timeout=5)

    def _work(self, connection: psycopg.Connection, pause: float) -> None:
        taken = 0.0
        while not self.load.is_over(max(0, pause - taken)) and not connection.closed:
            begun = time.monotonic()
            if statement := self._next():
                self.table = statement.table.name
                self._execute(connection, statement)
                statement.last_started = begun
            taken = time.monotonic() - begun
            self.load.slowest = max(self.load.slowest, taken)

    def _next(self) -> Statement | None:
        """The next one in turn that still works."""
        self.statements.rotate(-1)
        return next((each for each in self.statements if each.is_used), None)

    def _execute(self, connection: psycopg.Connection, statement: Statement) -> None:
        try:
            connection.execute(statement.text())
        except psycopg.Error as error:
            if not (error.sqlstate or "08").startswith(PASSING):
                self.load.failed(statement, error)
            if not connection.closed:
                connection.rollback()
