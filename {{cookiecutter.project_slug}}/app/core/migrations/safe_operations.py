"""The safe form of Alembic's operations, for tables that may have many rows.

Tables that the same change creates are empty: what happens to them stays plain. For all others
1. a look at the rows, and the change itself, where new constraints are NOT VALID; 2. indexes,
CONCURRENTLY, outside of a transaction; 3. VALIDATE and what follows from it. Each is a revision of
its own, so that a step that fails, on bad data for example, can be run again alone.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from alembic.operations import ops
from alembic.util import CommandError
from sqlalchemy import ForeignKeyConstraint
from sqlalchemy.sql.elements import conv

from app.core.database import quote
from app.core.migrations import looks, types
from app.core.migrations.reversible import InOrder, Look, OutsideTransaction, ReversibleSQL
from app.core.safety.catalog import Catalog

LONGEST_NAME = 63


@dataclass
class Steps:
    """The operations of a change, by the revision that they belong to."""

    database: Catalog
    schema: str
    looks: list[Look] = field(default_factory=list)
    change: list[Any] = field(default_factory=list)
    indexes: list[Any] = field(default_factory=list)
    indexes_back: list[Any] = field(default_factory=list)
    validation: list[Any] = field(default_factory=list)
    # What has to wait for the new primary key.
    afterwards: list[Any] = field(default_factory=list)
    # What this change itself creates, and what it drops; a whole table stands as (table, None).
    created: set[tuple[str, str | None]] = field(default_factory=set)
    dropped: set[tuple[str, str | None]] = field(default_factory=set)

    def revisions(self) -> list[tuple[str, list[Any]]]:
        """What is not empty, with a word for the message; the looks come first of all."""
        block = [OutsideTransaction(self.indexes, self.indexes_back)] if self.indexes else []
        last = [*self.validation, *self.afterwards]
        found = [("", self.change), ("indexes", block), ("validate", last)]
        parts = [(word, operations) for word, operations in found if operations]
        if parts:
            word, operations = parts[0]
            parts[0] = word, [*self.looks, *operations]
        return parts

    def add(self, operations: Iterable[Any]) -> None:
        """Sort operations into the steps, in the form that is safe for tables with rows."""
        flat = [*operations]
        self.created |= {place for each in flat for place in _creates(each)}
        self.dropped |= {place for each in flat for place in _drops(each)}
        for each in [*flat, *_cyclic_foreign_keys(flat)]:
            refuse_long_names(each)
            if (_table(each), None) in self.created:
                self.change.append(_without_concurrently(each))
            else:
                self._add(each)

    def look(self, look: Look, columns: Iterable[str]) -> None:
        """Look at the rows first; no look where this change adds a column, which is empty."""
        if not {(look.table, each) for each in columns} & self.created:
            self.looks.append(look)

    def replace_index(self, create: ops.CreateIndexOp, was: str) -> None:
        """Rebuild an index under the same name; `was` is its present definition."""
        build = was.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
        drop = _drop_concurrently(create.index_name, create.table_name)
        create.kw["postgresql_concurrently"] = True
        self.indexes += [drop, create]
        self.indexes_back[:0] = [drop, ReversibleSQL(build)]

    def change_primary_key(
        self, table: str, new: tuple[str, list[str]], old: tuple[str | None, list[str]]
    ) -> None:
        """Build the new key's index next to the old one, then swap the two in an instant."""
        (name, columns), (old_name, old_columns) = new, old
        fresh = _unique_index(shortened(f"{name}_new"), table, columns)
        _build_index(self, fresh)
        self.look(looks.unique(name, table, columns), columns)
        start = f"ALTER TABLE {quote(table)}"
        forth: list[Any] = []
        back: list[Any] = [build_again(shortened(f"{name}_rebuilt"), fresh)]
        if old_name is not None:
            former = _unique_index(shortened(f"{old_name}_old"), table, old_columns)
            back.append(build_again(str(former.index_name), former))
            forth.append(ReversibleSQL(f"{start} DROP CONSTRAINT {quote(old_name)}"))
        forth.append(ReversibleSQL(_primary_key(table, name, str(fresh.index_name))))
        back.append(ReversibleSQL(f"{start} DROP CONSTRAINT {quote(name)}"))
        if old_name is not None:
            back.append(ReversibleSQL(_primary_key(table, old_name, str(former.index_name))))
        rebuilt, index = quote(shortened(f"{name}_rebuilt")), quote(str(fresh.index_name))
        back.append(ReversibleSQL(f"ALTER INDEX {rebuilt} RENAME TO {index}"))
        self.validation.append(InOrder(forth, back))

    def _add(self, operation: Any) -> None:
        match operation:
            case ops.CreateIndexOp():
                _build_index(self, operation)
                if operation.unique:
                    _look_for_duplicates(self, operation)
            case ops.DropIndexOp() if not _goes_with(operation, self.dropped):
                _drop_index(self, operation)
            case ops.CreateUniqueConstraintOp():
                _add_unique(self, operation)
            case ops.CreateForeignKeyOp():
                referred = [None, *operation.remote_cols]
                is_new = any((operation.referent_table, each) in self.created for each in referred)
                look = looks.foreign_key(operation, referred_is_new=is_new)
                self.look(look, operation.local_cols)
                _add_not_valid(self, operation)
            case ops.CreateCheckConstraintOp():
                self.look(looks.check(operation), _columns_named(operation, self))
                _add_not_valid(self, operation)
            case ops.AlterColumnOp():
                _alter_column(self, operation)
            case _:
                self.change.append(operation)


