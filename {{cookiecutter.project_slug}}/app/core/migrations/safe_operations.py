"""The safe form of Alembic's operations, for tables that may have many rows.

Tables that the same change creates are empty: what happens to them stays plain. For all others
1. the change itself, where new constraints are NOT VALID; 2. indexes, CONCURRENTLY, outside of a
transaction; 3. VALIDATE and what follows from it. Each is a revision of its own, so that a step
that fails, on bad data for example, can be run again alone.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op
from alembic.migration import MigrationContext
from alembic.operations import ops
from alembic.operations.ops import MigrateOperation
from alembic.util import CommandError
from sqlalchemy import ForeignKeyConstraint
from sqlalchemy.sql.elements import conv

from app.core.database import quote
from app.core.safety.catalog import Catalog

LONGEST_NAME = 63


class OutsideTransaction(MigrateOperation):
    """Operations in an autocommit_block(), written so that they can be run again."""

    def __init__(self, ups: list[MigrateOperation], downs: list[MigrateOperation]) -> None:
        self.ups, self.downs = ups, downs

    def reverse(self) -> "OutsideTransaction":
        """The way back."""
        return OutsideTransaction(self.downs, self.ups)


class ReversibleSQL(ops.ExecuteSQLOp):
    """A statement, and how to undo it; None where there is nothing to undo."""

    def __init__(self, statement: str, opposite: str | None = None) -> None:
        super().__init__(statement)
        self.opposite = opposite

    def reverse(self) -> MigrateOperation:
        """The way back."""
        assert self.opposite is not None
        return ReversibleSQL(self.opposite)


def source(migration: MigrationContext, operation: Any) -> str:
    """The operation as the revision file will have it, with what it imports."""
    rendering = AutogenContext(migration, autogenerate=False)
    lines = [line for line in render_op(rendering, operation) if line]
    return "\n".join([*sorted(rendering.imports), *lines])


@renderers.dispatch_for(OutsideTransaction)
def _render_outside_transaction(context: AutogenContext, block: OutsideTransaction) -> str:
    lines = [line for each in block.ups for line in render_op(context, each)]
    body = "\n".join(lines).replace("\n", "\n    ")
    return f"with op.get_context().autocommit_block():\n    {body}"


@renderers.dispatch_for(ReversibleSQL)
def _render_sql(_context: AutogenContext, statement: ReversibleSQL) -> str:
    return f"op.execute({str(statement.sqltext)!r})"


@dataclass
class Steps:
    """The operations of a change, by the revision that they belong to."""

    change: list[Any] = field(default_factory=list)
    indexes: list[Any] = field(default_factory=list)
    indexes_back: list[Any] = field(default_factory=list)
    validation: list[Any] = field(default_factory=list)

    def revisions(self) -> list[tuple[str, list[Any]]]:
        """What is not empty, with a word for the message."""
        block = [OutsideTransaction(self.indexes, self.indexes_back)] if self.indexes else []
        found = [("", self.change), ("indexes", block), ("validate", self.validation)]
        return [(word, operations) for word, operations in found if operations]


def steps(upgrade: ops.UpgradeOps, database: Catalog, schema: str) -> Steps:
    """Sort Alembic's operations into the steps, in the form that is safe for tables with rows."""
    flat = [*_flat(upgrade)]
    created = {each.table_name for each in flat if isinstance(each, ops.CreateTableOp)}
    dropped: set[tuple[str, str | None]] = {
        (each.table_name, each.column_name) for each in flat if isinstance(each, ops.DropColumnOp)
    } | {(each.table_name, None) for each in flat if isinstance(each, ops.DropTableOp)}
    result = Steps()
    for each in [*flat, *_cyclic_foreign_keys(flat)]:
        _refuse_long_names(each)
        table: str = getattr(each, "source_table", "") or getattr(each, "table_name", "")
        if table in created:
            each = _without_concurrently(each)
            result.change.append(each)
            continue
        match each:
            case ops.CreateIndexOp():
                _build_index(result, each)
            case ops.DropIndexOp() if not _goes_with(each, dropped):
                _drop_index(result, each)
            case ops.CreateUniqueConstraintOp():
                _add_unique(result, each)
            case ops.CreateForeignKeyOp() | ops.CreateCheckConstraintOp():
                each.kw["postgresql_not_valid"] = True
                result.change.append(each)
                name = quote(str(each.constraint_name))
                statement = f"ALTER TABLE {quote(table)} VALIDATE CONSTRAINT {name}"
                result.validation.insert(0, ReversibleSQL(statement))
            case ops.AlterColumnOp(modify_nullable=False):
                oid = database.table_id(table, schema)
                proof = f"CHECK (({quote(each.column_name)} IS NOT NULL))"
                if any(k.valid and k.definition == proof for k in database.constraints_of(oid)):
                    result.change.append(each)
                else:
                    _set_not_null(result, each)
            case _:
                result.change.append(each)
    return result


def undone(operations: list[Any]) -> list[Any]:
    """The way back, in the opposite order."""
    return [
        each.reverse()
        for each in reversed(operations)
        if not (isinstance(each, ReversibleSQL) and each.opposite is None)
    ]


def let_go(names: set[str], database: Catalog, schema: str) -> Iterator[Any]:
    """Let rows come without the columns that the models no longer fill."""
    for name in sorted(names):
        table, column = name.split(".")
        found = database.columns_of(database.table_id(table, schema)).get(column)
        if found is not None and found.required and found.default is None:
            start = f"ALTER TABLE {quote(table)} ALTER COLUMN {quote(column)}"
            yield ReversibleSQL(f"{start} DROP NOT NULL", f"{start} SET NOT NULL")


