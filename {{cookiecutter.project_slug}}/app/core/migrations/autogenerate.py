"""What `flask db migrate` writes: the safe form of the change, or a refusal with all its hazards.

The server is asked three times: what the models would build and what is there now, so that no
difference stays unseen; what it does when the new revisions run; and what is there after them.
"""

from collections.abc import Callable, Iterator
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
from sqlalchemy import Column, DefaultClause, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from app.config import Settings
from app.core import history
from app.core.database_errors import reason
from app.core.migrations import model_checks, safe_operations
from app.core.migrations.safe_operations import Steps
from app.core.safety import checks
from app.core.safety.catalog import Catalog
from app.core.safety.dry_run import CannotJudge, dry_run
from app.core.safety.hazards import Hazard, unique, without_acknowledged
from app.core.safety.offline import enum_labels
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
            return model_checks.at_models(self.settings)
        except OperationalError:
            raise  # a table is in use
        except CannotJudge as error:
            raise CommandError(f"The models cannot be built in a dry run: {error}") from None
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
        steps = safe_operations.steps(upgrade, database, self.settings.schema_name)
        before = history.ancestors(context.script, context.script.get_heads())
        let_go = unused_columns() - history.unused_columns(before)
        steps.change += safe_operations.let_go(let_go, database, self.settings.schema_name)
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
        hazards = [*model_checks.native_enums(steps)]
        with dry_run(self.settings) as run:
            try:
                run.start(before, at_current=True)
            except CannotJudge as error:
                raise CommandError(f"The change can not be judged: {error}") from None
            removed = [*model_checks.removed_enum_values(enum_labels(before))]
            for _, operations in steps.revisions():
                works = (_running(migration, each) for each in operations)
                observed = run.observe(works)
                hazards += checks.hazards(observed)
                # Where something failed, what is missing after it is no second finding.
                if observed.failures:
                    break
            else:
                known = {each.where for each in hazards}
                hazards += [
                    each
                    for each in model_checks.blind_spots(models, run)
                    if each.where not in known
                ]
        if any(each.name == "native-enum" for each in hazards):
            hazards = [each for each in hazards if each.name != "fails"]
        dropped = history.unused_columns(before)
        hazards += [hazard for hazard, _ in removed]
        kept = [
            model_checks.looks_like_a_rename(each, steps)
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


def _running(migration: MigrationContext, operation: Any) -> Callable[[], object]:
    code = safe_operations.source(migration, operation)
    return lambda: exec(code, {"op": alembic.op, "sa": sqlalchemy})


def _write(
    directives: list[MigrationScript], parts: list[tuple[str, list[Any]]], facts: dict[str, Any]
) -> None:
    """One revision file per part; what the user said of the change stands in the first."""
    first = previous = directives[0]
    for number, (word, operations) in enumerate(parts):
        upgrade, downgrade = (
            UpgradeOps(operations),
            DowngradeOps(safe_operations.undone(operations)),
        )
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
