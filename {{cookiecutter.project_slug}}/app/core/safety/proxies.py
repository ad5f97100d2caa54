"""What `from alembic import op, context` means while a revision is tried."""

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


def _proxy(module: ModuleType) -> Any:
    return getattr(module, "_proxy", None)
