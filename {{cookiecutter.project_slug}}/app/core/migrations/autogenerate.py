"""What `flask db migrate` writes: the safe form of the change, or a refusal with all its hazards.

The server is asked three times: what the models would build and what is there now, so that no
difference stays unseen; what it does when the new revisions run; and what is there after them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pprint import pformat
from typing import Any

import click
import structlog
from alembic import context
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations.ops import DowngradeOps, MigrationScript, UpgradeOps
from alembic.util import CommandError
from sqlalchemy import Column, Connection
from sqlalchemy.exc import OperationalError, SAWarning, SQLAlchemyError

from app.config import Settings
from app.core import history
from app.core.database_errors import reason
from app.core.migrations import (
    drops,
    model_checks,
    ownership,
    reversible,
    revision_text,
    safe_operations,
    server_defaults,
    types,
    unseen,
)
from app.core.migrations.differences import Difference, between, retyped, seen, sentences
from app.core.migrations.safe_operations import Steps
from app.core.rows import violation
from app.core.safety import checks
from app.core.safety.catalog import Catalog
from app.core.safety.dry_run import dry_run
from app.core.safety.hazards import HAZARDS, Hazard, unique, without_acknowledged
from app.core.safety.observed import CannotJudge
from app.core.safety.offline import enum_labels
from app.core.waiting import telling
from app.models import db

log = structlog.get_logger("migrations")


def differences(connection: Connection, settings: Settings) -> list[str]:
    """Where models and database differ, in sentences, as `flask db check` prints them."""
    autogenerate = Autogenerate(settings)
    migration = MigrationContext.configure(connection, opts=autogenerate.options())
    with tables_may_refer_to_each_other():
        upgrade = produce_migrations(migration, db.metadata).upgrade_ops
    assert upgrade is not None
    return autogenerate.differences(upgrade)


@contextmanager
def tables_may_refer_to_each_other() -> Iterator[None]:
    """No warning that they cannot be sorted: safe_operations.py knows what to do then."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot correctly sort tables", SAWarning)
        yield


