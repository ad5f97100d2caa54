"""The service keeps only connections that are of use: dead ones are found, and dropped."""

import select
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import InvalidatePoolError

# After the server had its time to end a statement, this side waits no longer.
SERVER_IS_LATE_SECONDS = 3


def init_engine(engine: Engine, connect: Callable[..., "ServiceConnection"]) -> None:
    """Make an engine use what `connect` returns, and look at it before each use."""

    @event.listens_for(engine, "do_connect")
    def connect_and_watch(_d: Any, _r: Any, words: Any, options: Any) -> ServiceConnection:
        connection = connect(*words, **options)
        connection.news.register(connection.fileno(), select.POLLIN)
        return connection

    @event.listens_for(engine, "checkout")
    def check(connection: ServiceConnection, _record: Any, _proxy: Any) -> None:
        """Instead of a ping: a server that closed the connection has sent that."""
        if connection.news.poll(0) and not _answers(engine, connection):
            raise InvalidatePoolError

    event.listen(engine, "handle_error", _leave_a_read_only_server)


def read_in_autocommit(engine: Engine, reading: Engine) -> None:
    """What runs on `reading`, a copy of `engine`, needs no transaction: psycopg sends no BEGIN."""

    @event.listens_for(engine, "checkout")
    def expect_a_transaction(connection: ServiceConnection, *_: Any) -> None:
        connection.choose_autocommit(False)

    @event.listens_for(reading, "begin")
    def expect_none(connection: Connection) -> None:
        connection.connection.driver_connection.choose_autocommit(True)  # type: ignore[union-attr]


class ServiceCursor(psycopg.Cursor[Any]):
    """Prepares statements only where a plan that became invalid does no harm.

    A migration that changes the type of a column invalidates the plans of the old replicas.
    """

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """Execute a statement; in a transaction, which could not go on, none is prepared."""
        if not self.connection.autocommit:
            return super().execute(query, params, **{"prepare": False} | options)
        try:
            return super().execute(query, params, **options)
        except errors.FeatureNotSupported:  # cached plan must not change result type
            self.connection.forget_plans()  # type: ignore[attr-defined]
            return super().execute(query, params, **options)


class ServiceConnection(psycopg.Connection[Any]):
    """Gives up a server that is frozen: it keeps the connection, and no timeout of its own."""

    # Seconds that an answer may take.
    limit: float | None = None

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.news = select.poll()
        self.cursor_factory = ServiceCursor

    def choose_autocommit(self, value: bool) -> None:
        """Set it, if it is not what it should be: to ask psycopg costs as much as to set it."""
        if self.autocommit != value:
            self.autocommit = value

    def rollback(self) -> None:
        """End a transaction, if there is one; to ask psycopg costs as much as a small query."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            super().rollback()

    def forget_plans(self) -> None:
        """Let psycopg prepare anew: it does after a rollback."""
        psycopg.Cursor(self).execute("BEGIN", prepare=False)
        super().rollback()

    def wait(self, gen: Any, *words: Any, **options: Any) -> Any:
        """Wait for the server as psycopg does, but not for ever."""
        try:
            return super().wait(gen, *words, **{"timeout": self.limit} | options)
        except errors._WaitTimeout as error:
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"the server has not answered for {self.limit:g} s"
            ) from error


def _answers(engine: Engine, connection: Any) -> bool:
    try:
        return engine.dialect.do_ping(connection)
    except psycopg.Error:
        return False


def _leave_a_read_only_server(context: ExceptionContext) -> None:
    """After a failover: connect again, to the server that takes writes by now."""
    if isinstance(context.original_exception, errors.ReadOnlySqlTransaction):
        context.is_disconnect = True
