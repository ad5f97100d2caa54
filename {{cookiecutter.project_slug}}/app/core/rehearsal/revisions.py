"""The revisions to rehearse, and running one of them as production would."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alembic import command
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from app.core import history, releases
from app.core.database_errors import explained, is_in_use
from app.core.rehearsal.scratch import CannotRehearse

WRITES = ("INSERT", "UPDATE", "DELETE", "MERGE")


@dataclass
class Plan:
    """Which revisions are run, and which are there before."""

    before: list[Script]
    pending: list[Script]
    why: str

    @property
    def base(self) -> str:
        """Where the database is before."""
        followed = {parent for each in self.before for parent in each._all_down_revisions}
        tips = [each.revision for each in self.before if each.revision not in followed]
        return ", ".join(tips) or "an empty schema"


@contextmanager
def without_bytecode() -> Iterator[None]:
    """Run the revisions as they stand in their files.

    Python takes bytecode for that of a file if second and size agree: so it may be that of another
    text, which a program wrote there a moment before, while another rehearsal read it.
    """
    before = sys.pycache_prefix, sys.dont_write_bytecode
    sys.pycache_prefix, sys.dont_write_bytecode = os.devnull, True
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = before


def plan(start: str | None, backup: set[str] | None) -> Plan:
    """What follows `start`, the revisions of a backup, or what the last release has."""
    if not history.FOLDER.exists():
        raise CannotRehearse("There is no migrations/ yet. Run: flask db init")
    script = history.load()
    everything = history.ancestors(script, script.get_heads())
    if backup is not None:
        unknown = sorted(backup - {each.revision for each in everything})
        if unknown:
            raise CannotRehearse(
                f"The backup is at revision {unknown[0]}, which this code does not have: newer "
                "code made it. Rehearse it with the code that has the revision."
            )
        return _after(everything, _up_to(script, backup), "since the backup")
    if start is not None:
        return _after(everything, _up_to(script, _named(script, start)), f"after {start}")
    release = releases.last_release()
    released = releases.released_revisions()
    if release is None:
        why = "no release" if releases.is_git_here() else "git is not installed here"
        found = _after(everything, _all_but_the_last(everything), f"the last one: {why}")
    elif all(each.revision in released for each in everything):
        why = f"the last one: {release} has them all"
        found = _after(everything, _all_but_the_last(everything), why)
    else:
        found = _after(everything, released, f"since {release}")
    return found


def _after(everything: list[Script], done: set[str], why: str) -> Plan:
    before = [each for each in everything if each.revision in done]
    return Plan(before, [each for each in everything if each.revision not in done], why)


def _up_to(script: ScriptDirectory, revisions: set[str]) -> set[str]:
    return {each.revision for each in history.ancestors(script, revisions)}


def _named(script: ScriptDirectory, name: str) -> set[str]:
    try:
        return {each.revision for each in script.get_revisions(name) if each is not None}
    except CommandError:
        known = ", ".join(sorted(each.revision for each in script.walk_revisions())[-5:])
        raise CannotRehearse(
            f"There is no revision {name} in migrations/versions. The last ones are: {known}"
        ) from None


def _all_but_the_last(everything: list[Script]) -> set[str]:
    return {each.revision for each in everything[:-1]}


@dataclass
class Run:
    """What running a revision took."""

    seconds: float = 0
    rows: int = 0
    retries: int = 0
    error: str = ""
    # The last words of the database, which the error is about.
    cause: str = ""
    # It says itself that there is no way back.
    is_by_design: bool = False


def upgrade(script: Script, database: str) -> Run:
    """As init.sh does: the same function, lock, timeouts and retries."""
    config = current_app.extensions["migrate"].migrate.get_config()
    return _measured(lambda: command.upgrade(config, script.revision), database)


def downgrade(script: Script, database: str) -> Run:
    """As `flask db downgrade` does, but this one revision, also where branches were joined."""
    config = current_app.extensions["migrate"].migrate.get_config()
    folder = ScriptDirectory.from_config(config)

    def steps(*_: object) -> Iterator[MigrationStep]:
        yield MigrationStep.downgrade_from_script(
            folder.revision_map, folder.get_revision(script.revision)
        )

    def work() -> None:
        # Only the way there counts: this names no revision to go to.
        with EnvironmentContext(config, folder, fn=steps, destination_rev=script.revision):
            folder.run_env()

    return _measured(work, database)


def _measured(work: Callable[[], None], database: str) -> Run:
    run = Run()
    begun = time.monotonic()
    try:
        with _counting(run, database):
            work()
    except NotImplementedError as error:
        run.error, run.is_by_design = str(error) or "NotImplementedError", True
    except CommandError as error:
        # Without the advice for a database that somebody needs.
        is_the_databases = run.cause and run.cause.splitlines()[0] in str(error)
        run.error = run.cause if is_the_databases else str(error)
    except DBAPIError as error:
        run.error = explained(error)
    except SystemExit as error:
        run.error = ends(error)
    except Exception as error:
        run.error = f"{type(error).__name__}: {error}"
    run.seconds = time.monotonic() - begun
    return run


def ends(error: SystemExit) -> str:
    """What code that ends the process says, or that it does."""
    words = f"it ends the process (SystemExit {error.code})"
    return error.code if isinstance(error.code, str) else words


@contextmanager
def _counting(run: Run, database: str) -> Iterator[None]:
    """Count what goes through the connections to this database."""

    def after(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        is_alembics = "alembic_version" in statement
        if connection.engine.url.database == database and not is_alembics:
            # What the server says it did: "UPDATE 4".
            writes = (cursor.statusmessage or "").startswith(WRITES)
            run.rows += max(cursor.rowcount, 0) if writes else 0

    def failed(context: Any) -> None:
        error = context.sqlalchemy_exception
        if isinstance(error, DBAPIError):
            run.retries += is_in_use(error)
            run.cause = (
                f"{explained(error)}\n  in: {' '.join((error.statement or '').split())[:200]}"
            )

    event.listen(Engine, "after_cursor_execute", after)
    event.listen(Engine, "handle_error", failed)
    try:
        yield
    finally:
        event.remove(Engine, "after_cursor_execute", after)
        event.remove(Engine, "handle_error", failed)
