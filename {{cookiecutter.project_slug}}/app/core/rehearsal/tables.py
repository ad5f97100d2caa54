"""The tables of the scratch database, and what a service does to each, whatever it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

SAMPLE = 1000
# Partitions are reached through their parent.
TABLES = """
    SELECT c.oid, c.relname, c.relkind, greatest(c.reltuples, 0)::bigint
    FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident(%s))
    AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> 'alembic_version'
    ORDER BY c.relname
"""
COLUMNS = """
    SELECT a.attname, a.attgenerated::text,
        coalesce(a.attnum = ANY (i.indkey::int2[]), false)
    FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
SIZE = """
    SELECT sum(pg_total_relation_size(relid)) FROM (
        SELECT %(oid)s::regclass AS relid UNION SELECT relid FROM pg_partition_tree(%(oid)s)
    ) parts
"""
# Whether rows are hidden from some roles, and which.
SECURITY = """
    SELECT concat_ws(' ', NULLIF(relrowsecurity, false), NULLIF(relforcerowsecurity, false), (
        SELECT string_agg(p::text, ' ' ORDER BY p.oid) FROM pg_policy p WHERE p.polrelid = c.oid
    )) FROM pg_class c WHERE c.oid = %s
"""


@dataclass
class Table:
    """A table with the columns that the service names; `is_modelled` if the release before does."""

    oid: int
    name: str
    is_partitioned: bool
    estimate: int
    key: list[str]
    columns: list[str]
    written: list[str]
    is_modelled: bool

    def sample(self, connection: psycopg.Connection) -> list[tuple[str, ...]]:
        """The keys of some of its rows, from all over the table."""
        if not self.key:
            return []
        share = min(100.0, 100 * 10 * SAMPLE / max(self.estimate, 1))
        query = sql.SQL("SELECT {}::text FROM {} TABLESAMPLE SYSTEM ({}) LIMIT {}").format(
            sql.SQL("::text, ").join(map(sql.Identifier, self.key)),
            sql.Identifier(self.name),
            sql.Literal(share),
            sql.Literal(SAMPLE),
        )
        return connection.execute(query).fetchall()

    def select(self, key: tuple[str, ...] | None) -> sql.Composed:
        """Read a row by its key, or some if there is none."""
        return sql.SQL("SELECT {} FROM {} {}").format(
            _names(self.columns), sql.Identifier(self.name), self._where(key)
        )

    def update(self, key: tuple[str, ...] | None) -> sql.Composed:
        """Write to a row what it has already."""
        columns = [each for each in self.written if each not in self.key] or self.written
        same = [sql.SQL("{0} = {0}").format(sql.Identifier(each)) for each in columns]
        where = self._where(key)
        if key is None:
            some = sql.SQL("WHERE ctid IN (SELECT ctid FROM {} LIMIT 1)")
            nothing = sql.SQL("WHERE false").format()
            where = nothing if self.is_partitioned else some.format(self._name)
        return sql.SQL("BEGIN; UPDATE {} SET {} {}; ROLLBACK").format(
            self._name, sql.SQL(", ").join(same), where
        )

    def insert(self, key: tuple[str, ...] | None) -> sql.Composed:
        """Write a row that is there already: NOT NULL and CHECK come before the conflict.

        Its number too, also if a migration lets only the database number the rows.
        """
        return sql.SQL(
            "BEGIN; INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE"
            " SELECT {columns} FROM {table} {where} ON CONFLICT DO NOTHING; ROLLBACK"
        ).format(
            table=self._name,
            columns=_names(self.written),
            where=self._where(key),
        )

    @property
    def _name(self) -> sql.Identifier:
        return sql.Identifier(self.name)

    def _where(self, key: tuple[str, ...] | None) -> sql.Composed:
        if key is None:
            return sql.SQL("LIMIT 1").format()
        return sql.SQL("WHERE ({}) = ({})").format(
            _names(self.key), sql.SQL(", ").join(map(sql.Literal, key))
        )


def read(
    connection: psycopg.Connection, schema: str, modelled: Mapping[str, list[str]]
) -> list[Table]:
    """The tables of the schema; `modelled` are the columns that the release before has in each."""
    found = []
    for oid, name, kind, estimate in connection.execute(TABLES, [schema]).fetchall():
        columns = connection.execute(COLUMNS, [oid]).fetchall()
        key = [column for column, _, is_key in columns if is_key]
        there = {column for column, *_ in columns}
        used = [each for each in modelled.get(name, there) if each in there]
        used = [column for column, *_ in columns if column in used]
        generated = {column for column, letter, *_ in columns if letter}
        written = [each for each in used if each not in generated]
        found.append(
            Table(
                oid=oid,
                name=name,
                is_partitioned=kind == "p",
                estimate=estimate,
                key=key,
                columns=used,
                written=written,
                is_modelled=name in modelled,
            )
        )
    return [each for each in found if each.columns]


@dataclass
class State:
    """Names, rows and bytes of the tables, by object id, which a rename does not change."""

    names: dict[int, str]
    rows: dict[int, int]
    bytes: dict[int, int]
    # Another file means that all rows were written anew.
    files: dict[int, int]
    security: dict[int, str]

    def rows_of(self, name: str, oid: int = 0) -> int | None:
        """The rows of the table of this name, else of the one that had it."""
        rows = (self.rows[each] for each, it in self.names.items() if it == name)
        return next(rows, self.rows.get(oid))


def state(connection: psycopg.Connection, schema: str) -> State:
    """Count the rows, and measure the tables."""
    result = State({}, {}, {}, {}, {})
    for oid, name, *_ in connection.execute(TABLES, [schema]).fetchall():
        count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))
        file = "SELECT coalesce(pg_relation_filenode(%s), 0)"
        result.names[oid] = name
        result.rows[oid] = _one(connection, count)
        result.bytes[oid] = _one(connection, SIZE, {"oid": oid})
        result.files[oid] = _one(connection, file, [oid])
        row = connection.execute(SECURITY, [oid]).fetchone()
        result.security[oid] = row[0] if row else ""
    return result


def sizes(connection: psycopg.Connection, schema: str) -> dict[str, int]:
    """Bytes of each table by its name, with its indexes and partitions."""
    found = connection.execute(TABLES, [schema]).fetchall()
    return {name: _one(connection, SIZE, {"oid": oid}) for oid, name, *_ in found}


def _one(connection: psycopg.Connection, query: Any, values: Any = None) -> int:
    row = connection.execute(query, values).fetchone()
    return int(row[0] or 0) if row else 0


def _names(columns: list[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
