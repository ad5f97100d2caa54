"""Connections to a pooler in transaction mode, which gives each transaction another session.

Nothing that is set lasts, and what is set must not last: it would be somebody else's. So there is
no statement outside a transaction, and each one begins with what a session would have.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors, generators
from psycopg.pq import ExecStatus, TransactionStatus

from app.core.pool import ServiceConnection

BEGINS = re.compile(r"\s*(BEGIN|START\s+TRANSACTION)\b", re.IGNORECASE)
DIRECTLY = (
    "Behind a pooler each statement is in a transaction. Run this with the direct URL: "
    "app.core.database.direct_engine, or flask db shell."
)


class PooledCursor(psycopg.Cursor[Any]):
    """In AUTOCOMMIT each statement is a transaction of its own."""

    connection: "PooledConnection"

    def execute(self, query: Any, *words: Any, **options: Any) -> Any:
        """Execute a statement."""
        if self.connection.autocommit and BEGINS.match(str(query)):
            raise psycopg.ProgrammingError("Behind a pooler, begin with connection.transaction().")
        with self.connection.in_transaction():
            return super().execute(query, *words, **options)

    def executemany(self, *words: Any, **options: Any) -> None:
        """Execute a statement once for each set of values."""
        with self.connection.in_transaction():
            super().executemany(*words, **options)

    def stream(self, *words: Any, **options: Any) -> Iterator[Any]:
        """Execute a query, and yield its rows as they come."""
        with self.connection.in_transaction():
            yield from super().stream(*words, **options)

    @contextmanager
    def copy(self, *words: Any, **options: Any) -> Iterator[Any]:
        """COPY rows from or to the server."""
        with self.connection.in_transaction(), super().copy(*words, **options) as copy:
            yield copy


class PooledConnection(ServiceConnection):
    """Sends with BEGIN, as one message, what start-up options say elsewhere."""

    # `; SET LOCAL …`
    beginning: bytes = b""

    def __init__(self, *words: Any, **options: Any) -> None:
        """Nothing is prepared: the next transaction may be in another session."""
        super().__init__(*words, **options)
        self.cursor_factory = PooledCursor

    @contextmanager
    def in_transaction(self) -> Iterator[None]:
        """Begin a transaction if none is open; in AUTOCOMMIT it ends with the block."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            yield
        elif self.autocommit:
            try:
                with self.transaction():
                    yield
            except errors.ActiveSqlTransaction as error:
                raise errors.ActiveSqlTransaction(f"{error}. {DIRECTLY}") from error
        else:
            self.wait(self._start_query())
            yield

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """As psycopg's; in a pipeline, BEGIN and the settings could not be one message."""
        with self.in_transaction(), super().pipeline() as pipeline:
            yield pipeline

    def _exec_command(self, command: Any, *words: Any, **options: Any) -> Any:
        if not (isinstance(command, bytes) and command.startswith(b"BEGIN")):
            return (yield from super()._exec_command(command, *words, **options))
        self._check_connection_ok()
        self.pgconn.send_query(command + self.beginning)
        results = yield from generators.execute(self.pgconn)
        for result in results:
            if result.status != ExecStatus.COMMAND_OK:
                raise errors.error_from_result(result, encoding=self.info.encoding)
        return results[0]

    def _start_query(self) -> Any:
        if self.autocommit and self.pgconn.transaction_status == TransactionStatus.IDLE:
            # A cursor of a kind that is not ours: in which schema would it look?
            raise psycopg.ProgrammingError(f"This is no transaction. {DIRECTLY}")
        yield from super()._start_query()