class Autogenerate:
    """One run of `flask db migrate` or `flask db check`: Alembic asks it while it compares."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ownership = ownership.Ownership()

    def options(self) -> dict[str, Any]:
        """What it brings to Alembic's `context.configure`."""
        return {
            "include_object": self.is_ours,
            "compare_type": self.type_differs,
            # By the plugin below.
            "compare_server_default": True,
            "process_revision_directives": self.finish,
            "render_item": reversible.render_item,
            "autogenerate_plugins": [
                "alembic.autogenerate.*",
                # CHECK constraints by name, which Alembic alone does not compare.
                "alembic.ext.checkconstraint_byname",
                server_defaults.PLUGIN,
            ],
            # For server_defaults.
            "columns_of_both": self.both,
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
            raise CommandError(f"The models cannot be built: {reason(error)}") from None

    @cached_property
    def faultless(self) -> bool:
        """True, or the refusal of what no comparison can do anything with: looked at once."""
        model_checks.refuse_faults()
        return True

    def both(self, column: Column[Any]) -> tuple[Any, Any]:
        """A model's column as the server would have it, and as it has it now; None for neither."""
        models, database = self.catalogs
        model = models.table_id(column.table.name, *models.schemas.values())
        there = database.table_id(column.table.name, self.settings.schema_name)
        return (
            models.columns_of(model).get(column.name),
            database.columns_of(there).get(column.name),
        )

    def type_differs(
        self, _context: Any, _inspected: Any, column: Column[Any], *_types: Any
    ) -> bool | None:
        """Whether the server spells the types differently; None where it does not know both."""
        model, there = self.both(column)
        return None if model is None or there is None else model.type != there.type

    def is_ours(self, item: Any, name: str, kind: str, reflected: bool, model: Any) -> bool:
        """False for what no model has and no revision of ours made, and for what was let go."""
        assert self.faultless
        if not reflected:
            return not model_checks.is_view(item) and not self._has_another_name(item, name)
        if model is not None:
            return True
        unused = ownership.unused_in_models()
        if kind == "table":
            return name not in unused and self.ownership.created(name)
        if kind == "column":
            place = f"{item.table.name}.{name}"
            return place not in unused and self.ownership.mentioned(name)
        columns = {f"{item.table.name}.{each.name}" for each in getattr(item, "columns", ())}
        return not columns & unused and self.ownership.written(name)

    def _has_another_name(self, item: Any, name: str) -> bool:
        """Whether a constraint or an index is there already, under a name that we did not give."""
        if getattr(item, "table", None) is None:
            return False
        models, database = self.catalogs
        table = models.table_id(item.table.name, *models.schemas.values())
        there = database.table_id(item.table.name, self.settings.schema_name)
        ours: list[Any] = [*models.constraints_of(table), *models.indexes_of(table)]
        found: list[Any] = [*database.constraints_of(there), *database.indexes_of(there)]
        wanted = {each.definition for each in ours if each.name == name}
        return any(
            each.definition in wanted
            and each.name != name
            and not self.ownership.written(each.name)
            for each in found
        )

    def finish(
        self, migration: MigrationContext, _revision: Any, directives: list[MigrationScript]
    ) -> None:
        """Replace what Alembic would write by the safe form, or refuse."""
        upgrade = directives[0].upgrade_ops
        assert upgrade is not None
        # `flask db check` comes here too, and needs no more than the differences.
        if not getattr(context.config.cmd_opts, "autogenerate", False):
            found = self.differences(upgrade)
            if found:
                raise CommandError("\n".join(_report(found)))
            return
        model_checks.refuse_unmarked_views(history.views(_connection(migration)))
        drops.children_first(upgrade, _connection(migration))
        reversible.spell_sql_for_files(migration)
        before = history.ancestors(context.script, context.script.get_heads())
        let_go = ownership.unused_in_models() - history.recorded_as_unused(before)
        drops.complete(safe_operations.flat(upgrade), _connection(migration))
        steps, hazards = self._steps(upgrade, let_go)
        parts, records = self._judge(steps, before, migration, hazards)
        everything = unique(each for part in parts for each in part)
        acknowledged = _acknowledged_on_the_command_line(everything)
        left = without_acknowledged(everything, acknowledged)
        if left:
            raise CommandError(_refusal(left))
        steps.change += records
        revisions = steps.revisions() or ([("", [])] if let_go else [])
        if not revisions:
            directives.clear()
            log.info(
                "no changes in the models: no revision written "
                "(a new model must be imported in app/models/__init__.py)"
            )
            return
        facts = _facts(acknowledged, parts, let_go)
        _write(directives, revisions, facts)
        _look_at_the_rows(steps, _connection(migration))

    def differences(self, upgrade: UpgradeOps) -> list[str]:
        """Where models and database differ, in sentences."""
        models, database = self.catalogs
        operations = [*safe_operations.flat(upgrade)]
        places, spelled_anew = seen(operations), retyped(operations)
        found = [*sentences(operations)]
        found += [
            str(each)
            for each in between(models, database, self.settings.schema_name)
            if (each.table, each.item) not in places and each.table not in spelled_anew
        ]
        script = history.load()
        before = history.ancestors(script, script.get_heads())
        let_go = ownership.unused_in_models() - history.recorded_as_unused(before)
        found += [f"{each} is marked as unused, and no revision says so yet" for each in let_go]
        found += [
            f"{hazard.where} no longer has the value {hazard.detail}, which rows may have"
            for hazard, _ in model_checks.removed_enum_values(enum_labels(before))
        ]
        return sorted(found)

    def _steps(self, upgrade: UpgradeOps, let_go: set[str]) -> tuple[Steps, list[Hazard]]:
        """What Alembic wrote, sorted into steps, and the hazards of native enums in it."""
        _, database = self.catalogs
        operations = [*safe_operations.flat(upgrade)]
        for each in operations:
            reversible.take_literally(each)
        existing = {each.name for each in database.enums.values()}
        enums = [*types.new_enums(operations, existing)]
        steps = Steps(database, self.settings.schema_name)
        steps.change += [create for _, create in enums]
        steps.add(operations)
        steps.change += safe_operations.let_go(let_go, database, self.settings.schema_name)
        return steps, [hazard for hazard, _ in enums]

    def _judge(
        self,
        steps: Steps,
        before: list[Any],
        migration: MigrationContext,
        hazards: list[Hazard],
    ) -> tuple[list[list[Hazard]], list[Any]]:
        """The hazards of each part of the change, and operations that record what no table shows.

        `hazards` are known already. What Alembic did not see is added to the steps, and judged too.
        """
        # A column cannot leave a primary key before the key is another one.
        keys = [
            each
            for each in between(*self.catalogs, self.settings.schema_name)
            if each.kind == "p" and (each.table, None) not in steps.created
        ]
        unseen.write(steps, keys, _connection(migration))
        parts, left, removed = self._dry_run(steps, before, migration)
        if left and unseen.write(steps, left, _connection(migration)):
            parts, left, removed = self._dry_run(steps, before, migration)
        known = {each.where for part in parts for each in part}
        others = [each.hazard() for each in left]
        parts[0] += [each for each in others if each.where not in known]
        parts[0] += [each.hazard() for each in keys]
        parts[0] += [*hazards, *(hazard for hazard, _ in removed)]
        unused = history.recorded_as_unused(before)
        return [
            [self._explained(each, steps) for each in part if not _was_let_go(each, unused)]
            for part in parts
        ], [record for _, record in removed]

    def _explained(self, hazard: Hazard, steps: Steps) -> Hazard:
        hazard = types.name_the_zone(hazard, steps.change)
        return model_checks.looks_like_a_rename(hazard, steps)

    def _dry_run(
        self, steps: Steps, before: list[Any], migration: MigrationContext
    ) -> tuple[list[list[Hazard]], list[Difference], list[tuple[Hazard, Any]]]:
        """What the server says of each part, and what differs after all of them."""
        models, _ = self.catalogs
        with dry_run(self.settings) as run, telling("trying the change in a dry run"):
            try:
                run.start(before, at_current=True)
            except CannotJudge as error:
                raise CommandError(f"The change cannot be judged: {error}") from None
            removed = [*model_checks.removed_enum_values(enum_labels(before))]
            parts = []
            for _, operations in steps.revisions():
                observed = run.observe(revision_text.running(migration, operations))
                parts.append(checks.hazards(observed))
                # Where something failed, what is missing after it is no second finding.
                if observed.failures:
                    return parts, [], removed
            left = between(models, run.catalog(), run.schema)
            return parts or [[]], [*left], removed


def _connection(migration: MigrationContext) -> Connection:
    assert migration.connection is not None
    return migration.connection


def _was_let_go(hazard: Hazard, unused: set[str]) -> bool:
    return hazard.name in ("column-drop", "table-drop") and hazard.where in unused


def _facts(
    acknowledged: dict[str, str], parts: list[list[Hazard]], let_go: set[str]
) -> list[dict[str, Any]]:
    """What the user said of the change, by the file that it is true of."""
    facts: list[dict[str, Any]] = [
        {
            "acknowledged": {
                name: why
                for name, why in acknowledged.items()
                if any(name in (each.key, each.name) for each in part)
            }
        }
        for part in parts
    ]
    facts[0]["unused"] = sorted(let_go)
    return facts


def _write(
    directives: list[MigrationScript],
    revisions: list[tuple[str, list[Any]]],
    facts: list[dict[str, Any]],
) -> None:
    """One revision file per part, with what the user said of it."""
    first = previous = directives[0]
    said = {}
    for number, (word, operations) in enumerate(revisions):
        upgrade = UpgradeOps(operations)
        downgrade = DowngradeOps(reversible.undone(operations))
        if number == 0:
            first.upgrade_ops, first.downgrade_ops = upgrade, downgrade
        else:
            message = f"{first.message or ''} {word}".strip()
            revision = history.next_revision_id(after=previous.rev_id or "")
            previous = MigrationScript(
                revision, upgrade, downgrade, message=message, head=previous.rev_id
            )
            directives.append(previous)
        true_here = facts[number] if number < len(facts) else {}
        said[previous.rev_id] = {
            name: pformat(value, width=90) for name, value in true_here.items() if value
        }
    context.get_context().opts["template_args"]["facts"] = said


def _look_at_the_rows(steps: Steps, connection: Connection) -> None:
    """Say at once which rows of this database `flask db upgrade` will stop at."""
    for each in steps.looks:
        found = violation(connection, each.table, each.where, **each.words)
        if found:
            log.warning(f"flask db upgrade will stop at the rows of this database:\n{found}")


def _acknowledged_on_the_command_line(hazards: list[Hazard]) -> dict[str, str]:
    command = click.get_current_context(silent=True)
    found: dict[str, str] = {}
    needless = []
    names = {each.key for each in hazards} | {each.name for each in hazards}
    for answer in command.meta.get("acknowledged", ()) if command else ():
        name, _, reason = (part.strip() for part in answer.partition("="))
        if not reason:
            raise CommandError(
                f'--acknowledge {name} says no reason: --acknowledge "{name}=why it is safe"'
            )
        if name in names:
            found[name] = reason
        else:
            needless.append(name)
    left = without_acknowledged(hazards, found)
    if needless and (left or not _are_hazards(needless)):
        said = _refusal(left) if left else "No file was written."
        raise CommandError(f"--acknowledge {needless[0]}: the change has no such hazard. {said}")
    for name in needless:
        log.info(f"--acknowledge {name} was not needed: the change has no such hazard")
    return found


def _are_hazards(names: list[str]) -> bool:
    return all(name.partition(":")[0] in HAZARDS for name in names)


def _report(found: list[str]) -> list[str]:
    return [
        "Models and database differ:",
        *(f"  {each}" for each in found),
        'Write the change: flask db migrate -m "what it does"',
    ]


def _refusal(hazards: list[Hazard]) -> str:
    lines = ["This change may hurt production. No file was written."]
    for each in hazards:
        lines += ["", f"  {each.key}", f"    {each.happens}", f"    Safe: {each.recipe}"]
        if each.can_be_acknowledged:
            lines.append(f'    Or, if you know better: --acknowledge "{each.key}=the reason"')
    return "\n".join(lines)
