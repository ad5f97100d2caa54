"""Changes of a column's type that bring old values along, and native enums."""

import re
from collections.abc import Iterable, Iterator
from copy import copy
from typing import Any

from alembic.operations import ops
from sqlalchemy import ARRAY, Column, Date, DateTime, Enum, String
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ENUM
from sqlalchemy.types import TypeEngine

from app.core.database import quote
from app.core.migrations.reversible import AlterWithCast, InOrder, ReversibleSQL
from app.core.safety.hazards import Hazard

# The time zone in which old values without one are read.
ZONE = "UTC"


def altered(alter: ops.AlterColumnOp) -> list[Any]:
    """The change of one column; old values and the default are brought to the new type."""
    if alter.modify_type is None:
        return [alter]
    up = _using(alter.column_name, alter.existing_type, alter.modify_type)
    down = _using(alter.column_name, alter.modify_type, alter.existing_type)
    if up is None or down is None:
        return [alter]
    forth, back = copy(alter), alter.reverse()
    had, has = alter.existing_server_default, alter.modify_server_default
    has = had if has is False else has
    ups, downs = [AlterWithCast(forth, up)], [AlterWithCast(back, down)]
    if not had and not has:
        return [InOrder(ups, downs)]
    # A default of another type does not follow by itself.
    for each in (forth, back):
        each.existing_server_default = each.modify_server_default = False
    drop = _default(alter, None)
    return [InOrder([drop, *ups, _default(alter, has)], [drop, *downs, _default(alter, had)])]


def name_the_zone(hazard: Hazard, operations: Iterable[Any]) -> Hazard:
    """The hazard, which says how old values are read where a time zone comes in or goes."""
    parts = [part for each in operations if isinstance(each, InOrder) for part in each.ups]
    for part in parts:
        if not isinstance(part, AlterWithCast) or "AT TIME ZONE" not in part.using:
            continue
        if (hazard.table, hazard.item) == (part.alter.table_name, part.alter.column_name):
            detail = f"{hazard.detail} (values without a zone are read as {ZONE}: {part.using})"
            return Hazard(hazard.name, hazard.table, hazard.item, detail)
    return hazard


def new_enums(
    operations: Iterable[Any], existing: set[str]
) -> Iterator[tuple[Hazard, ReversibleSQL]]:
    """The native enums that the operations need and the schema lacks, each with its CREATE TYPE.

    The operations are changed: their columns name a type that exists.
    """
    for operation in operations:
        for table, column, enum in _native_enums(operation):
            name = str(enum.name)
            if name not in existing:
                existing.add(name)
                labels = ", ".join("'" + label.replace("'", "''") + "'" for label in enum.enums)
                create = f"CREATE TYPE {quote(name)} AS ENUM ({labels})"
                yield (
                    Hazard("native-enum", table, column),
                    ReversibleSQL(create, f"DROP TYPE {quote(name)}"),
                )


def _native_enums(operation: Any) -> Iterator[tuple[str, str, Enum]]:
    """The native enums that an operation brings, by table and column."""
    match operation:
        case ops.AlterColumnOp():
            _, operation.existing_type = _named(operation.existing_type)
            enum, operation.modify_type = _named(operation.modify_type)
            if enum is not None:
                yield operation.table_name, operation.column_name, enum
        case ops.CreateTableOp():
            items = [*operation.columns]
            for number, item in enumerate(items):
                if isinstance(item, Column):
                    enum, items[number] = _naming(item)
                    if enum is not None:
                        yield operation.table_name, item.name, enum
            operation.columns = items
        case ops.AddColumnOp():
            enum, operation.column = _naming(operation.column)
            if enum is not None:
                yield operation.table_name, operation.column.name, enum
        case ops.DropTableOp() | ops.DropColumnOp() if operation._reverse is not None:
            # The type stays, and is there when the column comes back.
            for _ in _native_enums(operation._reverse):
                pass


def _naming(column: Column[Any]) -> tuple[Enum | None, Column[Any]]:
    """The native enum of a column, and a column of a type that exists; a model's stays as it is."""
    enum, type_ = _named(column.type)
    if enum is None:
        return None, column
    changed = column._copy()
    changed.type = type_
    return enum, changed


def _named(type_: Any) -> tuple[Enum | None, Any]:
    if isinstance(type_, ARRAY):
        enum, item = _named(type_.item_type)
        return (None, type_) if enum is None else (enum, postgresql.ARRAY(item))
    if not isinstance(type_, Enum) or not type_.native_enum:
        return None, type_
    return type_, ENUM(*type_.enums, name=str(type_.name), create_type=False)


def _default(alter: ops.AlterColumnOp, default: Any) -> ops.AlterColumnOp:
    return ops.AlterColumnOp(
        alter.table_name, alter.column_name, modify_server_default=default or None
    )


def _using(column: str, old: Any, new: Any) -> str | None:
    """How an old value becomes a new one; None where PostgreSQL does it by itself."""
    name, zone = quote(column), f"AT TIME ZONE '{ZONE}'"
    was, becomes = _family(old), _family(new)
    if was == becomes:
        return None
    zones = [isinstance(each, DateTime) and each.timezone for each in (old, new)]
    moments = [isinstance(each, DateTime | Date) for each in (old, new)]
    if all(moments) and zones[0] != zones[1]:
        if not isinstance(old, DateTime):
            return f"{name}::timestamp {zone}"
        return f"{name} {zone}" if isinstance(new, DateTime) else f"({name} {zone})::date"
    return f"{name}::{becomes}"


def _family(type_: TypeEngine[Any]) -> str:
    """The type without its length: a cast to one with a length would cut what is too long."""
    text = isinstance(type_, String) and (not isinstance(type_, Enum) or not type_.native_enum)
    return "text" if text else re.sub(r"\([\d, ]+\)", "", spelled(type_))


def spelled(type_: TypeEngine[Any]) -> str:
    """The type as SQL."""
    return str(type_.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
