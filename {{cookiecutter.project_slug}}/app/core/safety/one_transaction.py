"""A dry run is one transaction of the server, where an upgrade has one per revision.

This does what the ends of those would have done.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Cursor, errors
from psycopg.pq import TransactionStatus

from app.core.safety import concurrently
from app.core.sql import NAME

DEFERRABLE = (
    "SELECT string_agg(quote_ident(conname), ', '),"
    " string_agg(quote_ident(conname), ', ') FILTER (WHERE condeferred)"
    " FROM pg_constraint WHERE condeferrable AND connamespace = to_regnamespace(%s)"
)
ADD_VALUE = re.compile(
    r"\s*alter\s+type\b.*\badd\s+value\s+(?:if\s+not\s+exists\s+)?'((?:[^']|'')*)'",
    re.IGNORECASE | re.DOTALL,
)
DROPPED_AT_COMMIT = re.compile(
    rf"\s*create\s+temp(?:orary)?\s+table\s+(?:if\s+not\s+exists\s+)?{NAME}.*\bon\s+commit\s+drop",
    re.IGNORECASE | re.DOTALL,
)


class OneTransaction:
    """The transactions of the revisions, inside the one of the server."""

    def __init__(self, server: Cursor[Any], schema: str) -> None:
        self.server = server
        self.schema = schema
        # True in an autocommit_block(): each statement is a transaction.
        self.autocommit = False
        self._temporary: set[str] = set()
        # Values of enums that this transaction, or one before it, added.
        self._new_values: set[str] = set()
        self._old_values: set[str] = set()

    @property
    def is_lost(self) -> bool:
        """True after a statement that failed, in a transaction."""
        status = self.server.connection.info.transaction_status
        return bool(status == TransactionStatus.INERROR)

    def prepare(self, commands: list[str]) -> None:
        """Remember what the end of the transaction has to know of these commands."""
        self._new_values |= {found[1] for each in commands if (found := ADD_VALUE.match(each))}
        temporary = (DROPPED_AT_COMMIT.match(each) for each in commands)
        self._temporary |= {found[2] or found[1] for found in temporary if found}
        if self.autocommit:
            concurrently.refuse_outside_of_a_transaction(commands)

    def end(self) -> None:
        """Do what the server does at COMMIT: check constraints that wait, drop what goes then."""
        self._old_values |= self._new_values
        self._new_values.clear()
        row = self.server.execute(DEFERRABLE, [self.schema]).fetchone()
        deferrable, deferred = row or ("", "")
        if deferrable:
            self.server.execute(f"SET CONSTRAINTS {deferrable} IMMEDIATE")
        if deferred:
            self.server.execute(f"SET CONSTRAINTS {deferred} DEFERRED")
        while self._temporary:
            self.server.execute(f"DROP TABLE IF EXISTS pg_temp.{self._temporary.pop()}")

    @contextmanager
    def statement(self) -> Iterator[None]:
        """Outside of a transaction a statement that fails takes nothing else along.

        Nor does one that uses a value of an enum which an earlier revision added: to the server
        all of a dry run is one transaction, and too early for that.
        """
        if not self.autocommit and not self._old_values:
            yield
            return
        self.server.execute("SAVEPOINT one_statement")
        try:
            yield
        except errors.UnsafeNewEnumValueUsage as error:
            self.server.execute("ROLLBACK TO SAVEPOINT one_statement")
            if not any(f'"{value}"' in str(error) for value in self._old_values - self._new_values):
                raise
        except errors.Error:
            self.server.execute("ROLLBACK TO SAVEPOINT one_statement")
            raise
        finally:
            self.server.execute("RELEASE SAVEPOINT one_statement")
