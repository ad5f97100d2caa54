"""The commands `flask backup …`."""

import inspect
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
import psycopg
import structlog
from alembic.util import CommandError
from flask import Flask, current_app
from flask.cli import AppGroup
from sqlalchemy.exc import DBAPIError

from app.config import PROJECT, InvalidSettings, Settings, load_settings
from app.core import words
from app.core.backups import dump, places, restore, retention
from app.core.backups.errors import BackupError
from app.core.backups.manifest import Manifest
from app.core.backups.progress import Progress
from app.core.backups.scratch import scratch
from app.core.database import DatabaseUnavailable
from app.core.database_errors import explained
from app.core.logs import is_read_by_a_person, say

backup_group = AppGroup("backup", help="Back up the service's schema, and bring it back.")
file_argument = click.argument("file")
FILE = "FILE is a path, the name of one in BACKUP_DIR, s3://bucket/name, or `latest`."

log = structlog.get_logger("backup")


def init_app(app: Flask) -> None:
    """Register the commands."""
    app.cli.add_command(backup_group)


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose last words are a line of the log where a job runs it."""

    def register(work: Callable[..., None]) -> Callable[..., None]:
        @wraps(work)
        def run(**options: Any) -> None:
            settings: Settings = current_app.config["SETTINGS"]
            _end_well_when_told_to()
            try:
                work(settings, **options)
            except BackupError as error:
                _end(settings, error.message)
            except (CommandError, DBAPIError, psycopg.Error) as error:
                _end(settings, explained(error))
            except DatabaseUnavailable as error:
                _end(settings, str(error))

        words = inspect.cleandoc(work.__doc__ or "")
        run.__doc__ = f"{words}\n\n{FILE}" if "FILE" in words else words
        return backup_group.command(name)(run)

    return register


@command("create")
@click.argument("file", required=False)
def create(settings: Settings, file: str | None) -> None:
    """Write a backup, to BACKUP_DIR unless a new file is named."""
    store, name = places.to_write(settings, file)
    with Progress(settings.production) as tell:
        name, manifest = dump.create(settings, store, name, tell)
    size = words.size(manifest.size)
    say(f"{store.path(name)}: {_contents(manifest)}, {size}, {tell.seconds:.1f} s")


@command("list")
def list_backups(settings: Settings) -> None:
    """List what is in BACKUP_DIR, the newest first."""
    store = places.store(settings)
    backups = [*store.backups()]
    if not backups:
        say(f"no backups in {store.path('')}. The first: flask backup create")
    for backup in backups:
        it = backup.manifest
        facts = [words.size(backup.size)]
        if it:
            facts += [f"revision {it.revision}", f"{words.age(it.age)} old"]
            facts += [f"of {it.service}"] * (it.service != PROJECT["name"])
            facts += [f"schema {it.schema_name}"] * (it.schema_name != settings.schema_name)
            facts += ["before a migration"] * it.before_migration
        facts.append(backup.fault or "complete")
        # On stdout also where a job runs it: a script takes a name from it.
        click.echo(f"{backup.name}  {', '.join(facts)}")


@command("verify")
@file_argument
@click.option("--url", help="A server for the trial; its role must have CREATEDB.")
@click.option(
    "--in-schema",
    is_flag=True,
    help="Not in a database of its own, but in a schema of the service's.",
)
def verify(settings: Settings, file: str, url: str | None, in_schema: bool) -> None:
    """Restore FILE for a trial, compare its rows and its revision, and remove the trial.

    The trial is in a database of its own, on the server of REHEARSAL_DATABASE_URL or of the
    service; if the role may not create one, in a schema of the service's database.
    """
    server, setting = settings.rehearsal_database_url, "REHEARSAL_DATABASE_URL"
    if url:
        checked, setting = _checked("--url", rehearsal_database_url=url), "--url"
        server = checked.rehearsal_database_url
    store, backup = places.existing(settings, file)
    assert backup.manifest is not None
    with Progress(settings.production) as tell:
        store.check(backup)
        place = scratch(settings, server, setting, backup.manifest.schema_name, in_schema)
        with (
            place as (connection, schema, where),
            store.open(backup.name) as source,
            connection.begin(),
        ):
            driver = restore.driver(connection)
            # What would matter in a copy that stays is no matter in one that goes.
            restore.fill(driver, source, backup.manifest, schema, tell, notice=lambda words: None)
    say(
        f"{store.path(backup.name)} is whole: restored into {where}, "
        f"{_contents(backup.manifest)}, all as when it was made, {tell.seconds:.1f} s"
    )


@command("restore")
@file_argument
@click.option("--replace", is_flag=True, help="Remove what is in the schema, in one transaction.")
@click.option(
    "--yes-in-production", is_flag=True, help="Needed with --replace when APP_ENV is production."
)
@click.option("--into", metavar="SCHEMA", help="Another schema than that of the settings.")
@click.option("--other-service", is_flag=True, help="Take a backup of a service of another name.")
def restore_backup(
    settings: Settings,
    file: str,
    replace: bool,
    yes_in_production: bool,
    into: str | None,
    other_service: bool,
) -> None:
    """Bring FILE back into the service's schema, or into another one: all of it or nothing."""
    if settings.production and replace and not yes_in_production:
        raise click.UsageError(
            "this is production, and the command deletes rows. Add --yes-in-production to go ahead."
        )
    store, backup = places.existing(settings, file)
    it = backup.manifest
    assert it is not None
    if it.service != PROJECT["name"] and not other_service:
        raise BackupError(
            f"{store.path(backup.name)} is a backup of {it.service}, and this is "
            f"{PROJECT['name']}. Nothing was changed. If that is meant: --other-service"
        )
    if into:
        schema = _checked("--into", SCHEMA=into).schema_name
        settings = settings.model_copy(update={"schema_name": schema})
    with Progress(settings.production) as tell:
        store.check(backup)
        with store.open(backup.name) as source:
            next_step = restore.over(settings, source, it, replace, tell)
    say(
        f"restored {store.path(backup.name)} into schema {settings.schema_name}: {_contents(it)}, "
        f"{tell.seconds:.1f} s"
    )
    say(next_step)


@command("prune")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def prune(settings: Settings, dry_run: bool) -> None:
    """Remove old backups of this service and schema from BACKUP_DIR.

    The newest BACKUP_KEEP stay, and all of the last BACKUP_KEEP_DAYS days.
    """
    lines = [*retention.prune(settings, places.store(settings), dry_run)]
    for line in lines or ["nothing to remove"]:
        say(line)


def _checked(option: str, **given: str) -> Settings:
    """Settings with what an option gives; a fault in it is one of the option."""
    try:
        return load_settings(**given)
    except InvalidSettings as error:
        (name,) = (each.upper() for each in given)
        raise BackupError(str(error).splitlines()[-1].strip().replace(name, option, 1)) from None


def _contents(manifest: Manifest) -> str:
    rows = words.counted(manifest.total_rows, "row")
    return f"{rows} in {words.counted(len(manifest.rows), 'table')}, revision {manifest.revision}"


def _end(settings: Settings, message: str) -> None:
    if settings.production and not is_read_by_a_person(settings.production):
        log.error(message)
        sys.exit(1)
    raise click.ClickException(message)


def _end_well_when_told_to() -> None:
    """A job that is stopped cleans up: without this, Python ends at once on SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
