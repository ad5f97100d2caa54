"""What the models say, and what is wrong with it before anything is compared."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from alembic.operations import ops
from alembic.util import CommandError
from sqlalchemy import Connection, Enum, Table, create_mock_engine

from app.config import Settings
from app.core.migrations.safe_operations import Steps
from app.core.safety import catalog
from app.core.safety.catalog import Catalog
from app.core.safety.dry_run import dry_run
from app.core.safety.hazards import HAZARDS, Hazard
from app.core.waiting import telling
from app.models import Base, db


def is_view(table: Any) -> bool:
    """Whether a model reads a view: `info={"is_view": True}` in its table."""
    return bool(getattr(table, "info", {}).get("is_view"))


def refuse_faults() -> None:
    """Say in words what no comparison and no migration can do anything with: `CommandError`."""
    faults = [fault for table in db.metadata.tables.values() for fault in _faults(table)]
    if faults:
        raise CommandError("\n".join(["The models cannot be compared with the database:", *faults]))


def at_models(settings: Settings) -> tuple[Catalog, Catalog]:
    """What the models would build, in a schema that is rolled back, and what SCHEMA holds now."""
    refuse_faults()
    tables = [table for table in db.metadata.tables.values() if not is_view(table)]
    with dry_run(settings) as run, telling("building the models in a dry run"):
        _create(run.connection, tables)
        return (
            catalog.read(run.connection, run.schema),
            catalog.read(run.connection, settings.schema_name),
        )


def _create(connection: Connection, tables: list[Table]) -> None:
    """Make the tables, all of them in one call: hundreds of calls take twice as long."""
    statements: list[str] = []

    def collect(statement: Any, *_: Any, **__: Any) -> None:
        statements.append(str(statement.compile(dialect=connection.dialect)))

    db.metadata.create_all(create_mock_engine(connection.engine.url, collect), tables, False)
    if statements:
        connection.exec_driver_sql(";\n".join(statements))


def refuse_unmarked_views(views: set[str]) -> None:
    """A view of the database for which a model would build a table: `CommandError`."""
    for name, table in db.metadata.tables.items():
        if name in views and not is_view(table):
            raise CommandError(
                f"{_model(table)} reads {name}, which is a view in the database. Say so: "
                '__table_args__ = {"info": {"is_view": True}}. It is then left alone; its CREATE '
                "VIEW stands in a revision written by hand."
            )


def _faults(table: Table) -> Iterator[str]:
    if table.schema is not None:
        yield (
            f"  {_model(table)} has schema={table.schema!r}. The schema is a setting of the "
            "connection (SCHEMA), which serves all models: take it out of the model."
        )
    for column in table.columns:
        if isinstance(column.type, Enum) and column.type.native_enum and not column.type.name:
            yield (f'  {_model(table)}.{column.name} is an Enum without a name: Enum(…, name="…")')


def _model(table: Table) -> str:
    """`Book (app/models/books.py)`, or the table's name where it has no class."""
    for mapper in Base.registry.mappers:
        if mapper.local_table is table:
            module = mapper.class_.__module__.replace(".", "/")
            return f"{mapper.class_.__name__} ({module}.py)"
    return f"table {table.name}"


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
    # The recipe for what goes would lose the data of what only gets another name.
    rename = HAZARDS[hazard.name.replace("drop", "rename")][1]
    return Hazard(hazard.name, hazard.table, hazard.item, detail, rename)


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
