"""`flask db upgrade --sql`: the statements as a script."""

import io
import sys
from typing import TextIO, cast

from alembic import context
from sqlalchemy.schema import CreateSchema

from app.config import Settings
from app.core import extensions, privileges
from app.core.database import quote
from app.core.migrations import naming
from app.core.safety.statements import CONCURRENTLY
from app.models import db


def print_sql(settings: Settings, with_grants: bool) -> None:
    """Print what the command would run; `with_grants`: what SERVICE_ROLE needs afterwards, too."""
    context.configure(
        dialect_name="postgresql",
        target_metadata=db.metadata,
        literal_binds=True,
        transaction_per_migration=True,
        output_buffer=cast(TextIO, _Script(settings)),
    )
    naming.by_revision(context.get_context())
    schema = settings.schema_name
    context.execute(CreateSchema(schema, if_not_exists=True))
    context.execute(f"SET search_path = {extensions.search_path(quote(schema))}")
    context.execute("SET statement_timeout = 0")
    context.execute(f"SET lock_timeout = {settings.migration_lock_timeout_ms}")
    with context.begin_transaction():
        context.run_migrations()
    if with_grants and settings.service_role:
        for statement in privileges.recipe(schema, settings.service_role):
            context.execute(statement)


class _Script(io.TextIOBase):
    """Standard output, where CONCURRENTLY waits as long as it must, as it does online."""

    def __init__(self, settings: Settings) -> None:
        self.timeout = settings.migration_lock_timeout_ms

    def write(self, words: str) -> int:
        if CONCURRENTLY.search(words):
            words = f"SET lock_timeout = 0;\n\n{words}SET lock_timeout = {self.timeout};\n\n"
        return sys.stdout.write(words)

    def flush(self) -> None:
        sys.stdout.flush()
