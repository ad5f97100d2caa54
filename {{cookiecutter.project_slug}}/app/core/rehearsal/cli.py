"""The command `flask db rehearse`."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import click
import psycopg
from flask import current_app
from flask.cli import with_appcontext
from sqlalchemy.exc import DBAPIError

from app.core import releases
from app.core.database import DatabaseUnavailable
from app.core.database_errors import reason
from app.core.rehearsal.scratch import CannotRehearse


class Terminated(KeyboardInterrupt):
    """A signal ends the process, no revision; it carries the exit code."""


@click.command("rehearse")
@click.argument("file", required=False, metavar="[FILE]")
@click.option("--from", "start", metavar="REVISION", help="Run what comes after it.")
@click.option("--previous", metavar="REF", help="The release before: a tag, branch or commit.")
@click.option(
    "--rows", type=click.IntRange(0), default=0, help="Copy the seeds until a table has so many."
)
@click.option("--readers", type=click.IntRange(0, 100), default=4, show_default=True)
@click.option("--writers", type=click.IntRange(0, 100), default=4, show_default=True)
@click.option(
    "--rate",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="Statements a second of each of them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report for tools.")
@with_appcontext
def rehearse_command(as_json: bool, **words: Any) -> None:
    """Run the pending revisions on a copy of the data, under load.

    FILE is a backup of `flask backup create` (a path, a name in BACKUP_DIR, s3://bucket/name, or
    `latest`): the copy is made of it. Without FILE, the copy is an
    empty database with the seeds of the last release, or with many copies of them (--rows).

    The copy is a database of its own on the embedded server, or on that of
    REHEARSAL_DATABASE_URL, and is removed afterwards. Readers and writers work on its tables while
    the revisions run, as the service would. Then they are run down and up again, rows are counted,
    and the models of the release before, which git has, read and write all tables.

    Exit code: 0 nothing to fix, 1 somebody would wait longer than MIGRATION_LOCK_TIMEOUT_MS or
    something breaks, 2 it could not be rehearsed.
    """
    # Here, because backups migrate too, and nobody else needs all this.
    from app.core.backups.errors import BackupError
    from app.core.rehearsal.previous import DoesNotRunError
    from app.core.rehearsal.revisions import ends
    from app.core.rehearsal.run import Options, rehearse

    options = Options(**words)
    if options.file and (options.start or options.rows):
        raise click.UsageError("--from and --rows are for a rehearsal without FILE.")
    if options.previous and not releases.is_known(options.previous):
        why = f"git does not know {options.previous!r} here: it wants a tag, a branch or a commit."
        if not releases.is_git_here():
            why = "git is not installed here, so no release before is known."
        raise click.BadParameter(why, param_hint="--previous")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with _stdout_kept_clean():
            report = rehearse(current_app.config["SETTINGS"], options)
    except KeyboardInterrupt as error:
        click.echo("stopped; the scratch database is removed", err=True)
        sys.exit(error.args[0] if isinstance(error, Terminated) else 130)
    except BackupError as error:
        raise CannotRehearse(error.message) from None
    except (DatabaseUnavailable, DoesNotRunError) as error:
        raise CannotRehearse(str(error)) from None
    except SystemExit as error:
        raise CannotRehearse(f"A file of migrations or of the app: {ends(error)}") from None
    except (psycopg.Error, DBAPIError) as error:
        raise CannotRehearse(f"The scratch database: {reason(error)}") from None
    click.echo(report.json() if as_json else report.text())
    sys.exit(report.exit_code)


@contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """What revisions print is no part of the report, nor what a program prints that they start."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _end(number: int, _frame: object) -> None:
    """Clean up as after Ctrl-C."""
    raise Terminated(128 + number)
