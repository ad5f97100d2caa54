"""Compares server defaults as the server spells them; Alembic compares two texts."""

from contextlib import suppress
from typing import Any

from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Computed, Identity

PLUGIN = "app.server_defaults"


def compare(
    context: Any, alter: Any, _schema: Any, _table: Any, _column: Any, found: Any, model: Any
) -> PriorityDispatchResult:
    """Say in `alter` what the default is, and what it becomes."""
    both = context.migration_context.opts["columns_of_both"]
    wanted, there = both(model)
    identities = any(isinstance(each.server_default, Identity) for each in (found, model))
    if wanted is None or there is None or identities:
        return PriorityDispatchResult.CONTINUE
    computed = any(isinstance(each.server_default, Computed) for each in (found, model))
    if computed or wanted.generated or there.generated:
        return PriorityDispatchResult.STOP
    alter.existing_server_default = found.server_default
    numbers_itself = wanted.default is None and "nextval(" in (there.default or "")
    if wanted.default != there.default and not numbers_itself:
        alter.modify_server_default = model.server_default
    return PriorityDispatchResult.STOP


# Alembic keeps one list of plugins for all of a process, and refuses a name that it has: a worker
# of development imports this again when it reloads.
with suppress(ValueError):
    Plugin(PLUGIN).add_autogenerate_comparator(
        compare, "column", "server_default", priority=DispatchPriority.FIRST
    )