def flat(upgrade: ops.OpContainer) -> Iterator[Any]:
    """Alembic's operations without the groups by table."""
    for each in upgrade.ops:
        if isinstance(each, ops.ModifyTableOps):
            yield from flat(each)
        else:
            yield each


def let_go(names: set[str], database: Catalog, schema: str) -> Iterator[Any]:
    """Accept rows without a value in the columns that the models no longer fill."""
    for name in sorted(names):
        table, _, column = name.partition(".")
        found = database.columns_of(database.table_id(table, schema)).get(column)
        if found is not None and found.required and found.default is None:
            start = f"ALTER TABLE {quote(table)} ALTER COLUMN {quote(column)}"
            yield ReversibleSQL(f"{start} DROP NOT NULL", f"{start} SET NOT NULL")


def shortened(name: str) -> str:
    """The name, or where PostgreSQL would cut it one that is as unique and fits."""
    if len(name.encode()) <= LONGEST_NAME:
        return conv(name)
    beginning = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return conv(f"{beginning}_{zlib.crc32(name.encode()):08x}")


def build_again(name: str, create: ops.CreateIndexOp) -> OutsideTransaction:
    """An index like `create`, under another name, built next to it while everybody works."""
    again = copy(create)
    again.index_name = name
    again.kw = create.kw | {"postgresql_concurrently": True}
    return OutsideTransaction([_drop_concurrently(name, create.table_name), again], [])


def refuse_long_names(operation: Any) -> None:
    """PostgreSQL would cut them, and nothing would find them again: `CommandError`."""
    names = [getattr(operation, "constraint_name", None), getattr(operation, "index_name", None)]
    drops = isinstance(operation, ops.DropConstraintOp | ops.DropIndexOp)
    for name in names:
        if isinstance(name, str) and len(name.encode()) > LONGEST_NAME and not drops:
            raise CommandError(
                f"{name} is longer than the {LONGEST_NAME} bytes that PostgreSQL keeps of a "
                'name. Give it a shorter one in __table_args__: UniqueConstraint(…, name="…"), '
                'ForeignKeyConstraint(…, name="…"), CheckConstraint(…, name="…"), Index("…", …).'
            )


def _table(operation: Any) -> str:
    return getattr(operation, "source_table", "") or getattr(operation, "table_name", "")


