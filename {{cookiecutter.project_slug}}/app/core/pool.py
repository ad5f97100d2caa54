"""The service keeps only connections that are of use: dead ones are found, and dropped."""

import select
from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy import Engine, ExceptionContext, event
from sqlalchemy.exc import InvalidatePoolError

# After the server had its time to end a statement, this side waits no longer.
SERVER_IS_LATE_SECONDS = 3


def watch(engine: Engine, statement_seconds: float) -> None:
    """Drop connections that are of no use any more; `statement_seconds` 0 means no limit."""
    event.listen(engine, "handle_error", _leave_a_read_only_server)

    @event.listens_for(engine, "checkout")
    def check(connection: psycopg.Connection, _record: Any, _proxy: Any) -> None:
        """Instead of a ping: a server that closed the connection has sent that."""
        if _has_sent_something(connection) and not _answers(engine, connection):
            raise InvalidatePoolError

    if statement_seconds:
        limit = statement_seconds + SERVER_IS_LATE_SECONDS

        @event.listens_for(engine, "do_connect")
        def connect(_d: Any, _r: Any, words: Any, options: Any) -> psycopg.Connection:
            connection = ImpatientConnection.connect(*words, **options)
            connection.limit = limit
            return connection


class ImpatientConnection(psycopg.Connection[Any]):
    """Gives up a server that is frozen: it keeps the connection, and no timeout of its own."""

    limit: float | None = None

    def wait(self, gen: Any, *words: Any, **options: Any) -> Any:
        """Wait for the server as psycopg does, but not for ever."""
        try:
            return super().wait(gen, *words, **{"timeout": self.limit} | options)
        except errors._WaitTimeout as error:
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"the server has not answered for {self.limit:g} s"
            ) from error


def _has_sent_something(connection: psycopg.Connection) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _answers(engine: Engine, connection: Any) -> bool:
    try:
        return engine.dialect.do_ping(connection)
    except psycopg.Error:
        return False


def _leave_a_read_only_server(context: ExceptionContext) -> None:
    """After a failover: connect again, to the server that takes writes by now."""
    if isinstance(context.original_exception, errors.ReadOnlySqlTransaction):
        context.is_disconnect = True
