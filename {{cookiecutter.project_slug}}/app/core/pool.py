"""The service keeps only connections that are of use: dead ones are found, and dropped."""

import select
from typing import Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import InvalidatePoolError

# After the server had its time to end a statement, this side waits no longer.
SERVER_IS_LATE_SECONDS = 3


def init_engine(engine: Engine, statement_seconds: float) -> None:
    """Make an engine use `ServiceConnection`; `statement_seconds` 0 means no limit."""

    @event.listens_for(engine, "do_connect")
    def connect(_d: Any, _r: Any, words: Any, options: Any) -> ServiceConnection:
        connection = ServiceConnection.connect(*words, **options)
        connection.limit = statement_seconds + SERVER_IS_LATE_SECONDS if statement_seconds else None
        connection.news.register(connection.fileno(), select.POLLIN)
        return connection

    @event.listens_for(engine, "checkout")
    def check(connection: ServiceConnection, _record: Any, _proxy: Any) -> None:
        """Instead of a ping: a server that closed the connection has sent that."""
        if connection.news.poll(0) and not _answers(engine, connection):
            raise InvalidatePoolError

    event.listen(engine, "handle_error", _leave_a_read_only_server)


def begin_only_to_write(engine: Engine) -> None:
    """Send BEGIN where something may be written; psycopg would send it before any statement."""
    engine.dialect.do_begin = lambda proxy: proxy.driver_connection.begin()  # type: ignore

    @event.listens_for(engine, "checkout")
    def leave_it_to_us(connection: ServiceConnection, *_: Any) -> None:
        if not connection.autocommit:  # it is new, or had another isolation level
            connection.autocommit = True

    @event.listens_for(engine, "begin")
    def decide(connection: Connection) -> None:
        options = connection.get_execution_options()
        without = options.get("only_reads") or options.get("isolation_level") == "AUTOCOMMIT"
        connection.connection.driver_connection.without_transaction = without  # type: ignore


class ServiceConnection(psycopg.Connection[Any]):
    """Gives up a server that is frozen, and begins a transaction only where one is needed.

    A frozen server keeps the connection, and no timeout of its own.
    """

    limit: float | None = None
    without_transaction = False

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.news = select.poll()

    def begin(self) -> None:
        """Begin a transaction, unless none is wanted, or psycopg does it itself."""
        if self.autocommit and not self.without_transaction:
            self.execute("BEGIN", prepare=False)

    def rollback(self) -> None:
        """End a transaction, if there is one; to ask psycopg costs as much as a small query."""
        if self.info.transaction_status != TransactionStatus.IDLE:
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