def _creates(operation: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(operation, ops.CreateTableOp):
        yield operation.table_name, None
    elif isinstance(operation, ops.AddColumnOp):
        yield operation.table_name, operation.column.name


def _drops(operation: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(operation, ops.DropTableOp):
        yield operation.table_name, None
    elif isinstance(operation, ops.DropColumnOp):
        yield operation.table_name, operation.column_name


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
            if key.use_alter or referred_table(key) in created - there:
                each.columns = [item for item in each.columns if item is not key]
                foreign_key = ops.CreateForeignKeyOp.from_constraint(key)
                foreign_key.kw.pop("use_alter", None)
                found.append(foreign_key)
    return found


def referred_table(key: ForeignKeyConstraint) -> str:
    """The table that a foreign key leads to."""
    return key.elements[0].target_fullname.rsplit(".", 1)[0]


def _without_concurrently(operation: Any) -> Any:
    getattr(operation, "kw", {}).pop("postgresql_concurrently", None)
    return operation


def _goes_with(drop: ops.DropIndexOp, dropped: set[tuple[str, str | None]]) -> bool:
    """Whether the index stands on a column, or in a table, that this change drops."""
    if (drop.table_name, None) in dropped:
        return True
    index = drop.to_index()
    spelled = " ".join(looks.spelled(each) for each in index.expressions)
    spelled += looks.spelled(index.dialect_options["postgresql"]["where"] or "")
    columns = {column.name for column in index.columns}
    return any(
        column in columns or re.search(rf"\b{re.escape(column)}\b", spelled)
        for table, column in dropped
        if table == drop.table_name and column
    )


def _build_index(steps: Steps, create: ops.CreateIndexOp) -> None:
    create.kw["postgresql_concurrently"] = True
    drop = _drop_concurrently(create.index_name, create.table_name)
    earlier = [
        each
        for each in steps.indexes
        if isinstance(each, ops.DropIndexOp) and each.index_name == create.index_name
    ]
    if not earlier:
        steps.indexes.append(drop)
        steps.indexes_back.insert(0, drop)
    steps.indexes.append(create)


def _look_for_duplicates(steps: Steps, create: ops.CreateIndexOp) -> None:
    index = create.to_index()
    expressions = [getattr(each, "element", each) for each in index.expressions]
    names = [getattr(each, "name", None) or looks.spelled(each) for each in expressions]
    options = index.dialect_options["postgresql"]
    duplicates = looks.unique(
        str(create.index_name),
        create.table_name,
        expressions,
        where=options["where"],
        nulls_differ=not options["nulls_not_distinct"],
    )
    steps.look(duplicates, names)


def _drop_index(steps: Steps, drop: ops.DropIndexOp) -> None:
    create = drop.reverse()
    create.kw["postgresql_concurrently"] = True
    again = _drop_concurrently(drop.index_name, drop.table_name)
    steps.indexes.append(again)
    steps.indexes_back[:0] = [again, create]


def _drop_concurrently(name: Any, table: str | None) -> ops.DropIndexOp:
    return ops.DropIndexOp(name, table, if_exists=True, postgresql_concurrently=True)


def _unique_index(name: str, table: str, columns: list[str]) -> ops.CreateIndexOp:
    return ops.CreateIndexOp(name, table, columns, unique=True)


def _primary_key(table: str, name: str, index: str) -> str:
    start = f"ALTER TABLE {quote(table)} ADD CONSTRAINT {quote(name)}"
    return f"{start} PRIMARY KEY USING INDEX {quote(index)}"


def _add_unique(steps: Steps, add: ops.CreateUniqueConstraintOp) -> None:
    """A unique index, which then becomes the constraint; and back again, at no moment without."""
    kw = {name: value for name, value in add.kw.items() if name.startswith("postgresql_")}
    name: Any = add.constraint_name
    index = ops.CreateIndexOp(name, add.table_name, [*add.columns], unique=True, **kw)
    _build_index(steps, index)
    nulls_differ = not kw.get("postgresql_nulls_not_distinct")
    duplicates = looks.unique(str(name), add.table_name, add.columns, nulls_differ=nulls_differ)
    steps.look(duplicates, add.columns)
    table, quoted = quote(add.table_name), quote(str(name))
    statement = f"ALTER TABLE {table} ADD CONSTRAINT {quoted} UNIQUE USING INDEX {quoted}"
    if add.kw.get("deferrable"):
        statement += " DEFERRABLE"
    if add.kw.get("initially"):
        statement += f" INITIALLY {add.kw['initially']}"
    rebuilt = shortened(f"{name}_rebuilt")
    # The constraint takes its index along when it goes: the one before it is built first.
    back = [
        build_again(rebuilt, index),
        ReversibleSQL(f"ALTER TABLE {table} DROP CONSTRAINT {quoted}"),
        ReversibleSQL(f"ALTER INDEX {quote(rebuilt)} RENAME TO {quoted}"),
    ]
    steps.validation.append(InOrder([ReversibleSQL(statement)], back))


def _add_not_valid(steps: Steps, create: Any) -> None:
    create.kw["postgresql_not_valid"] = True
    steps.change.append(create)
    name = quote(str(create.constraint_name))
    statement = f"ALTER TABLE {quote(_table(create))} VALIDATE CONSTRAINT {name}"
    steps.validation.insert(0, ReversibleSQL(statement))


def _columns_named(create: ops.CreateCheckConstraintOp, steps: Steps) -> list[str]:
    """The columns added by this change that the condition speaks of."""
    words = looks.spelled(create.condition)
    added = {column for table, column in steps.created if table == create.table_name and column}
    return [each for each in added if re.search(rf"\b{re.escape(each)}\b", words)]


def _alter_column(steps: Steps, alter: ops.AlterColumnOp) -> None:
    rest = copy(alter)
    if alter.modify_nullable and _is_in_primary_key(steps, alter):
        rest.modify_nullable = None
        freed = ops.AlterColumnOp(
            alter.table_name,
            alter.column_name,
            existing_type=alter.modify_type or alter.existing_type,
            existing_nullable=False,
            modify_nullable=True,
        )
        steps.afterwards.append(freed)
    if alter.modify_nullable is False:
        rest.modify_nullable = None
        rest.existing_nullable = True
    if rest.has_changes():
        steps.change += types.altered(rest)
    if alter.modify_nullable is False:
        _set_not_null(steps, alter)


def _is_in_primary_key(steps: Steps, alter: ops.AlterColumnOp) -> bool:
    table = steps.database.table_id(alter.table_name, steps.schema)
    columns = steps.database.primary_key_of(table).removeprefix("PRIMARY KEY (").removesuffix(")")
    return quote(alter.column_name) in columns.split(", ")


def _set_not_null(steps: Steps, alter: ops.AlterColumnOp) -> None:
    table, column = alter.table_name, alter.column_name
    start = f"ALTER TABLE {quote(table)}"
    set_it, undo = (
        f"{start} ALTER COLUMN {quote(column)} {what} NOT NULL" for what in ("SET", "DROP")
    )
    oid = steps.database.table_id(table, steps.schema)
    proof = f"CHECK (({quote(column)} IS NOT NULL))"
    if any(k.valid and k.definition == proof for k in steps.database.constraints_of(oid)):
        steps.change.append(ReversibleSQL(set_it, undo))
        return
    steps.look(looks.not_null(table, column), [column])
    name = shortened(f"ck_{table}_{column}_not_null")
    condition = f"{quote(column)} IS NOT NULL"
    check = ops.CreateCheckConstraintOp(name, table, condition, postgresql_not_valid=True)
    steps.change.append(check)
    steps.validation.insert(0, ReversibleSQL(f"{start} VALIDATE CONSTRAINT {quote(name)}"))
    steps.validation.append(ReversibleSQL(set_it, undo))
    drop = f"{start} DROP CONSTRAINT {quote(name)}"
    add = f"{start} ADD CONSTRAINT {quote(name)} CHECK ({condition}) NOT VALID"
    steps.validation.append(ReversibleSQL(drop, add))
