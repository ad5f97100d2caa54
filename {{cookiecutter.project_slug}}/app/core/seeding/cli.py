"""The commands `flask seed …`."""

from collections.abc import Callable, Iterable

import click
import psycopg
from flask import Flask, current_app
from flask.cli import AppGroup
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import privileges, refusals
from app.core.database_errors import is_behind_the_models
from app.core.logs import say
from app.core.seeding.planting import plant
from app.core.seeding.removal import remove
from app.core.seeding.seed import Seed, SeedError, reason_in_full
from app.models import db

AHEAD = (
    "the models are ahead of the database ({}): "
    "run `flask db migrate -m …` if they have changed, then `flask db upgrade`"
)

seed_group = AppGroup("seed", help="Plant and remove seeded rows; rows of users are never touched.")
noun_argument = click.argument("noun", metavar="[NOUN]", required=False)
production_option = click.option(
    "--yes-in-production", is_flag=True, help="Needed when APP_ENV is production."
)


def init_app(app: Flask, seeds: list[Seed]) -> None:
    """Register the commands for these seeds."""
    app.extensions["seeds"] = seeds
    app.cli.add_command(seed_group)


@seed_group.command("all")
@noun_argument
def seed_all(noun: str | None) -> None:
    """Plant all seeds, or those of one NOUN and of what it refers to."""
    seeds = _with_what_they_refer_to(noun)
    _in_one_transaction(lambda: plant(db.session(), seeds))


@seed_group.command("undo")
@noun_argument
@production_option
def seed_undo(noun: str | None, yes_in_production: bool) -> None:
    """Remove all seeded rows, or those of one NOUN and of tables that it shares a circle with."""
    _refuse_in_production(yes_in_production)
    seeds = _with_its_circle(noun)
    _in_one_transaction(lambda: remove(db.session(), seeds))


@seed_group.command("reset")
@noun_argument
@production_option
def seed_reset(noun: str | None, yes_in_production: bool) -> None:
    """Undo, then all."""
    _refuse_in_production(yes_in_production)
    old, new = _with_its_circle(noun), _with_what_they_refer_to(noun)
    _in_one_transaction(lambda: remove(db.session(), old) + plant(db.session(), new))


def plant_at_start(prune: bool) -> str:
    """Plant all seeds before the service starts; return what became of it.

    `prune` removes seeded rows that are in no file any more.
    """
    settings: Settings = current_app.config["SETTINGS"]
    with db.engine.connect() as connection:
        if shortage := privileges.of_service(connection, settings.schema_name):
            raise click.ClickException(str(shortage))
    seeds = _seeds()
    missing = {seed.noun for seed in seeds} - set(inspect(db.engine).get_table_names())
    if missing:
        no_table = f"no table {', '.join(sorted(missing))}"
        return f"skipped, {AHEAD.format(no_table)}"
    _in_one_transaction(lambda: plant(db.session(), seeds, prune=prune))
    return "done"


def _seeds() -> list[Seed]:
    seeds: list[Seed] = current_app.extensions["seeds"]
    return seeds


def _with_what_they_refer_to(noun: str | None) -> list[Seed]:
    if noun is None:
        return _seeds()
    return [seed for seed in _seeds() if seed.noun in _reachable(_known(noun))]


def _with_its_circle(noun: str | None) -> list[Seed]:
    """The seeds of `noun` and of tables that refer to it and that it refers to."""
    if noun is None:
        return _seeds()
    reachable = _reachable(_known(noun))
    return [
        seed
        for seed in _seeds()
        if seed.noun == noun or (seed.noun in reachable and noun in _reachable(seed.noun))
    ]


def _reachable(noun: str) -> set[str]:
    """The noun, and the seeded tables that its foreign keys lead to, over however many steps."""
    keys = {seed.noun: seed.table.foreign_keys for seed in _seeds()}
    reached: set[str] = set()
    ahead = {noun}
    while ahead:
        reached |= ahead
        referred = {key.column.table.name for each in ahead for key in keys[each]}
        ahead = (referred & keys.keys()) - reached
    return reached


def _known(noun: str) -> str:
    nouns = sorted({seed.noun for seed in _seeds()})
    if noun not in nouns:
        raise click.BadParameter(f"{noun!r} is not one of {', '.join(nouns)}", param_hint="NOUN")
    return noun


def _in_one_transaction(work: Callable[[], Iterable[str]]) -> None:
    session = db.session()
    try:
        with session.begin():
            _one_at_a_time()
            lines = work()
    except SeedError as error:
        raise click.ClickException(f"{error}. Nothing was changed.") from None
    except (DBAPIError, psycopg.Error) as error:
        if isinstance(error, DBAPIError) and (shortage := privileges.of_failed_statement(error)):
            raise click.ClickException(f"{shortage} Nothing was changed.") from None
        why = reason_in_full(error)
        if advice := refusals.instruction(error):
            why = f"{why}. {advice.rstrip('.')}"
        if isinstance(error, DBAPIError) and is_behind_the_models(error):
            why = AHEAD.format(why)
        raise click.ClickException(f"{why}. Nothing was changed.") from None
    for line in lines:
        say(line)


def _one_at_a_time() -> None:
    """Let one process at a time plant or remove, until the end of the transaction."""
    session = db.session()
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext(current_schema() || ' seeds'))"))
    # Somebody's open transaction is named as the reason, not waited for without end.
    session.execute(text("SET LOCAL lock_timeout = '10s'"))


def _refuse_in_production(confirmed: bool) -> None:
    if current_app.config["SETTINGS"].production and not confirmed:
        raise click.UsageError(
            "this is production, and the command deletes rows. Add --yes-in-production to go ahead."
        )
