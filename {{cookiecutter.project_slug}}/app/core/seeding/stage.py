"""`Stage`: the rows of one seed in a temporary table, in the database's own types.

There one statement compares or writes all of them, and COPY brings 100,000 in a moment.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import (
    Column,
    ColumnElement,
    Date,
    DateTime,
    ForeignKeyConstraint,
    FromClause,
    Table,
    and_,
    exists,
    false,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.core.database_errors import reason
from app.core.seeding.seed import PROGRESS_EVERY, Seed, SeedError
from app.core.seeding.values import Field, Values, no_row

# Python's dates, in a form that PostgreSQL compares with each of its own types of dates.
FIRST_DAY, LAST_DAY = text("'0001-01-01'"), text("'9999-12-31'")
# Columns of the temporary table besides the seed's own.
ROW, READY = "_row", "_ready"


class Stage:
    """The rows of `seed` in the temporary table `table`.

    `ready` tells the rows that can be written. `waiting` is None when that is all of them and all
    that they refer to is there; else it is the error to raise if no other seed can bring it.
    """

    def __init__(self, session: Session, seed: Seed, number: int) -> None:
        """Create the table; `number` tells it from those of other seeds."""
        seed.check()
        self.session = session
        self.seed = seed
        self.is_loaded = False
        self.waiting: SeedError | None = None
        self._values = Values(session, seed)
        self._null_in_key: set[str] = set()
        columns = [each.column.label(each.column.key) for each in self._values.fields]
        rows = select(literal_column("0").label(ROW), *columns, true().label(READY)).where(false())
        create = rows.into(f"seeds_{number}", temporary=True)
        session.execute(create)
        self.table = create.table
        self.row = self.table.c[ROW]
        self.ready = self.table.c[READY]

    @property
    def names(self) -> list[str]:
        """The columns that a row is added with."""
        return [each.column.key for each in self._values.fields]

    @property
    def names_to_restore(self) -> list[str]:
        """The columns that are brought back to what the file says."""
        own = (each for each in self._values.fields if not each.in_key and each.in_rows)
        return [each.column.key for each in own]

    def same_key(self, rows: FromClause) -> ColumnElement[bool]:
        """The condition that a row of `rows` has the key of a staged row."""
        return and_(*(self._same(column, rows) for column in self.seed.key_columns))

    def load(self) -> None:
        """Refill the table with what the subqueries find now."""
        self._values.load()
        rows = self._values.rows()
        self.is_loaded = True
        self.waiting = self._values.waiting
        self._note_null_in_key(rows)
        self.session.execute(text(f"TRUNCATE {self.table.name}"))
        self._copy(rows)
        self._check_keys()
        self._check_dates()
        for foreign_key in self._staged_foreign_keys(deferrable=False):
            self._hold_back(foreign_key)

    def copy_straight(self) -> int | None:
        """Copy the rows into the table itself, which is empty; None if that cannot be done.

        Why it cannot is found out on the way over the stage.
        """
        table = self.seed.table
        left_out = any(each.default and each.key not in self.names for each in table.c)
        deferrable = any(each.deferrable for each in table.foreign_key_constraints)
        self._values.load()
        if self._values.waiting or left_out or deferrable:
            return None
        try:
            if self._values.has_key_twice():
                return None
            with self.session.begin_nested():
                self._send(table, self.names, zip(*self._values.columns, strict=True))
                for field, unknown in self._unknown_dates(table):
                    if self.session.scalar(select(exists().where(unknown))):
                        raise self.seed.wrong("Python has no such date", column=field.name)
        except (psycopg.Error, SQLAlchemyError, SeedError, TypeError, ValueError):
            return None
        return len(self.seed.rows)

    def check_deferred(self) -> None:
        """Look at the foreign keys that are checked at the end of the transaction only."""
        for foreign_key in self._staged_foreign_keys(deferrable=True):
            wrong = select(func.min(self.row)).where(self._leads_nowhere(foreign_key))
            if number := self.session.scalar(wrong):
                raise self._no_row(foreign_key, number)

    def drop(self) -> None:
        """Drop the table."""
        self.table.drop(self.session.connection())

    def _same(self, column: Column[Any], rows: FromClause) -> ColumnElement[bool]:
        ours, theirs = self.table.c[column.key], rows.c[column.key]
        if column.key not in self._null_in_key:
            return ours == theirs
        return or_(ours == theirs, and_(ours.is_(null()), theirs.is_(null())))

    def _note_null_in_key(self, rows: list[tuple[Any, ...]]) -> None:
        """Where a key has NULL, it is compared in a way that takes longer."""
        for position, field in enumerate(self._values.fields, 1):
            if field.in_key and any(row[position] is None for row in rows):
                self._null_in_key.add(field.column.key)

    def _copy(self, rows: list[tuple[Any, ...]]) -> None:
        """Send the rows; what the server cannot read as a value of its column is a `SeedError`."""
        try:
            self._send(self.table, [ROW, *self.names, READY], rows)
        except psycopg.OperationalError:
            raise
        except (psycopg.Error, TypeError, ValueError) as error:
            line, column = _place(error)
            if line is None:
                raise self._unsendable(rows, error) from None
            raise self.seed.wrong(reason(error), rows[line - 1][0], column) from None

    def _send(self, table: Table, names: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
        columns = sql.SQL(", ").join(sql.Identifier(table.c[name].name) for name in names)
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
        with self._driver().cursor() as cursor, cursor.copy(statement) as copy:
            for number, row in enumerate(rows, 1):
                copy.write_row(row)
                if number % PROGRESS_EVERY == 0:
                    self.seed.report(number, len(self.seed.rows), "rows read")

    def _driver(self) -> psycopg.Connection:
        connection = self.session.connection().connection.driver_connection
        assert isinstance(connection, psycopg.Connection)
        return connection

    def _unsendable(self, rows: list[tuple[Any, ...]], error: Exception) -> SeedError:
        """The error that names the first value which the driver cannot send."""
        driver = self._driver()
        for number, *values, _ in rows:
            for field, value in zip(self._values.fields, values, strict=True):
                try:
                    sql.Literal(value).as_bytes(driver)
                except Exception as cause:
                    return self.seed.wrong(reason(cause), number, field.name)
        return self.seed.wrong(reason(error))

    def _check_keys(self) -> None:
        key = [self.table.c[column.key] for column in self.seed.key_columns]
        first, second = func.min(self.row), func.max(self.row)
        twice = select(first, second).group_by(*key).having(func.count() > 1).order_by(first)
        for one, other in self.session.execute(twice.limit(1)):
            raise self.seed.wrong(f"two rows have the same key, this one and row {one}", other)

    def _check_dates(self) -> None:
        for field, unknown in self._unknown_dates(self.table):
            if number := self.session.scalar(select(func.min(self.row)).where(unknown)):
                raise self.seed.wrong("Python has no such date", number, field.name)

    def _unknown_dates(self, table: Table) -> Iterator[tuple[Field, ColumnElement[bool]]]:
        """What the server knows and Python does not, such as `infinity` and 44 BC."""
        for field in self._values.fields:
            if isinstance(field.column.type, Date | DateTime):
                yield field, not_(table.c[field.column.key].between(FIRST_DAY, LAST_DAY))

    def _staged_foreign_keys(self, deferrable: bool) -> list[ForeignKeyConstraint]:
        names = set(self.names)
        return [
            each
            for each in self.seed.table.foreign_key_constraints
            if bool(each.deferrable) is deferrable and names.issuperset(each.column_keys)
        ]

    def _hold_back(self, foreign_key: ForeignKeyConstraint) -> None:
        """Let rows wait whose foreign key leads nowhere yet; a nullable one is NULL until then."""
        columns = set(foreign_key.columns) - set(self.seed.key_columns)
        optional = [column.key for column in columns if column.nullable]
        change: dict[str, Any] = dict.fromkeys(optional, null()) or {READY: false()}
        nowhere = self._leads_nowhere(foreign_key)
        hold = update(self.table).where(self.ready, nowhere).values(change).returning(self.row)
        # Again and again, because a row that waits may be the one that another row refers to.
        while held := self.session.scalars(hold).all():
            self.waiting = self.waiting or self._no_row(foreign_key, min(held))

    def _no_row(self, foreign_key: ForeignKeyConstraint, number: int) -> SeedError:
        column = foreign_key.columns[0].key
        return self.seed.wrong(no_row(foreign_key.referred_table), number, column)

    def _leads_nowhere(self, foreign_key: ForeignKeyConstraint) -> ColumnElement[bool]:
        pairs = [(self.table.c[pair.parent.key], pair.column) for pair in foreign_key.elements]
        there = foreign_key.referred_table.alias()
        same = (there.c[theirs.key] == ours for ours, theirs in pairs)
        conditions = [*(ours.is_not(null()) for ours, _ in pairs), not_(exists().where(*same))]
        names = {theirs.key for _, theirs in pairs}
        if foreign_key.referred_table is self.seed.table and names.issubset(self.names):
            # Written by the same statement.
            staged = self.table.alias()
            same = (staged.c[theirs.key] == ours for ours, theirs in pairs)
            conditions.append(not_(exists().where(staged.c[READY], *same)))
        return and_(*conditions)


def _place(error: Exception) -> tuple[int | None, str | None]:
    """Line and column, when the server names them: `COPY seeds_1, line 3, column born: "x"`."""
    context = error.diag.context if isinstance(error, psycopg.Error) else None
    found = re.search(r"COPY \w+, \D+(\d+)(?:, \S+ (.+?): )?", context or "")
    return (int(found[1]), found[2]) if found else (None, None)
