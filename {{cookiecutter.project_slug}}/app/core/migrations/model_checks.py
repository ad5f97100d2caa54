"""What the models say, and what Alembic does not see of it."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from alembic.operations import ops
from sqlalchemy import Enum

from app.config import Settings
from app.core.migrations.safe_operations import Steps
from app.core.safety import catalog
from app.core.safety.catalog import Catalog
from app.core.safety.dry_run import DryRun, dry_run
from app.core.safety.hazards import Hazard
from app.core.safety.offline import typed_columns
from app.models import db


def at_models(settings: Settings) -> tuple[Catalog, Catalog]:
    """What the models would build, in a schema that is rolled back, and what SCHEMA holds now."""
    tables = [table for table in db.metadata.tables.values() if table.schema is None]
    with dry_run(settings) as run:
        db.metadata.create_all(run.connection, tables, checkfirst=False)
        return (
            catalog.read(run.connection, run.schema),
            catalog.read(run.connection, settings.schema_name),
        )


def blind_spots(models: Catalog, run: DryRun) -> Iterator[Hazard]:
    """What the models say and the change does not do, because Alembic does not see it."""
    now = run.catalog()
    for oid, table in models.tables.items():
        there = run.table_id(now, table.name)
        if there is None:
            continue
        wanted, found = models.columns_of(oid), now.columns_of(there)
        for name in wanted.keys() & found.keys():
            # Which column counts by itself is a matter of the primary key.
            if "nextval(" in (found[name].default or "") and wanted[name].default is None:
                continue
            if wanted[name] != found[name]:
                says = ", ".join(
                    f"{what} {value!r} where the database has {getattr(found[name], what)!r}"
                    for what, value in wanted[name]._asdict().items()
                    if value != getattr(found[name], what)
                )
                yield Hazard("unseen-change", table.name, name, says)
        yield from _constraint_differences(table.name, oid, there, models, now)
        builds = {each.definition: each.name for each in models.indexes_of(oid)}
        for definition in builds.keys() - {each.definition for each in now.indexes_of(there)}:
            yield Hazard("unseen-change", table.name, builds[definition], definition)
    for enum in models.enums.values():
        same = [each for each in now.enums.values() if each.name == enum.name]
        if same and enum.labels not in [each.labels for each in same]:
            labels = ", ".join(enum.labels), ", ".join(same[0].labels)
            detail = f" with the values {labels[0]}, where the database has {labels[1]}"
            yield Hazard("native-enum", item=enum.name, detail=detail)


def _constraint_differences(
    table: str, oid: int, there: int, models: Catalog, now: Catalog
) -> Iterator[Hazard]:
    wanted, found = models.constraints_of(oid), now.constraints_of(there)
    have = {each.definition for each in found}
    for constraint in wanted:
        if constraint.definition in have:
            continue
        if constraint.kind == "p":
            was = now.primary_key_of(there) or "none"
            detail = f": {was} becomes {constraint.definition}"
            yield Hazard("primary-key", table, detail=detail)
        elif constraint.kind == "x":
            yield Hazard("exclusion-constraint", table, constraint.name)
        else:
            yield Hazard("unseen-change", table, constraint.name, constraint.definition)
    says = {each.definition for each in wanted}
    for constraint in found:
        if constraint.kind == "x" and constraint.definition not in says:
            yield Hazard("unseen-change", table, constraint.name, "that it is not there")


def native_enums(steps: Steps) -> Iterator[Hazard]:
    """Columns of a native enum type that this change adds."""
    for each in steps.change:
        for table, column, type_ in typed_columns(each):
            if isinstance(type_, Enum) and type_.native_enum:
                yield Hazard("native-enum", table, column)


def removed_enum_values(labels: dict[tuple[str, str], list[str]]) -> Iterator[tuple[Hazard, Any]]:
    """Values that the history knows and the models do not, each with what records the change."""
    for (table, name), known in labels.items():
        model = db.metadata.tables.get(table)
        column = None if model is None else model.columns.get(name)
        if column is None or not isinstance(column.type, Enum) or column.type.native_enum:
            continue
        lost = [label for label in known if label not in column.type.enums]
        if lost:
            before = Enum(*known, name=column.type.name, native_enum=False, length=64)
            record = ops.AlterColumnOp(
                table,
                name,
                existing_type=before,
                existing_nullable=column.nullable,
                modify_type=column.type,
            )
            yield Hazard("enum-value-removed", table, name, ", ".join(lost)), record


def looks_like_a_rename(hazard: Hazard, steps: Steps) -> Hazard:
    """The hazard, which says so where a drop stands beside an add that is like it."""
    if hazard.name == "column-drop":
        alike = [*_columns_like(hazard, steps)]
    elif hazard.name == "table-drop":
        alike = [*_tables_like(hazard, steps)]
    else:
        return hazard
    if not alike:
        return hazard
    detail = (
        f", and the new {' or '.join(alike)} looks like it under another name: Alembic writes a "
        "rename as a drop and an add, and what was in it is lost"
    )
    return Hazard(hazard.name, hazard.table, hazard.item, detail)


def _columns_like(hazard: Hazard, steps: Steps) -> Iterator[str]:
    dropped = next(
        each.to_column()
        for each in steps.change
        if isinstance(each, ops.DropColumnOp)
        and (each.table_name, each.column_name) == (hazard.table, hazard.item)
    )
    for each in steps.change:
        if isinstance(each, ops.AddColumnOp) and each.table_name == hazard.table:
            same_type = each.column.type._type_affinity is dropped.type._type_affinity
            if same_type or _alike(each.column.name, dropped.name):
                yield each.column.name


def _tables_like(hazard: Hazard, steps: Steps) -> Iterator[str]:
    dropped = next(
        {column.name for column in each.to_table().columns}
        for each in steps.change
        if isinstance(each, ops.DropTableOp) and each.table_name == hazard.table
    )
    for each in steps.change:
        if isinstance(each, ops.CreateTableOp):
            columns = {column.name for column in each.to_table().columns}
            if columns == dropped or _alike(each.table_name, hazard.table):
                yield each.table_name


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other).ratio() > 0.6
