"""The commands `flask seed …`, `flask doctor` and `flask prepare`."""

import errno
import socket
import sys
from collections.abc import Callable

import click
import flask_migrate
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext
from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import doctor, history, privileges, seeding
from app.core.database import connect_when_ready
from app.core.database_errors import is_behind_the_models, reason
from app.models import db
from app.seeds import SEEDS

NOUNS = [seed.noun for seed in SEEDS]
AHEAD = (
    "the models are ahead of the database ({}): "
    "run `flask db migrate -m …` if they have changed, then `flask db upgrade`"
)

seed_group = AppGroup("seed", help="Plant and remove seeded rows; rows of users are never touched.")
noun_argument = click.argument("noun", metavar="[NOUN]", type=click.Choice(NOUNS), required=False)
production_option = click.option(
    "--yes-in-production", is_flag=True, help="Needed when APP_ENV is production."
)


def init_app(app: Flask) -> None:
    """Register the commands."""
    app.cli.add_command(doctor_command)
    app.cli.add_command(seed_group)
    app.cli.command("prepare")(prepare)


@seed_group.command("all")
@noun_argument
def seed_all(noun: str | None) -> None:
    """Plant all seeds, or those of one NOUN and of what it refers to."""
    _in_one_transaction(lambda: _plant(noun))


@seed_group.command("undo")
@noun_argument
@production_option
def seed_undo(noun: str | None, yes_in_production: bool) -> None:
    """Remove all seeded rows, or those of one NOUN."""
    _refuse_in_production(yes_in_production)
    _in_one_transaction(lambda: _remove(noun))


@seed_group.command("reset")
@noun_argument
@production_option
def seed_reset(noun: str | None, yes_in_production: bool) -> None:
    """Undo, then all."""
    _refuse_in_production(yes_in_production)
    _in_one_transaction(lambda: _remove(noun) + _plant(noun))


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
        _seed_at_start(reset=development)
    else:
        click.echo("3/4 seeds: skipped (RUN_SEEDS)")
    click.echo(f"4/4 serving on http://{settings.address}")


def _refuse_a_used_port(settings: Settings) -> None:
    ipv6 = ":" in settings.host
    try:
        socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),  # as gunicorn listens on ::
        ).close()
    except OSError as error:
        raise click.ClickException(_cannot_listen(settings.address, error)) from None


def _cannot_listen(address: str, error: OSError) -> str:
    why = str(error.strerror).partition(" (while ")[0]  # Python repeats the address there
    used = error.errno == errno.EADDRINUSE
    fix = "Stop the program that does, or set PORT." if used else "Set another HOST or PORT."
    return f"cannot listen on {address} ({why}). {fix}"


def _seed_at_start(reset: bool) -> None:
    settings: Settings = current_app.config["SETTINGS"]
    with db.engine.connect() as connection:
        if shortage := privileges.of_service(connection, settings.schema_name):
            raise click.ClickException(str(shortage))
    missing = set(NOUNS) - set(inspect(db.engine).get_table_names())
    if missing:
        names = ", ".join(sorted(missing))
        click.echo(f"3/4 seeds: skipped, {AHEAD.format(f'no table {names}')}")
        return
    _in_one_transaction(lambda: [*(_remove(None) if reset else []), *_plant(None)])
    click.echo("3/4 seeds: done")


def _plant(noun: str | None) -> list[str]:
    wanted = set(NOUNS) if noun is None else {noun}
    for seed in reversed(SEEDS):
        if seed.noun in wanted:
            wanted |= {key.column.table.name for key in seed.table.foreign_keys}
    return [seeding.plant(db.session(), seed) for seed in SEEDS if seed.noun in wanted]


def _remove(noun: str | None) -> list[str]:
    wanted = [seed for seed in reversed(SEEDS) if noun in (None, seed.noun)]
    return [seeding.remove(db.session(), seed) for seed in wanted]


def _in_one_transaction(work: Callable[[], list[str]]) -> None:
    try:
        with db.session.begin():
            seeding.lock(db.session())
            lines = work()
    except DBAPIError as error:
        if shortage := privileges.of_failed_statement(error):
            raise click.ClickException(f"{shortage} Nothing was changed.") from None
        why = reason(error)
        if is_behind_the_models(error):
            why = AHEAD.format(why)
        raise click.ClickException(f"{why}. Nothing was changed.") from None
    for line in lines:
        click.echo(line)


def _refuse_in_production(confirmed: bool) -> None:
    if current_app.config["SETTINGS"].production and not confirmed:
        raise click.UsageError(
            "this is production, and the command deletes rows. Add --yes-in-production to go ahead."
        )
