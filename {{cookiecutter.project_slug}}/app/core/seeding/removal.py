"""Removal: seeded rows go, as far as no other row refers to them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Table,
    TableClause,
    and_,
    column,
    exists,
    insert,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy.orm import Session

from app.core.seeding.seed import Seed, listed
from app.core.seeding.stage import Stage

# The rows to remove, of all tables: `relation` and `place` are the system columns tableoid and
# ctid, which name a row as long as it is locked.
CREATE_LEAVING = "CREATE TEMPORARY TABLE seeds_leaving (relation oid, place tid)"
DROP_LEAVING = "DROP TABLE seeds_leaving"
IS_LEAVING = "seeds_leaving.relation = {0}.tableoid AND seeds_leaving.place = {0}.ctid"
LEAVING = TableClause("seeds_leaving", column("relation"), column("place"))
# All foreign keys that lead to a table, also from tables that have no model here.
REFERENCES = text("""
    SELECT conrelid::regclass::text AS referring, array(
        SELECT format('_referring.%I = %I.%I', theirs.attname, conf.relname, ours.attname)
        FROM unnest(conkey, confkey) AS pair (theirs, ours)
        JOIN pg_attribute theirs ON theirs.attrelid = conrelid AND theirs.attnum = pair.theirs
        JOIN pg_attribute ours ON ours.attrelid = confrelid AND ours.attnum = pair.ours
    ) AS pairs
    FROM pg_constraint JOIN pg_class conf ON conf.oid = confrelid
    WHERE contype = 'f' AND conparentid = 0 AND confrelid = CAST(quote_ident(:table) AS regclass)
""")

# Which rows of which table.
Rows = dict[Table, ColumnElement[bool]]


def remove(session: Session, seeds: Sequence[Seed]) -> list[str]:
    """Delete the seeded rows of these tables; return the lines that say what happened."""
    stages = [
        Stage(session, seed, number) for number, seed in enumerate(seeds) if not seed.is_marked
    ]
    for stage in stages:
        stage.load()
    rows: Rows = {seed.table: seed.owns(seed.table) for seed in reversed(seeds)}
    for table in {stage.seed.table for stage in stages}:
        rows[table] &= _is_listed(table, stages)
    removed = _delete(session, rows)
    keys = {seed.table: seed.key_columns for seed in seeds}
    lines = []
    for table, condition in rows.items():
        left = _left(session, condition, keys[table])
        lines.append(f"{table.name}: {removed[table.name]} removed{left}")
    for stage in stages:
        stage.drop()
    return lines


def prune(session: Session, stages: Sequence[Stage]) -> Counter[str]:
    """Delete the marked rows that are not in the stages; return how many, by table."""
    return _delete(session, _unlisted(stages))


def pruned_lines(session: Session, stages: Sequence[Stage], pruned: Counter[str]) -> Iterator[str]:
    """What was pruned, and what could not be."""
    keys = {stage.seed.table: stage.seed.key_columns for stage in stages}
    for table, condition in _unlisted(stages).items():
        left = _left(session, condition, keys[table])
        if left or pruned[table.name]:
            removed = pruned[table.name]
            yield f"{table.name}, rows no longer in app/seeds: {removed} removed{left}"


def _unlisted(stages: Sequence[Stage]) -> Rows:
    seeds = (stage.seed for stage in reversed(stages))
    return {
        seed.table: and_(seed.owns(seed.table), not_(_is_listed(seed.table, stages)))
        for seed in seeds
        if seed.is_marked
    }


def _is_listed(table: Table, stages: Sequence[Stage]) -> ColumnElement[bool]:
    """The condition that a row of `table` is in a stage."""
    mine = (stage for stage in stages if stage.seed.table is table)
    return or_(*(exists().where(stage.same_key(table)).correlate(table) for stage in mine))


def _delete(session: Session, rows: Rows) -> Counter[str]:
    """Delete the rows that no other row refers to; return how many, by table."""
    connection = session.connection()
    quote = connection.dialect.identifier_preparer.format_table
    connection.exec_driver_sql(CREATE_LEAVING)
    for table, condition in rows.items():
        # Locked first: a row that refers to one of them is committed and seen, or it cannot come.
        relation, place = text(f"{quote(table)}.tableoid"), text(f"{quote(table)}.ctid")
        query = select(relation, place).select_from(table).where(condition)
        query = query.with_for_update(of=table)
        session.execute(insert(LEAVING).from_select(["relation", "place"], query))
    _spare_what_others_need(session, list(rows))
    # One statement, because rows may refer to each other: the server checks at its end.
    deletes = ", ".join(
        f"deleted_{number} AS (DELETE FROM {name} USING seeds_leaving"
        f" WHERE {IS_LEAVING.format(name)} RETURNING 1)"
        for number, name in enumerate(map(quote, rows))
    )
    counts = ", ".join(f"(SELECT count(*) FROM deleted_{number})" for number in range(len(rows)))
    removed = connection.exec_driver_sql(f"WITH {deletes} SELECT {counts}").one() if rows else ()
    connection.exec_driver_sql(DROP_LEAVING)
    return Counter(dict(zip((table.name for table in rows), removed, strict=True)))


def _spare_what_others_need(session: Session, tables: list[Table]) -> None:
    """Keep rows that a row refers to which stays; that may keep further rows, and so on."""
    connection = session.connection()
    quote = connection.dialect.identifier_preparer.format_table
    statements = [
        f"DELETE FROM seeds_leaving USING {quote(table)} WHERE {IS_LEAVING.format(quote(table))}"
        f" AND EXISTS (SELECT FROM {referring} AS _referring WHERE {' AND '.join(pairs)}"
        f" AND NOT EXISTS (SELECT FROM seeds_leaving WHERE {IS_LEAVING.format('_referring')}))"
        for table in tables
        for referring, pairs in session.execute(REFERENCES, {"table": table.name})
    ]
    while sum(connection.exec_driver_sql(each).rowcount for each in statements):
        pass


def _left(session: Session, rows: ColumnElement[bool], key: Sequence[ColumnElement[Any]]) -> str:
    """`; 1 left: other rows refer to it (Kindred)`, or nothing."""
    left = list(session.execute(select(*key).where(rows).order_by(*key)))
    return f"; {len(left)} left: other rows refer to it ({listed(left)})" if left else ""
