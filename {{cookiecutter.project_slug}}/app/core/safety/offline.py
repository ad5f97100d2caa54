"""What a revision would send, as far as it can say so without a database."""

import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import AddColumnOp, AlterColumnOp, CreateTableOp
from alembic.script import Script
from sqlalchemy import Column, Enum

from app.core import history
from app.core.safety.proxies import no_other_connection, proxies
from app.core.safety.statements import Statement
from app.core.sql import split


def statements(script: Script) -> list[Statement]:
    """The statements of upgrade(), up to the first that needs an answer."""
    buffer = io.StringIO()
    _run(script, buffer)
    autocommit = False
    found = []
    for piece in re.split(r"(-- (?:autocommit|transaction)\n;)", buffer.getvalue()):
        if piece.startswith("-- "):
            autocommit = piece.startswith("-- autocommit")
        else:
            found += [Statement(each, autocommit) for each in split(piece)]
    return found


def enum_labels(history: Iterable[Script]) -> dict[tuple[str, str], list[str]]:
    """The labels that the history gave to each enum column, by (table, column)."""
    labels: dict[tuple[str, str], list[str]] = {}

    def note(operation: Any) -> Any:
        for table, column, type_ in typed_columns(operation):
            if isinstance(type_, Enum):
                labels[table, column] = list(type_.enums)
        # What a revision may go on to work with; SQL is not asked for.
        return operation.to_table() if isinstance(operation, CreateTableOp) else None

    for script in history:
        if "Enum" in Path(script.path).read_text("utf-8"):
            _run(script, io.StringIO(), note)
    return labels


def typed_columns(operation: Any) -> Iterator[tuple[str, str, Any]]:
    """The columns to which an operation of Alembic gives a type: table, column, type."""
    if isinstance(operation, CreateTableOp):
        for column in operation.columns:
            if isinstance(column, Column):
                yield operation.table_name, column.name, column.type
    elif isinstance(operation, AddColumnOp):
        yield operation.table_name, operation.column.name, operation.column.type
    elif isinstance(operation, AlterColumnOp) and operation.modify_type is not None:
        yield operation.table_name, operation.column_name, operation.modify_type


def _run(script: Script, buffer: io.StringIO, invoke: Callable[[Any], Any] | None = None) -> None:
    """Run upgrade() without a database; its operations go to `invoke`, by default to the buffer."""
    metadata = history.metadata_of(script)
    options = {"as_sql": True, "output_buffer": buffer, "target_metadata": metadata}
    logger = logging.getLogger("alembic.runtime.migration")
    logger.disabled = True  # "Generating static SQL" is not what the user asked for
    migration = MigrationContext.configure(dialect_name="postgresql", opts=options)
    logger.disabled = False

    @contextmanager
    def autocommit_block() -> Iterator[None]:
        buffer.write("-- autocommit\n;")
        yield
        buffer.write("-- transaction\n;")

    migration.autocommit_block = autocommit_block  # type: ignore[method-assign]
    operations = Operations(migration)
    if invoke is not None:
        operations.invoke = invoke  # type: ignore[method-assign,assignment]
    # What came before an error is known all the same.
    errors = suppress(Exception, SystemExit)
    with proxies(operations), no_other_connection(), redirect_stdout(io.StringIO()), errors:
        script.module.upgrade()
