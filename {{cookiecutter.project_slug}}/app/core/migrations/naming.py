"""Names for the constraints to which a revision gives none."""

from collections.abc import Iterator
from typing import Any

from alembic.migration import MigrationContext

from app.core import history


def by_revision(migration: MigrationContext) -> None:
    """Let each revision run under the naming convention that it was written under."""
    all_steps = migration._migrations_fn

    def steps(heads: Any, context: MigrationContext) -> Iterator[Any]:
        assert all_steps is not None
        for step in all_steps(heads, context):
            revision = getattr(step, "revision", None)
            context.opts["target_metadata"] = history.metadata_of(revision)
            yield step

    migration._migrations_fn = steps
