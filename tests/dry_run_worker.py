"""Runs in a project: what lint says of revisions, and what `flask db upgrade` then does.

Takes a file of JSON with a list of histories, each a list of bodies of upgrade(). The answers are
printed as JSON, on the last line: for each history the exit code and the text of lint before the
upgrade, whether the upgrade worked, and lint of the whole history after it.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import flask_migrate
from app import create_app
from app.config import load_settings
from app.core import history
from app.core.database import connect_directly
from app.core.safety import judge

REVISION = """
import sqlalchemy as sa
from alembic import op

from app.core.backfill import backfill

revision = "{revision}"
down_revision = {parent!r}


def upgrade():
    {upgrade}


def downgrade():
    op.execute("SELECT 1")
"""
CLEAN = """
DROP SCHEMA public CASCADE;
DROP SCHEMA IF EXISTS audit CASCADE;
DROP SCHEMA IF EXISTS extensions CASCADE;
ALTER ROLE CURRENT_USER RESET ALL;
CREATE SCHEMA public;
CREATE SCHEMA audit;
CREATE TABLE audit.events (id bigserial PRIMARY KEY);
"""

settings = load_settings()
versions = history.FOLDER / "versions"


def sql(statement):
    with connect_directly(settings) as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)


def write(revisions):
    for file in versions.glob("*.py"):
        file.unlink()
    parent = None
    for name, upgrade in revisions.items():
        text = REVISION.format(revision=name, parent=parent, upgrade=upgrade)
        (versions / f"{name}.py").write_text(text)
        parent = name


def upgraded(to):
    try:
        flask_migrate.upgrade(revision=to)
    except (Exception, SystemExit):
        return False
    return True


def tried(tables, rows, works):
    names = [f"try_{number}" for number in range(len(works))]
    write({"before": f"op.execute('''{tables}''')", **dict(zip(names, works, strict=True))})
    sql(CLEAN)
    assert upgraded("before")
    sql(rows)
    first = judge(settings, None, {"before"})
    works_indeed = upgraded("head")
    again = judge(settings, "base:head", {names[-1]} if works_indeed else {"before"})
    return {
        "exit_code": first.exit_code,
        "text": first.text(),
        "upgraded": works_indeed,
        "replayed": again.exit_code,
    }


with create_app(settings).app_context():
    tables, rows, *histories = json.loads(Path(sys.argv[1]).read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        answers = [tried(tables, rows, works) for works in histories]
    print()
    print(json.dumps(answers))