def _flat(upgrade: ops.OpContainer) -> Iterator[Any]:
    for each in upgrade.ops:
        if isinstance(each, ops.ModifyTableOps):
            yield from _flat(each)
        else:
            yield each


def _cyclic_foreign_keys(flat: list[Any]) -> list[Any]:
    """Foreign keys of new tables to tables that come later, taken out of their CREATE TABLE."""
    found = []
    there: set[str] = set()
    created = {each.table_name for each in flat if isinstance(each, ops.CreateTableOp)}
    for each in flat:
        if not isinstance(each, ops.CreateTableOp):
            continue
        there.add(each.table_name)
        for key in [item for item in each.columns if isinstance(item, ForeignKeyConstraint)]:
            refers_to = key.elements[0].target_fullname.rsplit(".", 1)[0]
            if key.use_alter or refers_to in created - there:
                each.columns = [item for item in each.columns if item is not key]
                foreign_key = ops.CreateForeignKeyOp.from_constraint(key)
                foreign_key.kw.pop("use_alter", None)
                found.append(foreign_key)
    return found


def _refuse_long_names(operation: Any) -> None:
    names = [getattr(operation, "constraint_name", None), getattr(operation, "index_name", None)]
    for name in names:
        if isinstance(name, str) and len(name) > LONGEST_NAME and not _drops(operation):
            raise CommandError(
                f"{name} is longer than the {LONGEST_NAME} characters that PostgreSQL keeps of a "
                'name. Give it a shorter one in __table_args__: UniqueConstraint(…, name="…"), '
                'ForeignKeyConstraint(…, name="…"), CheckConstraint(…, name="…"), Index("…", …).'
            )


def _drops(operation: Any) -> bool:
    return isinstance(operation, ops.DropConstraintOp | ops.DropIndexOp)


def _without_concurrently(operation: Any) -> Any:
    getattr(operation, "kw", {}).pop("postgresql_concurrently", None)
    return operation


def _goes_with(drop: ops.DropIndexOp, dropped: set[tuple[str, str | None]]) -> bool:
    columns = [column.name for column in drop.to_index().columns]
    return any((drop.table_name, name) in dropped for name in [None, *columns])


def _build_index(result: Steps, create: ops.CreateIndexOp) -> None:
    create.kw["postgresql_concurrently"] = True
    drop = _drop_concurrently(create.index_name, create.table_name)
    earlier = [
        each
        for each in result.indexes
        if isinstance(each, ops.DropIndexOp) and each.index_name == create.index_name
    ]
    if not earlier:
        result.indexes.append(drop)
        result.indexes_back.insert(0, drop)
    result.indexes.append(create)


def _drop_index(result: Steps, drop: ops.DropIndexOp) -> None:
    create = drop.reverse()
    create.kw["postgresql_concurrently"] = True
    again = _drop_concurrently(drop.index_name, drop.table_name)
    result.indexes.append(again)
    result.indexes_back[:0] = [again, create]


def _drop_concurrently(name: Any, table: str | None) -> ops.DropIndexOp:
    return ops.DropIndexOp(name, table, if_exists=True, postgresql_concurrently=True)


def _add_unique(result: Steps, add: ops.CreateUniqueConstraintOp) -> None:
    kw = {name: value for name, value in add.kw.items() if name.startswith("postgresql_")}
    name: Any = add.constraint_name
    index = ops.CreateIndexOp(name, add.table_name, [*add.columns], unique=True, **kw)
    _build_index(result, index)
    table, quoted = quote(add.table_name), quote(str(name))
    statement = f"ALTER TABLE {table} ADD CONSTRAINT {quoted} UNIQUE USING INDEX {quoted}"
    if add.kw.get("deferrable"):
        statement += " DEFERRABLE"
    if add.kw.get("initially"):
        statement += f" INITIALLY {add.kw['initially']}"
    undo = f"ALTER TABLE {table} DROP CONSTRAINT {quoted}"
    result.validation.append(ReversibleSQL(statement, undo))


def _set_not_null(result: Steps, alter: ops.AlterColumnOp) -> None:
    table, column = alter.table_name, alter.column_name
    others = (alter.modify_type, alter.modify_name)
    if any(each is not None for each in others) or alter.modify_server_default is not False:
        rest = ops.AlterColumnOp(
            table,
            column,
            existing_type=alter.existing_type,
            existing_nullable=True,
            existing_server_default=alter.existing_server_default,
            modify_type=alter.modify_type,
            modify_server_default=alter.modify_server_default,
            modify_name=alter.modify_name,
        )
        result.change.append(rest)
    name = conv(f"ck_{table}_{column}_not_null")
    if len(name) > LONGEST_NAME:
        name = conv(f"{name[:44]}_{zlib.crc32(name.encode()):08x}_not_null")
    condition = f"{quote(column)} IS NOT NULL"
    check = ops.CreateCheckConstraintOp(name, table, condition, postgresql_not_valid=True)
    result.change.append(check)
    start = f"ALTER TABLE {quote(table)}"
    result.validation.insert(0, ReversibleSQL(f"{start} VALIDATE CONSTRAINT {quote(name)}"))
    set_it, undo = (
        f"{start} ALTER COLUMN {quote(column)} {what} NOT NULL" for what in ("SET", "DROP")
    )
    result.validation.append(ReversibleSQL(set_it, undo))
    drop = f"{start} DROP CONSTRAINT {quote(name)}"
    add = f"{start} ADD CONSTRAINT {quote(name)} CHECK ({condition}) NOT VALID"
    result.validation.append(ReversibleSQL(drop, add))
