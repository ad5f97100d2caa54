"""Where models and database differ, in sentences: for `flask db check` and `flask doctor`.

`between` finds what Alembic does not see: it compares the server's spelling of both.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from alembic.operations import ops

from app.core.migrations.types import spelled
from app.core.safety.catalog import Catalog
from app.core.safety.hazards import Hazard


class Difference(NamedTuple):
    """One that Alembic did not see.

    `kind` is column, index, enum, or the server's letter for a constraint: p(rimary key),
    u(nique), f(oreign key), c(heck), x (exclusion). An empty text: not there.
    """

    kind: str
    table: str
    item: str
    wanted: str
    found: str

    def __str__(self) -> str:
        where = f"{self.table}.{self.item}" if self.table else f"enum {self.item}"
        if self.kind == "p":
            where = f"the primary key of {self.table}"
        models, database = self.wanted or "nothing of the kind", self.found or "nothing of the kind"
        return f"{where}: the models say {models}, the database has {database}"

    def hazard(self) -> Hazard:
        """A primary key is asked about; of the others nobody knows how to write the change."""
        if self.kind == "p":
            detail = f": {self.found or 'none'} becomes {self.wanted}"
            return Hazard("primary-key", self.table, detail=detail)
        if self.kind == "enum":
            detail = f" with the values {self.wanted}, where the database has {self.found}"
            return Hazard("enum-values", item=self.item, detail=detail)
        wanted, found = self.wanted or "that it is not there", self.found or "nothing of the kind"
        detail = f"{wanted}; after this change the database has {found}"
        return Hazard("unseen-change", self.table, self.item, detail)


def between(models: Catalog, there: Catalog, *schemas: str) -> Iterator[Difference]:
    """What the models would build otherwise than it is in the first of the schemas that has it."""
    for oid, table in models.tables.items():
        found = there.table_id(table.name, *schemas)
        if found is not None:
            yield from _columns(table.name, models.columns_of(oid), there.columns_of(found))
            yield from _constraints(table.name, oid, found, models, there)
            yield from _indexes(table.name, oid, found, models, there)
    for enum in models.enums.values():
        same = [each.labels for each in there.enums.values() if each.name == enum.name]
        if same and enum.labels not in same:
            yield Difference("enum", "", enum.name, ", ".join(enum.labels), ", ".join(same[0]))


def seen(operations: list[Any]) -> set[tuple[str, str]]:
    """The places, by table and item, that Alembic's operations change."""
    places = set()
    for each in operations:
        table = _table(each)
        for name in ("column_name", "constraint_name", "index_name"):
            places.add((table, str(getattr(each, name, ""))))
    return places


def retyped(operations: list[Any]) -> set[str]:
    """The tables with a column that changes its type, after which other spellings change, too."""
    return {
        each.table_name
        for each in operations
        if isinstance(each, ops.AlterColumnOp) and each.modify_type is not None
    }


def sentences(operations: list[Any]) -> Iterator[str]:
    """Alembic's operations as what differs now."""
    for each in operations:
        yield from _sentences(each)


def _sentences(operation: Any) -> Iterator[str]:
    table = _table(operation)
    name = getattr(operation, "constraint_name", None) or getattr(operation, "index_name", None)
    only_models, only_database = "is not in the database", "is not in the models"
    match operation:
        case ops.CreateTableOp():
            yield f"table {table} {only_models}"
        case ops.DropTableOp():
            yield f"table {table} {only_database}"
        case ops.AddColumnOp():
            yield f"column {table}.{operation.column.name} {only_models}"
        case ops.DropColumnOp():
            yield f"column {table}.{operation.column_name} {only_database}"
        case ops.CreateIndexOp() | ops.AddConstraintOp():
            yield f"{name} of {table} {only_models}, or not like this"
        case ops.DropIndexOp() | ops.DropConstraintOp():
            yield f"{name} of {table} {only_database}, or not like this"
        case ops.AlterColumnOp():
            yield from _alterations(f"column {table}.{operation.column_name}", operation)
        case ops.CreateTableCommentOp() | ops.DropTableCommentOp():
            yield f"the comment of table {table} differs"


def _table(operation: Any) -> str:
    return str(getattr(operation, "source_table", "") or getattr(operation, "table_name", ""))


def _alterations(column: str, alter: ops.AlterColumnOp) -> Iterator[str]:
    if alter.modify_type is not None and alter.existing_type is not None:
        was = spelled(alter.existing_type)
        yield f"{column} is {spelled(alter.modify_type)} in the models, {was} in the database"
    if alter.modify_nullable is not None:
        words = ("optional", "required") if alter.modify_nullable else ("required", "optional")
        yield f"{column} is {words[0]} in the models, {words[1]} in the database"
    if alter.modify_server_default is not False:
        yield f"{column} has another server default in the models than in the database"
    if alter.modify_comment is not False:
        yield f"{column} has another comment in the models than in the database"


def _columns(table: str, wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[Difference]:
    for name in wanted.keys() & found.keys():
        # Which column counts by itself is a matter of the primary key.
        if "nextval(" in (found[name].default or "") and wanted[name].default is None:
            continue
        differing = [
            what
            for what, value in wanted[name]._asdict().items()
            if value != getattr(found[name], what)
        ]
        if differing:
            both = [
                ", ".join(f"{what} {getattr(column, what)!r}" for what in differing)
                for column in (wanted[name], found[name])
            ]
            yield Difference("column", table, name, *both)


def _constraints(
    table: str, oid: int, there: int, models: Catalog, now: Catalog
) -> Iterator[Difference]:
    wanted, found = models.constraints_of(oid), now.constraints_of(there)
    have = {each.definition for each in found}
    named = {each.name: each.definition for each in found}
    for each in wanted:
        if each.definition not in have:
            was = now.primary_key_of(there) if each.kind == "p" else named.get(each.name, "")
            yield Difference(each.kind, table, each.name, each.definition, was)
    names = {each.name for each in wanted}
    says = {each.definition for each in wanted}
    for each in found:
        if each.kind == "x" and each.definition not in says and each.name not in names:
            yield Difference("x", table, each.name, "", each.definition)


def _indexes(
    table: str, oid: int, there: int, models: Catalog, now: Catalog
) -> Iterator[Difference]:
    found = {each.definition: each.name for each in now.indexes_of(there)}
    named = {name: definition for definition, name in found.items()}
    for each in models.indexes_of(oid):
        if each.definition not in found:
            was = named.get(each.name, "")
            yield Difference("index", table, each.name, each.definition, was)
