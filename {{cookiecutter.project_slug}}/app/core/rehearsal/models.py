"""Run by previous.py as a program of its own, in the folder of a release: its models at work.

SCRATCH_DATABASE_URL is the scratch database. For each line that comes in, `describe`, `probe`
or `multiply 1000`, it writes one line of JSON. It imports nothing of this project but `app.models`,
as that release has them; the rest of `app` is not run, so that what it needs besides may be gone.
"""

import json
import os
import re
import secrets
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from sqlalchemy import (
    ARRAY,
    Column,
    Connection,
    Enum,
    Float,
    Inspector,
    Integer,
    NullPool,
    Numeric,
    String,
    Table,
    and_,
    create_engine,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, undefer
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.types import BigInteger, SmallInteger, TypeDecorator

READ = 2000
CHANGED = 20
BATCH = 1000
# The load got in the way.
PASSING = ("DeadlockDetected", "LockNotAvailable", "QueryCanceled")
ATTEMPTS = 3
LONG = 2000
# What is made up is the same before a migration and after it: so is what becomes of it.
SEED = secrets.token_hex()
LARGEST = {SmallInteger: 2**15 - 1, BigInteger: 2**63 - 1, Integer: 2**31 - 1}


def main() -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the code prints is no answer
    package = ModuleType("app")
    package.__path__ = [str(Path.cwd() / "app")]
    sys.modules["app"] = package
    sys.path.insert(0, str(Path.cwd()))
    from app.models import db

    base: Any = db.Model
    tables = [each for each in db.metadata.sorted_tables if not each.info.get("is_view")]
    engine = create_engine(os.environ["SCRATCH_DATABASE_URL"], poolclass=NullPool)
    unique: dict[str, list[list[str]]] = {}
    for line in sys.stdin:
        result: Any = {each.name: [column.name for column in each.columns] for each in tables}
        what, *words = line.split()
        if what != "describe":
            with engine.connect() as connection:
                probe = Probe(connection, tables, [*base.registry.mappers], unique)
                result = probe.run() if what == "probe" else probe.multiply(int(words[0]))
                connection.rollback()
        print(json.dumps(result), file=answers, flush=True)


class NumberTakenError(Exception):
    """A sequence or identity gives a number that a row has already."""


class NotAsWrittenError(Exception):
    """What was written is not what is there then, and the database did not complain."""


class Probe:
    """Reads and writes every table; nothing stays. `results` is an error or "" by what was done.

    `unique` are the columns of which no two rows may have the same, by table. They are those that
    the probe before has found, for this release knows nothing of a constraint that is new.
    """

    def __init__(
        self,
        connection: Connection,
        tables: list[Table],
        mappers: list[Any],
        unique: dict[str, list[list[str]]],
    ) -> None:
        self.connection = connection
        self.tables = tables
        self.mappers = mappers
        self.unique = unique
        self.database: Inspector = inspect(connection)
        self.there = {*self.database.get_table_names()}
        self.results: dict[str, dict[str, str]] = {}
        self.types: dict[str, list[str]] = {}
        # How many rows there are in those that have become views.
        self.views: dict[str, int] = {}
        for table in tables:
            if table.name not in unique:
                unique[table.name] = self._find_unique(table)

    def run(self) -> dict[str, Any]:
        """All of it, parents before their children."""
        self.connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        for table in self.tables:
            mappers = [each for each in self.mappers if each.local_table is table]
            for mapper in mappers:
                self._do(table, "read", partial(self._read, mapper))
            if not mappers:
                self._do(table, "read", partial(self._read_plainly, table))
            if table.name not in self.there:
                self._do(table, "read", partial(self._count, table))
            row = self._some_row(table)
            if row is not None:
                self._write(table, mappers, row)
            if table.name in self.there:  # a view has no constraints, but those of its table hold
                self.unique[table.name] = self._find_unique(table)
        return {"results": self.results, "types": self.types, "views": self.views}

    def _write(self, table: Table, mappers: list[Any], row: dict[str, Any]) -> None:
        self._do(table, "change rows", partial(self._change_plainly, table))
        for mapper in mappers:
            self._do(table, "change a row", partial(self._change, mapper))
        self._do(table, "insert", partial(self._insert_copy, table, row))
        self._do(table, "insert with defaults", partial(self._insert_with_defaults, table, row))
        self._do(table, "delete", partial(self._delete_and_insert, table, row))
        for column, name, value in self._values(table):
            self._do(table, name, partial(self._set, table, row, column, value))

    def multiply(self, count: int) -> dict[str, str]:
        """Copies of the rows that are there, until each table has so many; errors by table."""
        faults = {}
        for table in self.tables:
            try:
                self._multiply(table, count)
            except Exception as error:
                faults[table.name] = _words(error)
                self.connection.rollback()
            self.connection.commit()
        return faults

    def _multiply(self, table: Table, count: int) -> None:
        rows = [dict(row) for row in self.connection.execute(select(table).limit(BATCH)).mappings()]
        there = self.connection.scalar(select(func.count()).select_from(table)) or 0
        originals, random = cycle(rows), Random()
        while rows and there < count:
            some = islice(originals, min(BATCH, count - there))
            copies = [self._copy(table, row, random) for row in some]
            self.connection.execute(insert(table), copies)
            there += len(copies)

    def _do(self, table: Table, name: str, work: Callable[[], None]) -> None:
        done = self.results.setdefault(table.name, {})
        for _ in range(ATTEMPTS):
            words = ""
            try:
                with self.connection.begin_nested() as savepoint:
                    work()
                    savepoint.rollback()
            except Exception as error:
                words = _words(error)
            if not words.startswith(PASSING):
                break
        done[name] = done.get(name) or words

    def _read(self, mapper: Any) -> None:
        query = select(mapper.class_).options(undefer("*")).limit(READ)
        query = query.order_by(*mapper.primary_key)  # the same rows each time
        with Session(self.connection, join_transaction_mode="create_savepoint") as session:
            for row in session.scalars(query.execution_options(yield_per=1000)):
                for attribute in mapper.column_attrs:
                    column = attribute.columns[0]
                    known = self.types.setdefault(f"{mapper.local_table.name}.{column.name}", [])
                    for kind in _kinds(row.__dict__.get(attribute.key), column.type):
                        if kind not in known:
                            known.append(kind)

    def _read_plainly(self, table: Table) -> None:
        self.connection.execute(select(table).limit(READ)).all()

    def _count(self, table: Table) -> None:
        count = self.connection.scalar(select(func.count()).select_from(table))
        self.views[table.name] = count or 0

    def _some_row(self, table: Table) -> Any:
        """A row of the table; in an empty one, a row that is made up, as far as that goes."""
        try:
            with self.connection.begin_nested():
                query = select(table).order_by(*table.primary_key)
                row = self.connection.execute(query.limit(1)).mappings().first()
                if row is None:
                    values = {each.name: self._made_up(each) for each in self._needed(table)}
                    self.connection.execute(insert(table).values(values))
                    row = self.connection.execute(query.limit(1)).mappings().first()
                return {each.name: row[each.name] for each in table.columns} if row else None
        except Exception as error:
            self.results[table.name].setdefault("a row", _words(error))
            return None

    def _change(self, mapper: Any) -> None:
        keys = {*mapper.primary_key}
        with Session(self.connection, join_transaction_mode="create_savepoint") as session:
            query = select(mapper.class_).order_by(*mapper.primary_key).limit(CHANGED)
            for row in session.scalars(query):
                for attribute in mapper.column_attrs:
                    column = attribute.columns[0]
                    if isinstance(column, Column) and column not in keys and not column.computed:
                        getattr(row, attribute.key)
                        flag_modified(row, attribute.key)
            session.flush()

    def _change_plainly(self, table: Table) -> None:
        key = [*(table.primary_key or table.columns)]
        some = select(*key).limit(READ)
        if same := {each.name: each for each in _written(table)}:
            self.connection.execute(update(table).where(tuple_(*key).in_(some)).values(same))

    def _insert(self, table: Table, values: dict[str, Any]) -> None:
        key = [*(table.primary_key or table.columns)]
        if not self.connection.execute(insert(table).values(values).returning(*key)).all():
            raise NotAsWrittenError("an INSERT leaves no row")

    def _insert_new(self, table: Table, values: dict[str, Any]) -> None:
        """The database numbers the row, so a number that is taken is no doing of ours."""
        key = self.database.get_pk_constraint(table.name)["name"]
        number = table.autoincrement_column
        try:
            self._insert(table, values)
        except IntegrityError as error:
            constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
            if number is None or constraint is None or constraint != key:
                raise
            raise NumberTakenError(
                f"the next number of {table.name}.{number.name} is taken; set it after the rows: "
                f"SELECT setval(pg_get_serial_sequence('{table.name}', '{number.name}'), "
                f"max({number.name})) FROM {table.name}"
            ) from None

    def _insert_copy(self, table: Table, row: dict[str, Any]) -> None:
        first = slice(1)
        self._insert_new(table, self._copy(table, row, Random(SEED + table.name), first))

    def _insert_with_defaults(self, table: Table, row: dict[str, Any]) -> None:
        """A copy without what has a default; a NULL is tried by itself, see `_values`."""
        last = slice(-1, None)
        copy = self._copy(table, row, Random(SEED + table.name), last)
        defaults = {each.name for each in table.columns if each.default or each.server_default}
        self._insert_new(table, {name: copy[name] for name in copy.keys() - defaults})

    def _delete_and_insert(self, table: Table, row: dict[str, Any]) -> None:
        self.connection.execute(delete(table).where(_is(table, row)))
        self._insert_new(table, {each.name: row[each.name] for each in _written(table)})

    def _set(self, table: Table, row: dict[str, Any], column: Column[Any], value: Any) -> None:
        same = update(table).where(_is(table, row)).values({column.name: value})
        found = self.connection.scalars(same.returning(column)).all()
        if not found:
            raise NotAsWrittenError("an UPDATE changes no row")
        # Another type is told by `_read`; and who puts something in the place of NULL wants that.
        if value is not None and isinstance(found[0], type(value)) and found[0] != value:
            it = f"{len(found[0])} characters" if isinstance(value, str) else str(found[0])
            raise NotAsWrittenError(f"it reads back as {it}")

    def _copy(
        self, table: Table, row: dict[str, Any], random: Random, which: slice = slice(None)
    ) -> dict[str, Any]:
        """Its values, but others where no two rows may have the same.

        Where several columns are unique together, only `which` of them differ.
        """
        copy = {each.name: row[each.name] for each in _written(table)}
        for names in self.unique.get(table.name, []):
            columns = [each for each in table.columns if each.name in names]
            if any(_is_numbered(each) for each in columns):
                continue  # that makes it another
            own = [each for each in columns if each.name in copy and not each.foreign_keys]
            others = [(each.name, _another(row[each.name], each, random)) for each in own]
            copy |= dict([(name, it) for name, it in others if it != row[name]][which])
        return copy

    def _needed(self, table: Table) -> list[Column[Any]]:
        """The columns that this release has to fill in itself."""
        return [
            each
            for each in _written(table)
            if not (each.nullable or each.default or each.server_default)
        ]

    def _find_unique(self, table: Table) -> list[list[str]]:
        if table.name not in self.there:
            return []
        found = [self.database.get_pk_constraint(table.name)["constrained_columns"]]
        for constraint in self.database.get_unique_constraints(table.name):
            found.append(constraint["column_names"])
        for index in self.database.get_indexes(table.name):
            if index["unique"]:
                words = " ".join(index.get("expressions", []))  # lower(name), for example
                names = {*index["column_names"], *re.findall(r"\w+", words)}
                found.append([each.name for each in table.columns if each.name in names])
        return found

    def _made_up(self, column: Column[Any]) -> Any:
        for key in column.foreign_keys:
            return self.connection.scalar(select(key.column).limit(1))
        if isinstance(column.type, Enum):
            return column.type.enum_class and [*column.type.enum_class][0] or column.type.enums[0]
        now = datetime.now(UTC if getattr(column.type, "timezone", False) else None)
        examples = {bool: False, int: 1, float: 1.0, Decimal: Decimal(1), date: now.date()}
        examples |= {datetime: now, uuid.UUID: uuid.uuid4(), bytes: b"x", dict: {}, list: []}
        return examples.get(column.type.python_type, "x")

    def _values(self, table: Table) -> Iterator[tuple[Column[Any], str, Any]]:
        """Values that the models allow, at the limits of what their types can hold."""
        for column in table.columns:
            kind: Any = column.type
            if column.primary_key or column.foreign_keys or column.computed:
                continue
            if column.nullable:
                yield column, f"{column.name} = NULL", None
            if isinstance(kind, TypeDecorator):
                continue
            if isinstance(kind, Enum):
                for member in kind.enum_class or kind.enums:
                    # It writes each of these for certain: see `PERHAPS` in previous.py.
                    yield column, f"{column.name} is {getattr(member, 'value', member)}", member
            elif isinstance(kind, String):
                length = min(kind.length or LONG, LONG)
                yield column, f"{column.name} = {length} characters", "x" * length
            elif isinstance(kind, Integer):
                yield column, f"{column.name} = {_largest(column)}", _largest(column)
            elif isinstance(kind, Numeric) and kind.precision and not isinstance(kind, Float):
                digits, scale = kind.precision, kind.scale or 0
                value = (Decimal(10) ** digits - 1).scaleb(-scale)
                yield column, f"{column.name} = {value}", value


def _is(table: Table, row: dict[str, Any]) -> Any:
    return and_(*(each == row[each.name] for each in table.primary_key or table.columns))


def _is_numbered(column: Column[Any]) -> bool:
    return bool(column.identity) or column is column.table.autoincrement_column


def _written(table: Table) -> list[Column[Any]]:
    """The columns that code writes to: the database numbers rows, and computes."""
    return [each for each in table.columns if not (each.computed or _is_numbered(each))]


def _kinds(value: Any, type_: Any) -> Iterator[str]:
    """What it is to code that works with it."""
    kind = type(value).__name__
    if isinstance(value, list) and isinstance(type_, ARRAY):  # not a list in JSON: it holds all
        for each in value:
            yield from (f"list of {kind}" for kind in _kinds(each, type_))
    elif isinstance(value, datetime | time):
        yield f"{kind} {'with' if value.tzinfo else 'without'} a time zone"
    elif isinstance(value, str) and value.endswith(" "):  # char(n) fills them in
        yield f"{kind} with blanks at its end"
    elif value is not None:
        yield kind


def _largest(column: Column[Any]) -> int:
    found = (each for name, each in LARGEST.items() if isinstance(column.type, name))
    return next(found, max(LARGEST.values()))


def _another(value: Any, column: Column[Any], random: Random) -> Any:
    """A value of the same kind that no other row has."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(column.type, Enum):
        members = column.type.enum_class or column.type.enums
        return random.choice([each for each in members if each != value] or [value])
    if isinstance(value, str):
        size = max(len(value), 1)
        digits = "0123456789" if value.isdigit() else "0123456789abcdef"
        return "".join(random.choice(digits) for _ in range(size))
    if isinstance(value, int):
        return (value + random.randrange(2**30)) % _largest(column)
    if isinstance(value, Decimal | float):
        return value + random.randrange(1000)
    if isinstance(value, uuid.UUID):
        return uuid.UUID(int=random.getrandbits(128))
    if isinstance(value, date):  # a datetime too
        return value + timedelta(days=1 + random.randrange(1000))
    return random.randbytes(len(value)) if isinstance(value, bytes) else value


def _words(error: Exception) -> str:
    """`NotNullViolation: null value in column …`."""
    original = getattr(error, "orig", None) or error
    diagnosis = getattr(original, "diag", None)
    words = getattr(diagnosis, "message_primary", None) or str(original)
    return f"{type(original).__name__}: {' '.join(words.split())}"[:300]


if __name__ == "__main__":
    main()
