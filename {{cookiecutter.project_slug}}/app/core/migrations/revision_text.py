"""What `flask db migrate` is about to write, run as the file will run it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from alembic.migration import MigrationContext
from alembic.util import format_as_comma
from mako.template import Template  # type: ignore[import-untyped]

from app.core import history
from app.core.migrations import reversible


def running(migration: MigrationContext, operations: list[Any]) -> list[Callable[[], object]]:
    """Each operation as a call, in a file's own words and with its names."""
    names = _names()
    return [_call(reversible.source(migration, each), names) for each in operations]


def _names() -> dict[str, Any]:
    """What a new file has at hand: `op`, `sa`, and what the team's template imports besides."""
    template = Template(filename=str(history.FOLDER / "script.py.mako"))
    empty = template.render(
        up_revision="new",
        down_revision=None,
        branch_labels=None,
        depends_on=None,
        create_date=datetime.now(UTC),
        comma=format_as_comma,
        message="",
        imports="",
        upgrades="pass",
        downgrades="pass",
    )
    names: dict[str, Any] = {}
    exec(empty, names)
    return names


def _call(code: str, names: dict[str, Any]) -> Callable[[], object]:
    return lambda: exec(code, names)
