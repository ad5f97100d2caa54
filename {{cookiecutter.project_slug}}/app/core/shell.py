"""`flask shell` with the models at hand, and `flask db shell`: psql on the service's database."""

import os
import shutil
import signal
import subprocess
import sys

import click
from flask import Flask, current_app
from flask.cli import with_appcontext
from flask_migrate.cli import db as flask_db
from psycopg.conninfo import make_conninfo
from sqlalchemy import select

from app.config import Settings
from app.core import embedded
from app.core.database import connect_directly
from app.models import db

NO_PSQL = """psql is not on the PATH. Install PostgreSQL's client:
  Debian, Ubuntu: apt-get install postgresql-client
  macOS: brew install libpq && brew link --force libpq
  other systems: https://www.postgresql.org/download/
The database of compose.yaml has its own: docker compose exec db psql --username=app app"""


def init_app(app: Flask) -> None:
    """Complete the names of `flask shell`, and give `flask db` the command `shell`."""
    # Flask-SQLAlchemy adds `db` and the models by itself.
    app.shell_context_processor(lambda: {"session": db.session, "select": select})
    flask_db.add_command(psql_command)


@click.command("shell", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PSQL ARGUMENTS]...")
@with_appcontext
def psql_command(arguments: tuple[str, ...]) -> None:
    """Open psql on the database and schema that the settings name.

    It connects the way all `flask db` commands do. Arguments are passed on to psql:
    flask db shell -c "SELECT 1", or flask db shell -- --help
    """
    settings: Settings = current_app.config["SETTINGS"]
    program = _find_psql(settings)
    if program is None:
        raise click.ClickException(NO_PSQL)
    login = _login(settings)
    if "password" in login:
        # Everybody on this machine can see the arguments of a process, but not its environment.
        os.environ["PGPASSWORD"] = login.pop("password")
    # Ctrl-C is meant for psql, which cancels the statement and goes on.
    signal.signal(signal.SIGINT, lambda *_: None)
    command = [program, f"--dbname={make_conninfo(**login)}", *arguments]
    sys.exit(subprocess.run(command).returncode)


def _find_psql(settings: Settings) -> str | None:
    if settings.database_url is None:
        return str(embedded.find_program("psql"))
    # The embedded server's psql cannot stand in: it is built without TLS.
    return shutil.which("psql")


def _login(settings: Settings) -> dict[str, str]:
    """The parameters of a connection that works, as libpq names them."""
    with connect_directly(settings) as connection:
        engine = connection.engine
    _, parameters = engine.dialect.create_connect_args(engine.url)
    options = f"{parameters.get('options', '')} -c search_path={settings.schema_name}"
    found = {name: str(value) for name, value in parameters.items() if name != "context"}
    return found | {"options": options.strip()}
