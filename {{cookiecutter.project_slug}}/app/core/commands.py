"""The commands `flask db lint`, `flask doctor` and `flask prepare`."""

import os
import socket
import sys

import click
import flask_migrate
from flask import Flask, current_app
from flask.cli import with_appcontext
from flask_migrate.cli import db as flask_db

from app.config import Settings
from app.core import doctor, history, lint, seeding
from app.core.database import connect_when_ready
from app.models import db


def init_app(app: Flask) -> None:
    """Register the commands."""
    flask_db.add_command(lint_command)
    app.cli.add_command(doctor_command)
    app.cli.command("prepare")(prepare)


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
    report = lint.report(current_app.config["SETTINGS"], revision)
    click.echo(report.json() if as_json else report.text())
    sys.exit(report.exit_code)


@click.command("doctor")
@with_appcontext
def doctor_command() -> None:
    """Print the state of settings, database and migrations; exit 1 if anything needs a hand.

    Each finding names the heading of docs/recovery.md that says what to do. Changes nothing.
    """
    lines = [*doctor.examine(current_app.config["SETTINGS"])]
    for line in lines:
        click.echo(line)
    findings = [line for line in lines if line.heading]
    click.echo(f"needs a hand: {len(findings)}" if findings else "nothing needs a hand")
    sys.exit(1 if findings else 0)


def prepare() -> None:
    """Wait for the database, upgrade it, seed it: what init.sh does before it serves."""
    settings: Settings = current_app.config["SETTINGS"]
    _refuse_a_used_port(settings)
    connect_when_ready(db.engine, settings.database_wait_seconds).close()
    click.echo("1/4 database: ready")
    if settings.run_migrations:
        if not history.FOLDER.exists():
            raise click.ClickException(
                "there is no migrations/ yet. Run: flask db init, then flask db migrate -m initial"
            )
        flask_migrate.upgrade()
        click.echo("2/4 migrations: done")
    else:
        click.echo("2/4 migrations: skipped (RUN_MIGRATIONS)")
    development = settings.app_env == "development"
    if settings.run_seeds or (settings.run_seeds is None and development):
        click.echo(f"3/4 seeds: {seeding.plant_at_start(prune=development)}")
    else:
        click.echo("3/4 seeds: skipped (RUN_SEEDS)")
    click.echo(f"4/4 serving on http://{settings.host}:{settings.port}")


def _refuse_a_used_port(settings: Settings) -> None:
    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno or 0)}). "
            "Stop the program that does, or set PORT."
        ) from None
