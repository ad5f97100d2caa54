"""The engine of `flask seed`; the rows are in app/seeds.

A seeded row is marked in its column `seeded`. Planting inserts the rows and brings changed ones
back to what their file says; removing deletes them. Rows of users are neither changed nor deleted,
not even one that has the natural key of a seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Table,
    and_,
    delete,
    exists,
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


def plant(session: Session, seed: Seed) -> str:
    """Insert or restore the rows; return the line that says what happened."""
    table, key = seed.table, seed.table.c[seed.key]
    statement = insert(table).values([row | {"seeded": True} for row in seed.rows])
    new = statement.excluded
    columns = [name for name in seed.rows[0] if name != seed.key]
    changed = or_(*(table.c[name].is_distinct_from(new[name]) for name in columns))
    written = session.scalars(
        statement.on_conflict_do_update(
            index_elements=[key],
            set_={name: new[name] for name in columns} | {"updated_at": func.now()},
            where=and_(table.c.seeded, changed),
        ).returning(literal_column("xmax = 0", type_=table.c.seeded.type))
    ).all()
    yours = session.scalars(
        select(key).where(key.in_([row[seed.key] for row in seed.rows]), not_(table.c.seeded))
    ).all()
    added, restored = written.count(True), written.count(False)
    same = len(seed.rows) - len(written) - len(yours)
    line = f"{seed.noun}: {added} added, {restored} restored, {same} unchanged"
    return line + _left(yours, "not planted, a row of yours has its key")


def remove(session: Session, seed: Seed) -> str:
    """Delete the seeded rows that no row refers to; return the line that says what happened."""
    table, key = seed.table, seed.table.c[seed.key]
    free = not_(or_(false(), *_references(table)))
    removed = session.scalars(delete(table).where(table.c.seeded, free).returning(key)).all()
    left = session.scalars(select(key).where(table.c.seeded).order_by(key)).all()
    return f"{seed.noun}: {len(removed)} removed" + _left(left, "left, other rows refer to it")


def _references(table: Table) -> Iterator[ColumnElement[bool]]:
    """One condition for each foreign key to `table`: some row refers to this one."""
    for other in Base.metadata.tables.values():
        for constraint in other.foreign_key_constraints:
            if constraint.referred_table is table:
                other_row = other.alias()
                pairs: list[tuple[Column[Any], Column[Any]]] = [
                    (other_row.c[element.parent.name], element.column)
                    for element in constraint.elements
                ]
                yield exists().where(*(child == parent for child, parent in pairs))


def _left(keys: Sequence[Any], why: str) -> str:
    return f"; {len(keys)} {why}: {', '.join(map(str, keys))}" if keys else ""
