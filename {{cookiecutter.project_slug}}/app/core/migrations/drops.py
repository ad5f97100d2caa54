"""Tables that go: in which order, and all that has to come back with them."""

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from alembic.operations.ops import (
    AddConstraintOp,
    DropConstraintOp,
    DropTableOp,
    MigrateOperation,
    UpgradeOps,
)
from sqlalchemy import Connection, ForeignKeyConstraint, UniqueConstraint

from app.core.database import quote
from app.core.migrations.reversible import InOrder, ReversibleSQL
from app.core.migrations.safe_operations import referred_table

# What Alembic does not read.
DEFERRABLE = (
    "SELECT c.relname, k.conname, k.condeferred FROM pg_constraint k"
    " JOIN pg_class c ON c.oid = k.conrelid WHERE k.contype = 'u' AND k.condeferrable"
    " AND k.connamespace = to_regnamespace(quote_ident(current_schema()))"
)
EXCLUSIONS = (
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE contype = 'x' AND conrelid = CAST(%s AS regclass) ORDER BY conname"
)


def children_first(upgrade: UpgradeOps, connection: Connection) -> None:
    """Drop a table before those that it refers to, and after all else.

    Alembic leaves them in the order of a set.
    """
    drops = {drop.table_name: drop for drop in upgrade.ops if isinstance(drop, DropTableOp)}
    parents = {
        name: {referred_table(key) for key in _foreign_keys(drop)} & drops.keys() - {name}
        for name, drop in drops.items()
    }
    others = [each for each in upgrade.ops if each not in drops.values()]
    try:
        names = [*TopologicalSorter(parents).static_order()][::-1]
    except CycleError:
        names = [*drops]
        others += [
            _without_foreign_key(drop, key)
            for name, drop in drops.items()
            for key in _foreign_keys(drop)
            if referred_table(key) in parents[name]
        ]
    last = [each for name in names for each in (_exclusions(name, connection), drops[name])]
    upgrade.ops = [*others, *last]


def complete(operations: Iterable[Any], connection: Connection) -> None:
    """Let unique constraints that go come back as deferrable as they are."""
    found = {
        (table, name): "DEFERRED" if deferred else None
        for table, name, deferred in connection.exec_driver_sql(DEFERRABLE)
    }
    for operation in operations:
        for unique in _unique_constraints(operation):
            place = operation.table_name, str(unique.name)
            if place in found:
                unique.deferrable, unique.initially = True, found[place]
                if isinstance(operation, DropConstraintOp):
                    operation._reverse = AddConstraintOp.from_constraint(unique)


def _unique_constraints(operation: Any) -> list[UniqueConstraint]:
    match operation:
        case DropTableOp():
            items = _comes_back(operation)
        case DropConstraintOp(constraint_type="unique"):
            items = [operation.to_constraint()]
        case _:
            items = []
    return [each for each in items if isinstance(each, UniqueConstraint)]


def _exclusions(table: str, connection: Connection) -> InOrder:
    """What brings them back after the table."""
    name = quote(table)
    found = connection.exec_driver_sql(EXCLUSIONS, (name,)).all()
    return InOrder(
        [],
        [
            ReversibleSQL(f"ALTER TABLE {name} ADD CONSTRAINT {quote(constraint)} {definition}")
            for constraint, definition in found
        ],
    )


def _comes_back(drop: DropTableOp) -> Sequence[Any]:
    """Columns and constraints of the table."""
    assert drop._reverse is not None
    return drop._reverse.columns


def _foreign_keys(drop: DropTableOp) -> list[ForeignKeyConstraint]:
    return [each for each in _comes_back(drop) if isinstance(each, ForeignKeyConstraint)]


def _without_foreign_key(drop: DropTableOp, key: ForeignKeyConstraint) -> MigrateOperation:
    """A foreign key of a circle, dropped by itself, and left out when its table comes back."""
    assert drop._reverse is not None
    drop._reverse.columns = [each for each in _comes_back(drop) if each is not key]
    return DropConstraintOp.from_constraint(key)
