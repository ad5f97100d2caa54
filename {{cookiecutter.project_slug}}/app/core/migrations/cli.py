"""The commands `flask db …`: Flask-Migrate's with plain words, `lint` and `rehearse`."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from alembic.util import CommandError
from flask import Flask, current_app
from flask.cli import with_appcontext
from flask_migrate import Migrate
from flask_migrate.cli import db as flask_db
from sqlalchemy.exc import DBAPIError

from app.core import history
from app.core.database_errors import reason
from app.core.migrations.failures import JOIN_THE_HEADS
from app.core.rehearsal.cli import rehearse_command
from app.core.rehearsal.scratch import CannotRehearse
from app.core.safety import judge_pending
from app.models import db

# Where they go unless told otherwise; with several heads there is no such place.
TO_THE_HEAD = ("upgrade", "migrate", "revision", "show", "stamp", "rehearse")


def init_app(app: Flask) -> None:
    """Attach `flask db …`, whose files are in `migrations/` wherever it is called from."""
    Migrate(
        app,
        db,
        directory=str(history.FOLDER).replace("%", "%%"),
        render_as_batch=False,
        transaction_per_migration=True,
    )


def _with_readable_history(callback: Any, name: str) -> Callable[..., Any]:
    """Say in a sentence what is wrong with the revision files, where Alembic shows a traceback."""

    @wraps(callback)
    def checked(*words: Any, **options: Any) -> Any:
        if history.FOLDER.exists():
            refusal = CannotRehearse if name == "rehearse" else click.ClickException
            _check_history(name in TO_THE_HEAD and _goes_to_head(options), refusal)
        return callback(*words, **options)

    return checked


def _goes_to_head(options: dict[str, Any]) -> bool:
    return str(options.get("revision", "head")) == "head" and options.get("head", "head") == "head"


def _check_history(needs_one_head: bool, refusal: type[click.ClickException]) -> None:
    for revision, files in history.files_by_revision().items():
        if len(files) > 1:
            raise refusal(
                f"{' and '.join(files)} are both revision {revision}. Give one of them another "
                "`revision`, and change the next one's `down_revision` to match."
            )
    try:
        heads = history.load().get_heads()
    except KeyError as error:
        raise refusal(
            f"Revision {error.args[0]} is missing, and a file in migrations/versions builds on it. "
            "Restore its file (git log --diff-filter=D --stat -- migrations/versions shows what "
            "was deleted), or set the other one's `down_revision`."
        ) from None
    except CommandError as error:
        raise refusal(str(error)) from None
    except (Exception, SystemExit) as error:
        raise refusal(
            f"A file in migrations/versions cannot be loaded: {type(error).__name__}: {error}"
        ) from None
    if needs_one_head and len(heads) > 1:
        raise refusal(f"There are several heads: {', '.join(heads)}. {JOIN_THE_HEADS}")


@click.command("lint")
@click.argument("revision", required=False, metavar="[REVISION|FROM:TO]")
@click.option("--json", "as_json", is_flag=True, help="Print the report for tools.")
@with_appcontext
def lint_command(revision: str | None, as_json: bool) -> None:
    """Say what a revision would do to a database with users.

    Judges all revisions that the database does not have yet, or those given. They are run in a
    transaction that is rolled back, in a schema of its own.

    Exit code: 0 clean, 1 hazards, 2 could not judge.
    """
    try:
        report = judge_pending(current_app.config["SETTINGS"], revision)
    except DBAPIError as error:
        click.echo(f"The database cannot be read: {reason(error)}. Run: flask doctor", err=True)
        sys.exit(2)
    click.echo(report.json() if as_json else report.text())
    sys.exit(report.exit_code)


def _extend_flask_migrate() -> None:
    for name in ("migrate", "revision", "merge"):
        for option in flask_db.commands[name].params:
            if option.name == "rev_id":
                option.default = history.next_revision_id
    flask_db.add_command(rehearse_command)
    for name, command in flask_db.commands.items():
        if name not in ("init", "list-templates"):
            command.callback = _with_readable_history(command.callback, name)
    flask_db.commands["migrate"].params.append(
        click.Option(
            ["--acknowledge"],
            multiple=True,
            expose_value=False,
            metavar="HAZARD=REASON",
            help="Write the change in spite of this hazard; the file will say the reason.",
            callback=lambda command, _, values: command.meta.update(acknowledged=values),
        )
    )
    flask_db.add_command(lint_command)


# Flask-Migrate has one group of commands for all apps of a process.
_extend_flask_migrate()
