"""Planting: rows are added, and changed ones brought back to what their file says."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.errors import UniqueViolation
from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Executable,
    Text,
    cast,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from app.core.database_errors import is_behind_the_models
from app.core.seeding import removal
from app.core.seeding.seed import Seed, SeedError, listed, reason_in_full
from app.core.seeding.stage import Stage

# So many rows are worth a second way into the table, which is twice as fast.
LARGE = 10_000
# A statement that writes those of the staged rows that a condition picks.
Write = Callable[[ColumnElement[bool]], Executable]


def plant(session: Session, seeds: Sequence[Seed], prune: bool = False) -> list[str]:
    """Add and restore the rows of `seeds`; return the lines that say what happened.

    `prune` also removes seeded rows that are in no file any more and that no row refers to.
    """
    session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
    # 100,000 rows are compared and sorted in memory; the default of 4 MB makes them go to disk.
    session.execute(text("SET LOCAL work_mem = '64MB'"))
    stages = [Stage(session, seed, number) for number, seed in enumerate(seeds)]
    pruned = _prune_before(session, stages) if prune else Counter[str]()
    plantings = [Planting(session, stage) for stage in stages]
    _write_all(plantings)
    for stage in stages:
        stage.check_deferred()
    session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    lines = [each.summary() for each in plantings]
    if prune:
        pruned += removal.prune(session, stages)
        lines += removal.pruned_lines(session, stages, pruned)
    for stage in stages:
        stage.drop()
    return lines


def _prune_before(session: Session, stages: list[Stage]) -> Counter[str]:
    """Make room for rows that take over a unique value of one that is in no file any more."""
    for stage in stages:
        stage.load()
    pruned = removal.prune(session, stages)
    for stage in stages if pruned else []:
        stage.load()
    return pruned


def _write_all(plantings: list["Planting"]) -> None:
    """Write in rounds, because rows refer to rows that are planted later, even in a circle."""
    while plantings:
        written = sum(each.write() for each in plantings)
        plantings = [each for each in plantings if each.stage.waiting]
        for each in plantings if not written else ():
            assert each.stage.waiting
            raise each.stage.waiting


class Planting:
    """One seed on its way from its stage into its table."""

    def __init__(self, session: Session, stage: Stage) -> None:
        """Nothing is written yet."""
        self.session = session
        self.stage = stage
        self.seed = stage.seed
        self.table = stage.seed.table
        self._added = 0
        self._restored: set[int] = set()
        self._found: set[int] | None = None

    def write(self) -> int:
        """Write what is ready and return how many rows that were."""
        if self._may_go_straight() and (added := self.stage.copy_straight()):
            self._added = added
            self._advance_sequence()
            return added
        if self.stage.waiting or not self.stage.is_loaded:
            self.stage.load()
        if self._found is None:
            self._found = self._rows_found()
        restored = self._restore()
        added = self._add()
        self._restored |= restored & self._found
        self._added += added
        return len(restored) + added

    def summary(self) -> str:
        """The line that says what happened."""
        if not self.seed.rows:
            return f"{self.seed.noun}: no seeds"
        found = len(self._found or ())
        restored = len(self._restored)
        line = (
            f"{self.seed.noun}: {self._added} added, {restored} restored, "
            f"{found - restored} unchanged"
        )
        skipped = len(self.seed.rows) - self._added - found
        if not skipped:
            return line
        why = "an existing row has this key"
        if not self.seed.is_marked:
            why = "it links a row that is not seeded"
        return f"{line}; {skipped} skipped: {why} ({listed(self._skipped_keys())})"

    def _may_go_straight(self) -> bool:
        """Whether there are many rows and nothing that they have to be compared with."""
        if self.stage.is_loaded or len(self.seed.rows) < LARGE or not self.seed.is_marked:
            return False
        return not self.session.scalar(select(exists().select_from(self.table)))

    def _rows_found(self) -> set[int]:
        """The seeded rows that are there already."""
        ours = self.stage.same_key(self.table), self.seed.owns(self.table)
        return set(self.session.scalars(select(self.stage.row).where(*ours)))

    def _skipped_keys(self) -> list[Any]:
        ours = exists().where(self.stage.same_key(self.table), self.seed.owns(self.table))
        keys = [self.stage.table.c[column.key] for column in self.seed.key_columns]
        query = select(*keys).where(not_(ours)).order_by(self.stage.row)
        return list(self.session.execute(query))

    def _restore(self) -> set[int]:
        names = self.stage.names_to_restore
        if not names:
            return set()
        staged = {name: self.stage.table.c[name] for name in names}
        # As text, because not every type has an operator for equality (json, point).
        changed = or_(
            *(
                cast(self.table.c[name], Text).is_distinct_from(cast(value, Text))
                for name, value in staged.items()
            )
        )
        ours = self.stage.same_key(self.table), self.seed.owns(self.table), changed
        restore = update(self.table).values(staged).returning(self.stage.row)
        result = self._execute(lambda picked: restore.where(self.stage.ready, *ours, picked))
        return set(result.scalars())

    def _add(self) -> int:
        values = [self.stage.table.c[name] for name in self.stage.names]
        new = not_(exists().where(self.stage.same_key(self.table)))
        ours = true() if self.seed.is_marked else self.seed.owns(self.stage.table)
        # In order, so that the search is over before the first row comes: a search that meets
        # the new rows too takes minutes.
        rows = select(*values).where(self.stage.ready, new, ours).order_by(self.stage.row)
        add = insert(self.table).inline().execution_options(preserve_rowcount=True)
        result = self._execute(lambda picked: add.from_select(self.stage.names, rows.where(picked)))
        if result.rowcount:
            self._advance_sequence()
        return result.rowcount

    def _advance_sequence(self) -> None:
        """After ids that a file gives, the next row of a user must not get one of them."""
        column = self.table.autoincrement_column
        if column is None or column.key not in self.stage.names:
            return
        quote = self.session.connection().dialect.identifier_preparer.quote
        names = {"table": quote(self.table.name), "column": column.name}
        owned = text("SELECT pg_get_serial_sequence(:table, :column)")
        if sequence := self.session.scalar(owned, names):
            largest = select(func.max(column)).scalar_subquery()
            last = text(f"(SELECT last_value FROM {sequence})")
            self.session.execute(select(func.setval(sequence, largest)).where(largest > last))

    def _execute(self, write: Write) -> CursorResult[Any]:
        try:
            return self._try(write, true())
        except DBAPIError as error:
            if isinstance(error, OperationalError) or is_behind_the_models(error):
                raise
            raise self._blame(write, error) from None

    def _try(self, write: Write, picked: ColumnElement[bool]) -> CursorResult[Any]:
        with self.session.begin_nested():
            result = self.session.execute(write(picked))
        assert isinstance(result, CursorResult)
        return result

    def _blame(self, write: Write, error: DBAPIError) -> SeedError:
        """Find the first row that fails by halving."""
        low, high = 1, len(self.seed.rows)
        while low < high:
            middle = (low + high) // 2
            try:
                self._try(write, self.stage.row <= middle)
            except DBAPIError as narrower:
                high, error = middle, narrower
            else:
                low = middle + 1
        assert isinstance(error.orig, psycopg.Error)
        why = reason_in_full(error)
        if isinstance(error.orig, UniqueViolation):
            why += "; if that is an older version of this row, flask seed reset replaces it"
        return self.seed.wrong(why, low, error.orig.diag.column_name)
