"""Runs `flask db …`, and writes revisions. `migrations/env.py` of the project only calls `run()`.

Read cli.py first: the commands. Each goes through environment.py: connection, lock (lock.py),
schema, retries, and what went wrong in plain words (failures.py). `flask db migrate` goes on to
autogenerate.py, which sorts the change into safe operations (safe_operations.py), looks for what
Alembic does not see (model_checks.py), and asks app/core/safety.
"""

from app.core.migrations.cli import init_app
from app.core.migrations.environment import run

__all__ = ["init_app", "run"]
