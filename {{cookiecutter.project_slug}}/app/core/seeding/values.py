"""`Values`: the rows of a seed as the driver takes them, with what their subqueries find."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Column, Enum, FromClause, Select, String, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ClauseElement

from app.core.database_errors import reason
from app.core.seeding.seed import PROGRESS_EVERY, Seed, SeedError

# PostgreSQL's limit is 1,664 columns in one SELECT.
EXPRESSIONS_AT_ONCE = 500
# Values that go to the driver as they are.
PLAIN = frozenset({str, int, float})


@dataclass(frozen=True)
class Field:
    """A column, the name that the rows give it, and SQLAlchemy's way of a value to the driver."""

    name: str
    column: Column[Any]
    bind: Any
    in_key: bool = False
    in_rows: bool = True


@dataclass(frozen=True)
class Expression:
    """A value that the database evaluates, in the first row that has it."""

    value: ClauseElement
    row: int
    name: str


class Values:
    """The values of `seed`, column by column.

    `waiting` is the error about the first row that refers to a row which is not there, or None.
    """

    def __init__(self, session: Session, seed: Seed) -> None:
        """Find out which columns there are and which values have to be evaluated."""
        self.session = session
        self.seed = seed
        self.waiting: SeedError | None = None
        self.fields = [*self._fields_of_rows(), *self._other_fields()]
        self.columns: list[list[Any]] = []
        self._given = {name: [row[name] for row in seed.rows] for name in seed.columns}
        self._is_plain = {
            name: set(map(type, values)) <= PLAIN for name, values in self._given.items()
        }
        self._expressions = self._find_expressions()
        self._found: dict[int, Any] = {}
        self._not_ready: set[int] = set()
        self._without_key: set[int] = set()

    def load(self) -> None:
        """Fill `columns`: the values of each field, in the order of the rows."""
        self.waiting = None
        self._not_ready.clear()
        self._without_key.clear()
        self._evaluate_what_is_missing()
        self.columns = [self._bound_column(field) for field in self.fields]

    def rows(self) -> list[tuple[Any, ...]]:
        """For each row its number, its values, and whether it can be written now.

        A row is left out if a part of its key is not found yet: it cannot be in the table either.
        """
        numbers = range(1, len(self.seed.rows) + 1)
        ready = [number not in self._not_ready for number in numbers]
        rows = zip(numbers, *self.columns, ready, strict=True)
        return [row for row in rows if row[0] not in self._without_key]

    def has_key_twice(self) -> bool:
        """Whether two rows have the same key, as far as Python can tell."""
        fields = zip(self.fields, self.columns, strict=True)
        key = [column for field, column in fields if field.in_key]
        return len(set(zip(*key, strict=True))) < len(self.seed.rows)

    def _fields_of_rows(self) -> Iterator[Field]:
        for name, column in self.seed.columns.items():
            yield Field(name, column, self._bind(column), column in self.seed.key_columns)

    def _other_fields(self) -> Iterator[Field]:
        """The constants, and columns whose values Python makes, such as `default=uuid4`."""
        filled = {each.key for each in self.seed.columns.values()}
        for column in self.seed.table.c:
            by_python = column.default is not None and not column.default.is_clause_element
            if column.key in self.seed.constants or (by_python and column.key not in filled):
                yield Field(column.key, column, self._bind(column), in_rows=False)

    def _bind(self, column: Column[Any]) -> Any:
        if isinstance(column.type, String) and not isinstance(column.type, Enum):
            return _text
        dialect = self.session.connection().dialect
        return column.type.dialect_impl(dialect).bind_processor(dialect)

    def _find_expressions(self) -> list[Expression]:
        expressions: dict[int, Expression] = {}
        for name, values in self._given.items():
            for number, value in enumerate(values if not self._is_plain[name] else (), 1):
                if isinstance(value, ClauseElement):
                    expressions.setdefault(id(value), Expression(value, number, name))
        return list(expressions.values())

    def _evaluate_what_is_missing(self) -> None:
        missing = [each for each in self._expressions if self._found.get(id(each.value)) is None]
        for start in range(0, len(missing), EXPRESSIONS_AT_ONCE):
            chunk = missing[start : start + EXPRESSIONS_AT_ONCE]
            try:
                values = self._evaluate(chunk)
            except SQLAlchemyError:
                self._blame_one_of(chunk)
                raise
            self._found |= zip((id(each.value) for each in chunk), values, strict=True)
            if start and start % PROGRESS_EVERY == 0:
                self.seed.report(start, len(missing), "references looked up")

    def _evaluate(self, expressions: list[Expression]) -> list[Any]:
        columns = [_as_column(each.value, f"v{i}") for i, each in enumerate(expressions)]
        with self.session.begin_nested():
            return list(self.session.execute(select(*columns)).one())

    def _blame_one_of(self, expressions: list[Expression]) -> None:
        for each in expressions:
            try:
                self._evaluate([each])
            except SQLAlchemyError as error:
                raise self.seed.wrong(reason(error), each.row, each.name) from None

    def _bound_column(self, field: Field) -> list[Any]:
        if field.name in self.seed.constants:
            return [self._bound(field, 1, self.seed.constants[field.name])] * len(self.seed.rows)
        if not field.in_rows:
            return [self._default(field, number) for number in range(1, len(self.seed.rows) + 1)]
        values = self._given[field.name]
        if field.bind in (None, _text) and self._is_plain[field.name]:
            return values
        return [self._bound(field, number, value) for number, value in enumerate(values, 1)]

    def _bound(self, field: Field, number: int, value: Any) -> Any:
        if isinstance(value, ClauseElement):
            value = self._found[id(value)]
            if value is None:
                return self._wait_for(field, number)
        elif value is None and not field.column.nullable:
            raise self.seed.wrong("it cannot be NULL", number, field.name)
        try:
            return field.bind(value) if field.bind else value
        # A type of the team's own may raise anything.
        except Exception as error:
            why = _refusal(field.column, value, error)
            raise self.seed.wrong(why, number, field.name) from None

    def _default(self, field: Field, number: int) -> Any:
        # A default may ask SQLAlchemy's context for the other values of the row.
        row = dict(self.seed.rows[number - 1])
        context = SimpleNamespace(get_current_parameters=lambda *_, **__: row)
        default: Any = field.column.default
        try:
            value = default.arg(context) if default.is_callable else default.arg
        except Exception as error:
            raise self.seed.wrong(f"its default fails: {error!r}", number, field.name) from None
        return self._bound(field, number, value)

    def _wait_for(self, field: Field, number: int) -> None:
        """Note that a value is not found; in a nullable column without foreign key it is NULL."""
        tables = [each.column.table for each in field.column.foreign_keys]
        if field.in_key:
            self._without_key.add(number)
        elif not field.column.nullable:
            self._not_ready.add(number)
        elif not tables:
            return
        why = no_row(tables[0]) if tables else "it gives NULL"
        self.waiting = self.waiting or self.seed.wrong(why, number, field.name)


def no_row(table: FromClause) -> str:
    """What is wrong with a reference."""
    return f"it refers to no row of {table.description}"


def _as_column(expression: Any, name: str) -> Any:
    scalar = expression.scalar_subquery() if isinstance(expression, Select) else expression
    return scalar.label(name)


def _text(value: Any) -> Any:
    """Refuse what the driver would turn into text that nobody meant, such as `{a,b}`."""
    if isinstance(value, bool | bytes | dict | list | set | tuple):
        raise TypeError(f"{value!r} is not text")
    return value


def _refusal(column: Column[Any], value: Any, error: Exception) -> str:
    if isinstance(column.type, Enum):
        return f"{value!r} is not one of {', '.join(column.type.enums)}"
    return reason(error)
