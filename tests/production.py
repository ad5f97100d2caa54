"""A service in production mode beside a real PostgreSQL that tests can hurt."""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import requests
from conftest import PATIENCE, Project, Server, wait_until

SECRET = "0123456789abcdef0123456789abcdef"

# Routes that no example needs, but that teams write.
ROUTES = r'''
import time

from apiflask import APIBlueprint
from sqlalchemy import select, text

from app.core.session import in_transaction
from app.models import Author, db

trouble = APIBlueprint("trouble", __name__, url_prefix="/trouble", cli_group="trouble")


@trouble.post("/sleep")
def sleep():
    db.session.execute(text("SELECT 1"))
    time.sleep(2)
    db.session.execute(text("SELECT 1"))
    return {}


@trouble.post("/long")
def long():
    db.session.execute(text("SELECT pg_sleep(30)"))
    return {}


@trouble.get("/add")
def add():
    db.session.add(Author(name="by GET"))
    db.session.commit()
    return {}


@trouble.get("/update")
def update():
    db.session.execute(text("/* raw */ UPDATE authors SET born = 1"))
    db.session.commit()
    return {}


@trouble.get("/lock")
def lock():
    db.session.get(Author, 1, with_for_update=True)
    return {}


@trouble.get("/cte")
def cte():
    statement = "WITH u AS (UPDATE authors AS a SET born = 2 RETURNING 1) SELECT * FROM u"
    return {"n": len(db.session.execute(text(statement)).all())}


@trouble.get("/stream")
def stream():
    rows = db.session.scalars(select(Author).execution_options(yield_per=2))
    return {"n": len(rows.all())}


@trouble.get("/words")
def words():
    statement = "-- all of them\nSELECT 'please delete from list; for update' AS \"update\""
    return {"words": db.session.scalar(text(statement))}


@trouble.get("/callback")
@in_transaction
def callback():
    db.session.add(Author(name="by callback"))
    db.session.commit()
    return {}


@trouble.post("/transactions")
def transactions():
    """Each of these is, or is not, a transaction of its own."""
    insert = "INSERT INTO authors (name) VALUES ('{}')"
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(insert.format("stays: autocommit")))
    with db.engine.connect() as connection:
        connection.execute(text(insert.format("goes: not committed")))
    with db.engine.begin() as connection:
        connection.execute(text(insert.format("stays: begin")))
    serializable = {"isolation_level": "SERIALIZABLE"}
    with db.engine.connect().execution_options(**serializable) as connection:
        level = connection.scalar(text("SHOW transaction_isolation"))
        connection.execute(text(insert.format("goes: serializable")))
        connection.rollback()
        connection.execute(text(insert.format("stays: serializable")))
        connection.commit()
    db.session.execute(text(insert.format("goes: rolled back")))
    db.session.rollback()
    db.session.add(Author(name="stays: session"))
    with db.session.begin_nested() as savepoint:
        db.session.add(Author(name="goes: savepoint"))
        db.session.flush()
        savepoint.rollback()
    db.session.commit()
    db.session.add(Author(name="goes: at the end"))
    db.session.flush()
    return {"level": level}


@trouble.post("/row/<kind>")
def row(kind):
    """What the server says about these shows the whole row."""
    table = "CREATE TEMP TABLE t (a int NOT NULL CHECK (a > 0), hash text) ON COMMIT DROP"
    db.session.execute(text(table))
    value = {"null": "NULL", "check": "-1"}[kind]
    db.session.execute(text(f"INSERT INTO t VALUES ({value}, 'a password hash')"))
    return {}


@trouble.cli.command("limit")
def limit():
    print(db.session.scalar(text("SHOW statement_timeout")))


@trouble.post("/mistake")
def mistake():
    personal = int("4711" + "47")
    db.session.execute(text("SELECT 1 / (:value - :value)"), {"value": personal})
    return {}
'''


@dataclass
class Database:
    """A database of a running server."""

    host: str
    name: str = "postgres"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/{self.name}?host={self.host}"

    def sql(self, *statements: str) -> list[tuple]:
        """Run SQL as a superuser; the rows of the last statement."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                result = connection.execute(statement)
            return result.fetchall() if result.description else []

    @contextlib.contextmanager
    def holding(self, statement: str) -> Iterator[None]:
        """Somebody's transaction that stays open."""
        with psycopg.connect(self.url) as connection:
            connection.execute(statement)
            yield
            connection.rollback()


@contextlib.contextmanager
def running(project: Project) -> Iterator[Database]:
    """The project's embedded server, kept running."""
    with project.holding("SELECT 1"):
        where = "from app.core import embedded; print(embedded.url().query['host'])"
        yield Database(project.run(project.python, "-c", where).stdout.strip())


def processes(project: Project) -> list[int]:
    """All processes of the project's server."""
    first = project.postgres_pid()
    assert first is not None
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return [first, *map(int, children)]


@contextlib.contextmanager
def frozen(project: Project) -> Iterator[None]:
    """The server keeps all connections and answers none."""
    stopped = processes(project)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def producing(
    project: Project, url: str, *, until: str = "/readyz", **settings: str
) -> Iterator[Server]:
    """The service in production mode, with one worker unless said otherwise."""
    settings = {
        "APP_ENV": "production",
        "SECRET_KEY": SECRET,
        "DATABASE_URL": url,
        "WEB_CONCURRENCY": "1",
        "DRAIN_SECONDS": "0",
        **settings,
    }
    with project.serving(until=until, **settings) as server:
        yield server


@dataclass
class Relay:
    """Stands between service and server, and cuts a connection where a test says so."""

    database: Database
    port: int = 0
    # Called with what a client sends: "pass", "cut" (it is not delivered) or "deliver and cut".
    judge: Callable[[bytes], str] = lambda data: "pass"
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def __enter__(self) -> "Relay":
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{self.database.name}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(f"{self.database.host}/.s.PGSQL.5432")
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    verdict = self.judge(data) if ready is client else "pass"
                    if verdict == "cut":
                        return
                    (server if ready is client else client).sendall(data)
                    if verdict == "deliver and cut":
                        server.recv(65536)
                        return


class Load:
    """Clients that ask again and again until the block ends, and what they got."""

    def __init__(self, clients: int, ask: Callable[[int], object]) -> None:
        self.ask, self.is_over = ask, threading.Event()
        self.results: Counter[str] = Counter()
        self.longest = 0.0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join(PATIENCE)

    def until(self, number: int) -> None:
        """Wait until so many more results are there."""
        wanted = self.results.total() + number
        wait_until(lambda: self.results.total() >= wanted, f"{number} requests")

    def _run(self, number: int) -> None:
        while not self.is_over.is_set():
            started = time.monotonic()
            try:
                result = str(self.ask(number))
            except (OSError, requests.RequestException) as error:
                result = repr(error)
            with self.lock:
                self.results[result] += 1
                self.longest = max(self.longest, time.monotonic() - started)
