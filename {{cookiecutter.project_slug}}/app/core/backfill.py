"""Fill a column of many rows from a migration, a batch at a time.

One UPDATE of a large table locks its rows for as long as it takes, and is lost as a whole when it
is stopped. Batches are transactions of their own: what is done stays done, and the next
`flask db upgrade` goes on with the rows that are left.
"""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import structlog
from alembic import op
from sqlalchemy import Connection, MetaData, Table, text
from sqlalchemy.exc import DBAPIError, NoSuchTableError

from app.core.database import quote
from app.core.database_errors import is_in_use
from app.core.waiting import at_most_every, pause_after

ATTEMPTS_PER_BATCH = 10
REPORT_EVERY_SECONDS = 10

log = structlog.get_logger("migrations")


def backfill(
    table: str,
    assignments: str,
    where: str,
    *,
    batch_size: int = 5_000,
    pause_seconds: float = 0.05,
) -> int:
    """UPDATE `table` SET `assignments` WHERE `where`, in batches; return how many rows changed.

    For the `upgrade()` of a revision of its own. `where` says which rows are left, for example
    `language IS NULL`: a row that was filled must no longer match it. The batches follow the
    primary key; the pause between them lets others in.
    """
    if batch_size < 1 or pause_seconds < 0:
        raise ValueError("batch_size must be at least 1, and pause_seconds at least 0")
    migration = op.get_context()
    if migration.as_sql:
        op.execute(_as_written(f"UPDATE {table} SET {assignments} WHERE {where}"))
        return 0
    with migration.autocommit_block():
        batches = _Batches(op.get_bind(), table, assignments, where, batch_size)
        batches.check()
        done, report = 0, _reporter(table, batches.count())
        for changed in batches:
            done += changed
            report(done)
            time.sleep(pause_seconds)
        return done


class _Batches:
    """Walks along the primary key, which may have several columns of any type that has an order."""

    def __init__(
        self, connection: Connection, table: str, assignments: str, where: str, size: int
    ) -> None:
        try:
            found = Table(table, MetaData(), autoload_with=connection)
        except NoSuchTableError:
            raise ValueError(f"backfill: there is no table {table}") from None
        if not found.primary_key:
            raise ValueError(f"backfill: {table} has no primary key for the batches to follow")
        self.connection = connection
        self.table = quote(table)
        self.assignments, self.where = _as_written(assignments), f"({_as_written(where)})"
        self.key = [quote(column.name) for column in found.primary_key]
        self.size = size

    def check(self) -> None:
        """Have the server look at the UPDATE before the first batch, also where no row is left."""
        self.connection.execute(
            text(f"EXPLAIN UPDATE {self.table} SET {self.assignments} WHERE {self.where}")
        )

    def count(self) -> int:
        """The rows that are left."""
        query = text(f"SELECT count(*) FROM {self.table} WHERE {self.where}")
        return int(self.connection.scalar(query) or 0)

    def __iter__(self) -> Iterator[int]:
        """Fill batch after batch; yields how many rows each changed."""
        names = ", ".join(self.key)
        descending = ", ".join(f"{name} DESC" for name in self.key)
        last: list[Any] = []
        while True:
            after = f"({names}) > ({_binds('last', last)})" if last else "true"
            known = _values("last", last)
            batch = (
                f"SELECT {names} FROM {self.table} WHERE {self.where} AND {after}"
                f" ORDER BY {names} LIMIT {self.size}"
            )
            end = self.connection.execute(
                text(f"SELECT {names} FROM ({batch}) AS batch ORDER BY {descending} LIMIT 1"), known
            ).first()
            if end is None:
                return
            yield self._fill(
                f"UPDATE {self.table} SET {self.assignments} WHERE {self.where} AND {after}"
                f" AND ({names}) <= ({_binds('end', [*end])})",
                known | _values("end", [*end]),
            )
            last = [*end]

    def _fill(self, statement: str, values: dict[str, Any]) -> int:
        for attempt in range(1, ATTEMPTS_PER_BATCH):
            try:
                return self.connection.execute(text(statement), values).rowcount
            except DBAPIError as error:
                if not is_in_use(error):
                    raise
                time.sleep(pause_after(attempt))
        return self.connection.execute(text(statement), values).rowcount


def _as_written(sql: str) -> str:
    """For text(): a colon in the words of the caller is a colon, and no parameter."""
    return sql.replace(":", r"\:")


def _binds(name: str, values: list[Any]) -> str:
    return ", ".join(f":{name}_{number}" for number in range(len(values)))


def _values(name: str, values: list[Any]) -> dict[str, Any]:
    return {f"{name}_{number}": value for number, value in enumerate(values)}


def _reporter(table: str, total: int) -> Callable[[int], None]:
    """On a terminal one line that counts up, elsewhere a log line now and then."""
    on_terminal = sys.stderr.isatty()
    now_and_then = at_most_every(REPORT_EVERY_SECONDS, log.info)

    def report(done: int) -> None:
        share = f"{done} of {total} rows ({100 * done // max(total, done, 1)} %)"
        if on_terminal:
            click.echo(f"\rbackfill of {table}: {share} ", nl=done >= total, err=True)
        elif done >= total:
            log.info(f"backfill of {table}: {share}")
        else:
            now_and_then(f"backfill of {table}: {share}")

    return report
