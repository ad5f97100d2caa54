"""The surroundings of a revision that is tried: `op`, `context`, and no other connection."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import alembic.context
import alembic.op
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event

from app.core.safety.observed import CannotJudge


@contextmanager
def proxies(operations: Operations) -> Iterator[None]:
    """Put `operations` behind `from alembic import op`, and what was there back in the end."""
    outer = _proxy(alembic.op)
    operations._install_proxy()
    environment = None
    if _proxy(alembic.context) is None:
        config = Config()
        environment = EnvironmentContext(config, ScriptDirectory("."))
        environment._migration_context = operations.get_context()
        environment._install_proxy()
    try:
        yield
    finally:
        if environment is not None:
            environment._remove_proxy()
        if outer is None:
            operations._remove_proxy()
        else:
            outer._install_proxy()


@contextmanager
def no_other_connection(ours: Any = None) -> Iterator[None]:
    """Refuse what a revision sends on another connection: it would work on the real rows."""
    thread = threading.get_ident()

    def refuse(connection: Connection, *_: Any) -> None:
        theirs = connection.connection.driver_connection
        if theirs is not ours and threading.get_ident() == thread:
            raise CannotJudge(
                "it works on a connection of its own, which a dry run cannot roll back: take "
                "op.get_bind(), not db.session or an engine"
            )

    event.listen(Engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", refuse)


def _proxy(module: ModuleType) -> Any:
    return getattr(module, "_proxy", None)
