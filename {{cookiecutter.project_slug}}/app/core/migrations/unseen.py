"""Writes what Alembic does not see: other keys, conditions, index definitions, enum values."""

from collections.abc import Iterator
from typing import Any

from alembic.operations import ops
from sqlalchemy import Connection, Constraint, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import AddConstraint
from sqlalchemy.sql.elements import conv

from app.core.database import quote
from app.core.migrations.differences import Difference
from app.core.migrations.reversible import ReversibleSQL
from app.core.migrations.safe_operations import Steps
from app.models import db

DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
PREPARER = DIALECT.identifier_preparer
# As the database spells them, without a schema.
CONSTRAINT = (
    "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE conrelid = to_regclass(%s) AND conname = %s"
)
INDEX = "SELECT pg_get_indexdef(to_regclass(%s), 0, true)"
PRIMARY_KEY = (
    "SELECT k.conname, a.attname FROM pg_constraint k"
    " CROSS JOIN unnest(k.conkey) WITH ORDINALITY AS part (number, place)"
    " JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = part.number"
    " WHERE k.contype = 'p' AND k.conrelid = to_regclass(%s) ORDER BY part.place"
)


def write(steps: Steps, differences: list[Difference], connection: Connection) -> bool:
    """Add to the steps what can be written of these; False when that is nothing."""
    before = len(steps.change), len(steps.indexes), len(steps.validation)
    for each in differences:
        table = db.metadata.tables.get(each.table)
        match each.kind:
            case "c" | "f" | "u" | "x" if table is not None:
                _replace_constraint(steps, each, table, connection)
            case "p" if table is not None:
                _change_primary_key(steps, each, table, connection)
            case "index" if table is not None:
                _replace_index(steps, each, table, connection)
            case "enum":
                steps.change += _new_values(each)
    return before != (len(steps.change), len(steps.indexes), len(steps.validation))


def _replace_constraint(
    steps: Steps, difference: Difference, table: Table, connection: Connection
) -> None:
    name = difference.item
    start = f"ALTER TABLE {quote(table.name)}"
    drop = f"{start} DROP CONSTRAINT {quote(name)}"
    was = connection.exec_driver_sql(CONSTRAINT, (quote(table.name), name)).scalar()
    if was:
        steps.change.append(ReversibleSQL(drop, f"{start} ADD CONSTRAINT {quote(name)} {was}"))
    for each in [*table.constraints, *(it for column in table.c for it in column.constraints)]:
        if PREPARER.format_constraint(each) != quote(name):
            continue
        if difference.kind == "x":
            # Alembic's operation for it knows columns only, no expressions.
            steps.change.append(ReversibleSQL(_added(each), drop))
        else:
            add: Any = ops.AddConstraintOp.from_constraint(each)
            add.constraint_name = conv(name)
            steps.add([add])


def _replace_index(
    steps: Steps, difference: Difference, table: Table, connection: Connection
) -> None:
    name = difference.item
    was = connection.exec_driver_sql(INDEX, (quote(name),)).scalar() if difference.found else None
    wanted = [each for each in table.indexes if each.name == name]
    if was:
        steps.replace_index(ops.CreateIndexOp.from_index(wanted[0]), str(was))
    else:
        steps.add(ops.CreateIndexOp.from_index(each) for each in wanted)


def _change_primary_key(
    steps: Steps, difference: Difference, table: Table, connection: Connection
) -> None:
    rows = connection.exec_driver_sql(PRIMARY_KEY, (quote(table.name),)).all()
    old_name = rows[0][0] if rows else None
    columns = [column.name for column in table.primary_key.columns]
    steps.change_primary_key(
        table.name, (difference.item, columns), (old_name, [column for _, column in rows])
    )


def _new_values(difference: Difference) -> Iterator[Any]:
    """The values that a native enum gets; it cannot lose one, nor put them in another order."""
    wanted, there = difference.wanted.split(", "), difference.found.split(", ")
    if [each for each in wanted if each in there] != there:
        return
    for number, label in enumerate(wanted):
        if label not in there:
            before = f"BEFORE {_literal(there[0])}"
            place = f"AFTER {_literal(wanted[number - 1])}" if number else before
            yield ReversibleSQL(
                f"ALTER TYPE {quote(difference.item)} ADD VALUE IF NOT EXISTS"
                f" {_literal(label)} {place}"
            )


def _added(constraint: Constraint) -> str:
    return str(AddConstraint(constraint, isolate_from_table=False).compile(dialect=DIALECT))


def _literal(label: str) -> str:
    return "'" + label.replace("'", "''") + "'"
