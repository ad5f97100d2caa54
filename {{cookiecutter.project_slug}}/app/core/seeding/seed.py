"""`Seed`: the rows that a file in app/seeds declares."""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from sqlalchemy import (
    Column,
    ColumnElement,
    ForeignKeyConstraint,
    FromClause,
    Table,
    and_,
    exists,
    inspect,
)
from sqlalchemy.sql.elements import ClauseElement

from app.config import ROOT
from app.core.database_errors import reason
from app.core.logs import say
from app.models import Base

PROGRESS_EVERY = 25_000
HOW_TO_MARK = (
    "so that nothing would tell its rows from those of users: give it the column `seeded` "
    '(a model: the mixin Seeded; a Table: Column("seeded", Boolean, nullable=False, '
    "server_default=false())) and run flask db migrate"
)


class SeedError(Exception):
    """A mistake in a file of seeds; the message is one line that says where and what."""


def _calling_file() -> str:
    """The file that makes the Seed: the caller of the `__init__` that calls this."""
    path = Path(traceback.extract_stack(limit=3)[0].filename)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@dataclass(frozen=True)
class Seed:
    """The seeded rows of one model, or of one `Table` that has no model.

    `rows` are dictionaries of column values, all with the same columns. A value may be a scalar
    subquery, which finds a row of another table, or of this one, by its natural key. The order of
    rows and of seeds does not matter. Tables may refer to each other if one of the foreign keys in
    the circle may be NULL.

    `key` names the column, or the columns, that tell one row from another: `key="isbn"`,
    `key=("book_id", "tag_id")`.

    A seeded row is marked in its column `seeded` (the mixin `Seeded`, or in a Table
    `Column("seeded", Boolean, nullable=False, server_default=false())`): rows without the mark
    belong to users and are neither changed nor deleted. A link table can do without the column if
    its key consists of foreign keys to tables that have it. Then a row is the seeds' when it is
    listed here and all rows that it links are seeded. Two limits follow: nobody can tell such a row
    from the same link made by a user, and a row that is taken out of the file stays where it was
    planted. Add the column where that matters.
    """

    model: type[Base] | Table
    key: str | tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]
    file: str = field(default_factory=_calling_file, init=False, compare=False)

    @property
    def table(self) -> Table:
        """The table of the model."""
        model = self.model
        return model if isinstance(model, Table) else cast(Table, model.__table__)

    @property
    def noun(self) -> str:
        """The name of the table, which is the name in `flask seed all NOUN`."""
        return self.table.name

    @cached_property
    def columns(self) -> dict[str, Column[Any]]:
        """The columns that the rows fill, by the name that the rows give them."""
        names = self.rows[0] if self.rows else self._key_names
        return {name: self._names[name] for name in names if name != "seeded"}

    @cached_property
    def key_columns(self) -> list[Column[Any]]:
        """The columns of `key`; raises `SeedError` if they are not there."""
        self._check_key()
        return [self._names[name] for name in self._key_names]

    @cached_property
    def constants(self) -> dict[str, Any]:
        """What the rows do not say: the mark, and which subclass of a model they are."""
        constants: dict[str, Any] = {"seeded": True} if self.is_marked else {}
        if not isinstance(self.model, Table):
            mapper = inspect(self.model)
            kind = mapper.polymorphic_on
            if isinstance(kind, Column) and kind.table is self.table:
                constants[kind.key] = mapper.polymorphic_identity
        written = {column.key for column in self.columns.values()}
        return {name: value for name, value in constants.items() if name not in written}

    @property
    def is_marked(self) -> bool:
        """Whether the table has the column `seeded`."""
        return "seeded" in self.table.c

    @cached_property
    def links(self) -> list[ForeignKeyConstraint]:
        """The foreign keys in `key`."""
        key = set(self.key_columns)
        keys = self.table.foreign_key_constraints
        return sorted((each for each in keys if key.issuperset(each.columns)), key=_column_names)

    def owns(self, rows: FromClause) -> ColumnElement[bool]:
        """The condition that `rows`, of the table or of a stage, are the seeds' and no user's."""
        if self.is_marked:
            return cast(ColumnElement[bool], rows.c.seeded)
        return and_(*(self._links_a_seeded_row(link, rows) for link in self.links))

    def check(self) -> None:
        """Raise `SeedError` for what can be seen without the values."""
        self._check_fields()
        self._check_key()
        self._check_mark()
        for column in self._columns_left_out():
            raise self.wrong("it is missing, and the table needs it", row=1, column=column.key)

    def wrong(self, why: str, row: int | None = None, column: str | None = None) -> SeedError:
        """The error that names file, row (counted from 1) and column."""
        where = f"{self.file}: {self.noun}"
        if row is not None:
            where = f"{self.file}: row {row} of {self.noun}{self._described(row)}"
        if column is not None:
            where += f", column {column}"
        return SeedError(f"{where}: {why}")

    def report(self, done: int, total: int, what: str) -> None:
        """Say how far a large seed has got."""
        say(f"{self.noun}: {done:,} of {total:,} {what}", err=True)

    @property
    def _key_names(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @cached_property
    def _names(self) -> dict[str, Column[Any]]:
        """What a row may call a column: its name in the table or in the model."""
        names: dict[str, Column[Any]] = {}
        if not isinstance(self.model, Table):
            columns = inspect(self.model).columns.items()
            names = {name: column for name, column in columns if column.table is self.table}
        return names | dict(self.table.c.items())

    def _described(self, number: int) -> str:
        """The key of a row, as far as it is not looked up."""
        row = self.rows[number - 1]
        if not isinstance(row, dict):
            return ""
        values = {name: row[name] for name in self._key_names if name in row}
        shown = [f"{k}={v}" for k, v in values.items() if not isinstance(v, ClauseElement)]
        return f" ({', '.join(shown)})" if shown else ""

    def _check_key(self) -> None:
        for name in self._key_names:
            if name not in self._names or (self.rows and name not in self.rows[0]):
                raise self.wrong(f"the rows need the key {name!r}")

    def _check_fields(self) -> None:
        self._check_likeness()
        for name in self.rows[0] if self.rows else ():
            if name not in self._names:
                raise self.wrong(self._no_column(name), row=1, column=name)

    def _check_likeness(self) -> None:
        if set(map(type, self.rows)) == {dict} and len(set(map(tuple, self.rows))) == 1:
            return  # The usual case, in the time that many rows leave for it.
        for number, row in enumerate(self.rows, 1):
            if not isinstance(row, dict):
                raise self.wrong(f"{row!r} is not a dictionary", row=number)
            if row.keys() != self.rows[0].keys():
                different = ", ".join(sorted(row.keys() ^ self.rows[0].keys()))
                why = f"all rows need the same fields, and this one differs in {different}"
                raise self.wrong(why, row=number)

    def _no_column(self, name: str) -> str:
        if not isinstance(self.model, Table) and name in (columns := inspect(self.model).columns):
            return f"it is a column of {columns[name].table}, which needs a Seed of its own"
        return "the table has no such column"

    def _check_mark(self) -> None:
        if self.is_marked:
            return
        if not self.links:
            raise self.wrong(f"the table has no column `seeded`, {HOW_TO_MARK}")
        for link in self.links:
            if "seeded" not in link.referred_table.c:
                unmarked = link.referred_table.name
                raise self.wrong(
                    f"it links {unmarked}, which has no column `seeded`, {HOW_TO_MARK}"
                )

    def _columns_left_out(self) -> Iterator[Column[Any]]:
        """Columns that must have a value and get none from anywhere."""
        filled = {column.key for column in self.columns.values()} | self.constants.keys()
        for column in self.table.c if self.rows else ():
            by_itself = column.default or column.server_default or column.identity
            generated = column is self.table.autoincrement_column or column.computed
            if not (column.nullable or by_itself or generated or column.key in filled):
                yield column

    def _links_a_seeded_row(
        self, link: ForeignKeyConstraint, rows: FromClause
    ) -> ColumnElement[bool]:
        other = link.referred_table.alias()
        same = (other.c[pair.column.key] == rows.c[pair.parent.key] for pair in link.elements)
        return exists().where(other.c.seeded, *same)


def _column_names(constraint: ForeignKeyConstraint) -> list[str]:
    return [column.name for column in constraint.columns]


def listed(keys: Sequence[Sequence[Any]]) -> str:
    """The first ten keys for people: `Kindred, Silent Spring and 3 more`."""
    names = [str(key[0]) if len(key) == 1 else f"({', '.join(map(str, key))})" for key in keys[:10]]
    shown = ", ".join(names)
    return f"{shown} and {len(keys) - 10:,} more" if len(keys) > 10 else shown


def reason_in_full(error: BaseException) -> str:
    """What the server says and which value it means, on one line."""
    diagnosis = getattr(getattr(error, "orig", error), "diag", None)
    detail = getattr(diagnosis, "message_detail", None)
    why = reason(error)
    return f"{why}: {' '.join(detail.split()).rstrip('.')}" if detail else why
