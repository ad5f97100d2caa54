"""The engine of `flask seed`; the rows are in app/seeds.

A seeded row is marked in its column `seeded`. Planting inserts the rows and brings changed ones
back to what their file says; removing deletes them. Rows of users are neither changed nor deleted,
not even one that has the natural key of a seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Table,
    and_,
    delete,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.models import Base


@dataclass(frozen=True)
class Seed:
    """The seeded rows of one model.

    `rows` are dictionaries of column values, all with the same keys; `key` names the unique column
    that tells one row from another. A model with seeds has the mixin `Seeded`.
    """

    model: type[Base]
    key: str
    rows: Sequence[dict[str, Any]]

    def __post_init__(self) -> None:
        """Say what is wrong with the seeds of this model: `ValueError`."""
        columns = set(self.table.columns.keys())
        fields = set(self.rows[0]) if self.rows else {self.key}
        keys = [row.get(self.key) for row in self.rows]
        faults = {
            "the model lacks the mixin Seeded": "seeded" not in columns,
            f"the rows need the key {self.key!r}": self.key not in fields,
            f"the table has no {sorted(fields - columns)}": not fields <= columns,
            "all rows need the same fields": any(set(row) != fields for row in self.rows),
            "two rows have the same key": len(set(keys)) < len(keys),
        }
        for fault, found in faults.items():
            if found:
                raise ValueError(f"seeds of {self.noun}: {fault}")

    @property
    def table(self) -> Table:
        """The table of the model."""
        return Base.metadata.tables[self.model.__tablename__]

    @property
    def noun(self) -> str:
        """The name of the table, which is the name in `flask seed all NOUN`."""
        return self.table.name


def lock(session: Session) -> None:
    """Let one process at a time plant or remove, until the end of the transaction."""
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext(current_schema() || ' seeds'))"))
    # Somebody's open transaction is named as the reason, not waited for without end.
    session.execute(text("SET LOCAL lock_timeout = '10s'"))


def plant(session: Session, seed: Seed) -> str:
    """Insert or restore the rows; return the line that says what happened."""
    if not seed.rows:
        return f"{seed.noun}: no seeds"
    table, key = seed.table, seed.table.c[seed.key]
    statement = insert(table).values([row | {"seeded": True} for row in seed.rows])
    new = statement.excluded
    columns = [name for name in seed.rows[0] if name != seed.key]
    changed = or_(false(), *(table.c[name].is_distinct_from(new[name]) for name in columns))
    upsert = statement.on_conflict_do_update(
        index_elements=[key],
        set_={name: new[name] for name in columns} | {"updated_at": func.now()},
        where=and_(table.c.seeded, changed),
    ).returning(key)
    keys = [row[seed.key] for row in seed.rows]
    there = session.execute(select(key, table.c.seeded).where(key.in_(keys)))
    found: dict[Any, bool] = dict(iter(there))
    restored: set[Any] = set()
    # Again and again, because a row may refer to a row of its own table.
    for _ in seed.rows:
        restored |= (written := set(session.scalars(upsert))) & found.keys()
        if not written:
            break
    added = len(set(keys) - found.keys())
    yours = [name for name, seeded in found.items() if not seeded]
    same = len(found) - len(restored) - len(yours)
    line = f"{seed.noun}: {added} added, {len(restored)} restored, {same} unchanged"
    return line + _left(yours, "not planted, a row of yours has its key")


def remove(session: Session, seed: Seed) -> str:
    """Delete the seeded rows that no row refers to; return the line that says what happened."""
    table, key = seed.table, seed.table.c[seed.key]
    seeded = select(key).where(table.c.seeded).order_by(key)
    # Locked first: a row that refers to one of them is committed and seen, or it cannot come.
    before = session.scalars(seeded.with_for_update()).all()
    free = not_(or_(false(), *_references(session, table)))
    # Until nothing is left to delete: a row may refer to a row of its own table.
    while session.scalars(delete(table).where(table.c.seeded, free).returning(key)).all():
        pass
    left = session.scalars(seeded).all()
    line = f"{seed.noun}: {len(before) - len(left)} removed"
    return line + _left(left, "left, other rows refer to it")


# All foreign keys that lead to a table, also from tables that have no model here.
REFERENCES = text("""
    SELECT conrelid::regclass::text AS referring, conrelid = confrelid AS itself, array(
        SELECT format('_referring.%I = %I.%I', theirs.attname, conf.relname, ours.attname)
        FROM unnest(conkey, confkey) AS pair (theirs, ours)
        JOIN pg_attribute theirs ON theirs.attrelid = conrelid AND theirs.attnum = pair.theirs
        JOIN pg_attribute ours ON ours.attrelid = confrelid AND ours.attnum = pair.ours
    ) AS pairs
    FROM pg_constraint JOIN pg_class conf ON conf.oid = confrelid
    WHERE contype = 'f' AND confrelid = CAST(quote_ident(:table) AS regclass)
""")


def _references(session: Session, table: Table) -> Iterator[ColumnElement[bool]]:
    """One condition for each foreign key to `table`: some other row refers to this one."""
    preparer = session.connection().dialect.identifier_preparer
    name = preparer.quote(table.name)
    for referring, itself, pairs in session.execute(REFERENCES, {"table": table.name}):
        another = [f"_referring.ctid <> {name}.ctid"] if itself else []
        condition = " AND ".join([*pairs, *another])
        exists = f"EXISTS (SELECT FROM {referring} AS _referring WHERE {condition})"
        yield literal_column(exists, Boolean)


def _left(keys: Sequence[Any], why: str) -> str:
    return f"; {len(keys)} {why}: {', '.join(map(str, keys))}" if keys else ""
