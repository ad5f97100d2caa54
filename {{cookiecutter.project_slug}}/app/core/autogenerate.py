"""What `flask db migrate` writes: the safe form of the change, or a refusal with all its hazards.

The server is asked three times: what the models would build and what is there now, so that no
difference stays unseen; what it does when the new revisions run; and what is there after them.
"""

from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pprint import pformat
from typing import Any

import alembic.op
import click
import sqlalchemy
import structlog
from alembic import context
from alembic.migration import MigrationContext
from alembic.operations import ops
from alembic.operations.ops import DowngradeOps, DropTableOp, MigrationScript, UpgradeOps
from alembic.util import CommandError
from sqlalchemy import Column, DefaultClause, Enum, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from app.config import Settings
from app.core import dry_run, history, safe_forms
from app.core.catalog import Catalog
from app.core.database import reason
from app.core.dry_run import CannotJudge
from app.core.hazards import Hazard, unique, without_acknowledged
from app.core.safe_forms import Steps
from app.models import Base, db

log = structlog.get_logger("migrations")


class Autogenerate:
    """One run of `flask db migrate` or `flask db check`: Alembic asks it while it compares."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def options(self) -> dict[str, Any]:
        """What it brings to Alembic's `context.configure`."""
        return {
            "include_object": self.is_ours,
            "compare_type": self.type_differs,
            # Alembic compares two texts here; `changed_defaults` asks the server.
            "compare_server_default": False,
            "process_revision_directives": self.finish,
            # CHECK constraints by name, which Alembic alone does not compare.
            "autogenerate_plugins": [
                "alembic.autogenerate.*",
                "alembic.ext.checkconstraint_byname",
            ],
        }

    @cached_property
    def catalogs(self) -> tuple[Catalog, Catalog]:
        """What the models would build, and what the schema holds now."""
        try:
            return dry_run.at_models(self.settings)
        except OperationalError:
            raise  # a table is in use
        except SQLAlchemyError as error:
            raise CommandError(f"The models can not be built: {reason(error)}") from None

    @cached_property
    def written(self) -> str:
        """All that stands in the revision files."""
        return history.text()

    def type_differs(
        self, _context: Any, _inspected: Any, column: Column[Any], *_types: Any
    ) -> bool | None:
        """Whether the server spells the types differently; None where it does not know both."""
        model, there = self._both(column)
        return None if model is None or there is None else model.type != there.type

    def changed_defaults(self) -> Iterator[ops.AlterColumnOp]:
        """The server defaults that the server spells differently."""
        for table in db.metadata.tables.values():
            for column in table.columns:
                model, there = self._both(column)
                plain = isinstance(column.server_default, DefaultClause | None)
                if model is None or there is None or not plain or there.generated:
                    continue
                if model.default != there.default and "nextval(" not in (there.default or ""):
                    default = there.default
                    yield ops.AlterColumnOp(
                        table.name,
                        column.name,
                        existing_type=column.type,
                        existing_nullable=column.nullable,
                        existing_server_default=default and DefaultClause(text(default)),
                        modify_server_default=column.server_default,
                    )

    def is_ours(self, item: Any, name: str, kind: str, reflected: bool, model: Any) -> bool:
        """False for a table that no model and no revision knows, and for columns let go."""
        if not reflected or model is not None:
            return True
        if kind == "table":
            return f"'{name}'" in self.written or f'"{name}"' in self.written
        columns = (
            [name] if kind == "column" else [each.name for each in getattr(item, "columns", ())]
        )
        return not {f"{item.table.name}.{each}" for each in columns} & unused_columns()

    def finish(
        self, migration: MigrationContext, _revision: Any, directives: list[MigrationScript]
    ) -> None:
        """Replace what Alembic would write by the safe form, or refuse."""
        upgrade = directives[0].upgrade_ops
        assert upgrade is not None
        upgrade.ops += self.changed_defaults()
        # `flask db check` comes here too, and needs no more than the differences.
        if not getattr(context.config.cmd_opts, "autogenerate", False):
            return
        drop_children_first(upgrade)
        # From here on SQL is text in a file, where the driver's doubled % would stay doubled.
        migration.dialect.identifier_preparer._double_percents = False
        _, database = self.catalogs
        steps = safe_forms.steps(upgrade, database, self.settings.schema_name)
        before = history.ancestors(context.script, context.script.get_heads())
        let_go = unused_columns() - history.unused_columns(before)
        steps.change += safe_forms.let_go(let_go, database, self.settings.schema_name)
        hazards, records = self._judge(steps, before, migration)
        acknowledged = _acknowledged_on_the_command_line(hazards)
        left = without_acknowledged(hazards, acknowledged)
        if left:
            raise CommandError(_refusal(left))
        steps.change += records
        parts = steps.revisions() or ([("", [])] if let_go else [])
        if parts:
            _write(directives, parts, {"acknowledged": acknowledged, "unused": sorted(let_go)})
        else:
            directives.clear()
            log.info(
                "no changes in the models: no revision written "
                "(a new model must be imported in app/models/__init__.py)"
            )

    def _both(self, column: Column[Any]) -> tuple[Any, Any]:
        models, database = self.catalogs
        model = models.table_id(column.table.name, *models.schemas.values())
        there = database.table_id(column.table.name, self.settings.schema_name)
        return (
            models.columns_of(model).get(column.name),
            database.columns_of(there).get(column.name),
        )

    def _judge(
        self, steps: Steps, before: list[Any], migration: MigrationContext
    ) -> tuple[list[Hazard], list[Any]]:
        """The hazards of the change, and operations that record what no table shows."""
        models, _ = self.catalogs
        hazards = [*native_enums(steps)]
        with dry_run.dry_run(self.settings) as run:
            try:
                run.start(before, at_current=True)
            except CannotJudge as error:
                raise CommandError(f"The change can not be judged: {error}") from None
            removed = [*removed_enum_values(run.labels)]
            for _, operations in steps.revisions():
                hazards += run.observe(_running(migration, each) for each in operations)
            # Where something failed, what is missing after it is no second finding.
            if not any(each.name == "fails" for each in hazards):
                known = {each.where for each in hazards}
                hazards += [each for each in blind_spots(models, run) if each.where not in known]
        if any(each.name == "native-enum" for each in hazards):
            hazards = [each for each in hazards if each.name != "fails"]
        dropped = history.unused_columns(before)
        hazards += [hazard for hazard, _ in removed]
        kept = [
            looks_like_a_rename(each, steps)
            for each in hazards
            if not (each.name == "column-drop" and each.where in dropped)
        ]
        return unique(kept), [record for _, record in removed]


