"""What a database holds, read from the server's own catalog: tables, columns, constraints, indexes.

The server's spelling makes two definitions comparable, whoever wrote them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, text

# Of one schema, left by a CREATE INDEX CONCURRENTLY that did not end, and not being built now.
INVALID_INDEXES = (
    "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relnamespace = to_regnamespace(:schema)"
    " AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = c.oid)"
)


class Table(NamedTuple):
    """A table, partitioned table or materialized view."""

    schema: str
    name: str


class Column(NamedTuple):
    """A column; `default` is an expression, `identity` and `generated` are the server's letters."""

    name: str
    type: str
    required: bool
    default: str | None
    identity: str
    generated: str


class Constraint(NamedTuple):
    """A constraint; `kind`: p(rimary key), u(nique), f(oreign key), c(heck), x (exclusion)."""

    table: int
    name: str
    kind: str
    valid: bool
    definition: str


class Index(NamedTuple):
    """An index that backs no constraint; the definition leaves out its name."""

    table: int
    name: str
    definition: str


class EnumType(NamedTuple):
    """A native enum."""

    schema: str
    name: str
    labels: tuple[str, ...]


Part = TypeVar("Part", Constraint, Index)


@dataclass
class Catalog:
    """All by object id, which a rename does not change; columns by their table's id and number."""

    schemas: dict[int, str]
    tables: dict[int, Table]
    columns: dict[int, dict[int, Column]]
    constraints: dict[int, Constraint]
    indexes: dict[int, Index]
    enums: dict[int, EnumType]

    def table_id(self, name: str, *schemas: str) -> int | None:
        """The table of that name in the first of the schemas that has one."""
        found = (self._ids.get(Table(schema, name)) for schema in schemas)
        return next((oid for oid in found if oid is not None), None)

    def columns_of(self, table: int | None) -> dict[str, Column]:
        """The columns of a table by name."""
        numbered = {} if table is None else self.columns.get(table, {})
        return {column.name: column for column in numbered.values()}

    def constraints_of(self, table: int | None) -> list[Constraint]:
        """The constraints of a table."""
        return self._constraints_by_table.get(table, [])

    def primary_key_of(self, table: int | None) -> str:
        """The definition of a table's primary key, empty without one."""
        keys = (each.definition for each in self.constraints_of(table) if each.kind == "p")
        return next(keys, "")

    def by_names(self) -> set[Any]:
        """What it says, whatever the object ids, and whether constraints are valid or not."""
        names = {oid: table.name for oid, table in self.tables.items()}
        columns = {(names[oid], it) for oid, each in self.columns.items() for it in each.values()}
        constraints = {
            (names[it.table], it.name, it.kind, it.definition) for it in self.constraints.values()
        }
        indexes = {(names[it.table], it.name, it.definition) for it in self.indexes.values()}
        enums = {(it.name, it.labels) for it in self.enums.values()}
        return {*names.values(), *columns, *constraints, *indexes, *enums}

    def only(self, tables: Iterable[int]) -> "Catalog":
        """What it says of these tables."""
        chosen = {*tables}
        return Catalog(
            self.schemas,
            {oid: self.tables[oid] for oid in chosen & self.tables.keys()},
            {oid: self.columns[oid] for oid in chosen & self.columns.keys()},
            {oid: each for oid, each in self.constraints.items() if each.table in chosen},
            {oid: each for oid, each in self.indexes.items() if each.table in chosen},
            self.enums,
        )

    def replacing(self, tables: Iterable[int], now: "Catalog") -> "Catalog":
        """The same with what `now` says of these tables."""
        rest = self.only(self.tables.keys() - {*tables})
        return Catalog(
            self.schemas,
            rest.tables | now.tables,
            rest.columns | now.columns,
            rest.constraints | now.constraints,
            rest.indexes | now.indexes,
            self.enums,
        )

    def indexes_of(self, table: int | None) -> list[Index]:
        """The indexes of a table that back no constraint."""
        return self._indexes_by_table.get(table, [])

    @cached_property
    def _ids(self) -> dict[Table, int]:
        return {table: oid for oid, table in self.tables.items()}

    @cached_property
    def _constraints_by_table(self) -> dict[int | None, list[Constraint]]:
        return _by_table(self.constraints.values())

    @cached_property
    def _indexes_by_table(self) -> dict[int | None, list[Index]]:
        return _by_table(self.indexes.values())


