"""The commands `flask doctor` and `flask prepare`."""

import errno
import socket
import sys

import click
import flask_migrate
import structlog
from flask import Flask, current_app
from flask.cli import with_appcontext
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import doctor, history, seeding
from app.core.database import connect_when_ready
from app.core.logs import say
from app.models import db

log = structlog.get_logger("start")


def init_app(app: Flask) -> None:
    """Register the commands."""
    app.cli.add_command(doctor_command)
    app.cli.command("prepare")(prepare)


@click.command("doctor")
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many replicas must find connections.",
)
@with_appcontext
def doctor_command(replicas: int) -> None:
    """Print the state of settings, database and migrations; exit 1 if anything needs fixing.

    Each finding names the heading of docs/recovery.md that says what to do. Changes nothing.
    """
    lines = [*doctor.examine(current_app.config["SETTINGS"], replicas)]
    for line in lines:
        click.echo(line)
    findings = [line for line in lines if line.heading]
    click.echo(f"to fix: {len(findings)}" if findings else "nothing to fix")
    sys.exit(1 if findings else 0)


def prepare() -> None:
    """Wait for the database, upgrade it, seed it: what init.sh does before it serves."""
    settings: Settings = current_app.config["SETTINGS"]
    if not settings.production:
        _prepare(settings)
        return
    try:
        _prepare(settings)
    # In production the last words are a line of the log too, also those that nobody foresaw.
    except click.ClickException as error:
        log.error(error.format_message())
        sys.exit(error.exit_code)
    except SystemExit as error:
        if isinstance(error.code, str):
            log.error(str(error))
            sys.exit(1)
        raise
    except Exception:
        log.exception("the start failed")
        sys.exit(1)


def _prepare(settings: Settings) -> None:
    _refuse_a_used_port(settings, "PORT", settings.port)
    if settings.metrics_port:
        _refuse_a_used_port(settings, "METRICS_PORT", settings.metrics_port)
    connect_when_ready(db.engine, settings.database_wait_seconds).close()
    say("1/4 database: ready")
    if settings.run_migrations:
        if not history.FOLDER.exists():
            raise click.ClickException(
                "there is no migrations/ yet. Run: flask db init, then flask db migrate -m initial"
            )
        flask_migrate.upgrade()
    development = settings.app_env == "development"
    plants = development if settings.run_seeds is None else settings.run_seeds
    is_ahead = (settings.run_migrations or plants) and _is_ahead()
    if settings.run_migrations:
        none = "none, because the database is ahead of this code"
        say(f"2/4 migrations: {none if is_ahead else 'done'}")
    else:
        say("2/4 migrations: skipped (RUN_MIGRATIONS)")
    if not plants:
        say("3/4 seeds: skipped (RUN_SEEDS)")
    elif is_ahead:
        say("3/4 seeds: skipped, because those of the newer code are there")
    else:
        say(f"3/4 seeds: {seeding.plant_at_start(prune=development)}")
    say(f"4/4 serving on http://{settings.address}")


def _is_ahead() -> bool:
    """Whether newer code has migrated the database; no if this role may not see that."""
    try:
        with db.engine.connect() as connection:
            return bool(history.unknown(history.current(connection)))
    except DBAPIError:
        return False


def _error_of_listening(settings: Settings, port: int) -> OSError | None:
    ipv6 = ":" in settings.host
    try:
        socket.create_server(
            (settings.host, port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),  # as gunicorn listens on ::
        ).close()
    except OSError as error:
        return error
    return None


def _refuse_a_used_port(settings: Settings, name: str, port: int) -> None:
    if error := _error_of_listening(settings, port):
        why = str(error.strerror).partition(" (while ")[0]  # Python repeats the address there
        used = error.errno == errno.EADDRINUSE
        raise click.ClickException(
            f"cannot listen on {settings.address_of(port)} ({why}). "
            + (
                f"Stop the program that does, or set {name}."
                if used
                else f"Set another HOST or {name}."
            )
        )