def unused_columns() -> set[str]:
    """The columns that a model lists in `__unused_columns__`, as `books.title`."""
    return {
        f"{mapper.class_.__tablename__}.{name}"
        for mapper in Base.registry.mappers
        for name in getattr(mapper.class_, "__unused_columns__", ())
    }


def drop_children_first(upgrade: UpgradeOps) -> None:
    """Order the dropped tables by their foreign keys; Alembic leaves them in the order of a set."""
    drops = {drop.table_name: drop for drop in upgrade.ops if isinstance(drop, DropTableOp)}
    parents = {}
    for name, drop in drops.items():
        referred = {key.column.table.name for key in drop.to_table().foreign_keys}
        parents[name] = referred & drops.keys() - {name}
    try:
        children_first = [*TopologicalSorter(parents).static_order()][::-1]
    except CycleError:
        return
    others = [operation for operation in upgrade.ops if operation not in drops.values()]
    upgrade.ops = [*others, *(drops[name] for name in children_first)]


def blind_spots(models: Catalog, run: dry_run.DryRun) -> Iterator[Hazard]:
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


def native_enums(steps: Steps) -> Iterator[Hazard]:
    """Columns of a native enum type that this change adds."""
    for each in steps.change:
        for table, column, type_ in dry_run.typed_columns(each):
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


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other).ratio() > 0.6


def _running(migration: MigrationContext, operation: Any) -> Callable[[], object]:
    code = safe_forms.source(migration, operation)
    return lambda: exec(code, {"op": alembic.op, "sa": sqlalchemy})


def _write(
    directives: list[MigrationScript], parts: list[tuple[str, list[Any]]], facts: dict[str, Any]
) -> None:
    """One revision file per part; what the user said of the change stands in the first."""
    first = previous = directives[0]
    for number, (word, operations) in enumerate(parts):
        upgrade, downgrade = UpgradeOps(operations), DowngradeOps(safe_forms.undone(operations))
        if number == 0:
            first.upgrade_ops, first.downgrade_ops = upgrade, downgrade
            continue
        message = f"{first.message or ''} {word}".strip()
        revision = history.next_revision_id(after=previous.rev_id or "")
        previous = MigrationScript(
            revision, upgrade, downgrade, message=message, head=previous.rev_id
        )
        directives.append(previous)
    said = {name: pformat(value, width=90) for name, value in facts.items() if value}
    context.get_context().opts["template_args"]["facts"] = {first.rev_id: said}


def _acknowledged_on_the_command_line(hazards: list[Hazard]) -> dict[str, str]:
    command = click.get_current_context(silent=True)
    found: dict[str, str] = {}
    for answer in command.meta.get("acknowledged", ()) if command else ():
        name, _, reason = (part.strip() for part in answer.partition("="))
        if not reason:
            raise CommandError(
                f'--acknowledge {name} says no reason: --acknowledge "{name}=why it is safe"'
            )
        if name not in {each.key for each in hazards} | {each.name for each in hazards}:
            there = ", ".join(each.key for each in hazards) or "none"
            raise CommandError(
                f"--acknowledge {name}: the change has no such hazard, only: {there}"
            )
        found[name] = reason
    return found


def _refusal(hazards: list[Hazard]) -> str:
    lines = ["This change may hurt production. No file was written."]
    for each in hazards:
        lines += ["", f"  {each.key}", f"    {each.happens}", f"    Safe: {each.recipe}"]
        if each.can_be_acknowledged:
            lines.append(f'    Or, if you know better: --acknowledge "{each.key}=the reason"')
    return "\n".join(lines)