def read(connection: Connection, *schemas: str, tables: Iterable[int] | None = None) -> Catalog:
    """Read the catalog of these schemas, or no more than what it says of `tables`."""
    parameters = {"schemas": list(schemas), "tables": list(tables or [])}

    def rows(query: str, table: str = "") -> list[tuple]:  # type: ignore[type-arg]
        chosen = f" AND {table} = ANY(:tables)" if table and tables is not None else ""
        ours = text(f"{query} n.nspname = ANY(:schemas){chosen}")
        return [tuple(row) for row in connection.execute(ours, parameters)]

    columns: dict[int, dict[int, Column]] = {}
    for table, number, name, type_, required, default, *letters in rows(
        "SELECT a.attrelid, a.attnum, a.attname,"
        " concat(format_type(a.atttypid, a.atttypmod),"
        " (SELECT ' COLLATE ' || l.collname FROM pg_collation l JOIN pg_type t"
        " ON t.oid = a.atttypid WHERE l.oid = a.attcollation"
        " AND a.attcollation <> t.typcollation)),"
        " a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated"
        " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)"
        " WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'm') AND",
        "c.oid",
    ):
        plain = default and _plain(default)
        columns.setdefault(table, {})[number] = Column(
            name, _plain(type_), required, plain, *letters
        )
    return Catalog(
        schemas=dict(rows("SELECT n.oid, n.nspname FROM pg_namespace n WHERE")),
        tables={
            oid: Table(*rest)
            for oid, *rest in rows(
                "SELECT c.oid, n.nspname, c.relname FROM pg_class c"
                " JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE c.relkind IN ('r', 'p', 'm') AND",
                "c.oid",
            )
        },
        columns=columns,
        constraints={
            oid: Constraint(table, name, kind, valid, _plain(definition).removesuffix(" NOT VALID"))
            for oid, table, name, kind, valid, definition in rows(
                "SELECT k.oid, k.conrelid, k.conname, k.contype, k.convalidated,"
                " pg_get_constraintdef(k.oid) FROM pg_constraint k"
                " JOIN pg_namespace n ON n.oid = k.connamespace"
                " WHERE k.conrelid <> 0 AND k.contype IN ('p', 'u', 'f', 'c', 'x') AND",
                "k.conrelid",
            )
        },
        indexes={
            oid: Index(table, name, re.sub(r" INDEX \S+ ON ", " INDEX ON ", _plain(definition)))
            for oid, table, name, definition in rows(
                "SELECT i.indexrelid, i.indrelid, c.relname,"
                " pg_get_indexdef(i.indexrelid)"
                " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
                " JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid"
                " AND k.contype IN ('p', 'u', 'x')) AND",
                "i.indrelid",
            )
        },
        enums={
            oid: EnumType(schema, name, tuple(labels))
            for oid, schema, name, labels in rows(
                "SELECT t.oid, n.nspname, t.typname, ARRAY(SELECT e.enumlabel::text FROM pg_enum e"
                " WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) FROM pg_type t"
                " JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype = 'e' AND"
            )
        },
    )


def _by_table(items: Iterable[Part]) -> dict[int | None, list[Part]]:
    found: dict[int | None, list[Part]] = {}
    for item in items:
        found.setdefault(item.table, []).append(item)
    return found


@lru_cache(10_000)  # the same types and defaults come again and again
def _plain(definition: str | None) -> str:
    """Without schema names and sequence names, which differ where nothing else does."""
    plain = re.sub(r'(?:"[^"]+"|\b[a-z_]\w*)\.(?=[a-z_"])', "", definition or "")
    return re.sub(r"nextval\('[^']+'", "nextval(''", plain)
