"""The revision files in `migrations/versions`: heads, order, ids, what they say of themselves."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, MetaData
from sqlalchemy import text as sql

from app.config import ROOT
from app.models import db

FOLDER = ROOT / "migrations"
# Under a naming convention Alembic names even primary keys.
PRIMARY_KEY = re.compile(r"op\.f\([\"']pk_")
REVISION = re.compile(r"""^revision\b[^=\n]*=\s*["'](.+?)["']""", re.MULTILINE)


def load() -> ScriptDirectory:
    """The files as Alembic understands them; they are imported by this."""
    return ScriptDirectory(str(FOLDER))


def heads() -> set[str]:
    """The newest revisions; normally one, none before the first."""
    return _heads(_file_names())


def current(connection: Connection) -> set[str]:
    """The revisions that the schema is at; none before the first upgrade."""
    if connection.scalar(sql("SELECT to_regclass('alembic_version')")) is None:
        return set()
    return set(connection.scalars(sql("SELECT version_num FROM alembic_version")))


def unknown(revisions: set[str]) -> set[str]:
    """Those that no file has: newer code made them, or their files were deleted."""
    return revisions - _known(_file_names())


def is_ahead(revisions: set[str]) -> bool:
    """Whether newer code has made them: beside one that this code has, an unknown is no later."""
    return bool(revisions) and unknown(revisions) == revisions


def tables_of_models(connection: Connection) -> list[str]:
    """The tables of the models that the schema has, whoever made them."""
    there = sql("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1")
    return [name for name in connection.scalars(there) if name in db.metadata.tables]


def views(connection: Connection) -> set[str]:
    """The names of the schema's views, materialized ones too."""
    query = (
        "SELECT relname FROM pg_class WHERE relkind IN ('v', 'm')"
        " AND relnamespace = to_regnamespace(quote_ident(current_schema()))"
    )
    return set(connection.scalars(sql(query)))


def texts() -> dict[str, str]:
    """What stands in each of the files, by its name."""
    return {file.name: file.read_text("utf-8") for file in (FOLDER / "versions").glob("*.py")}


def files_by_revision() -> dict[str, list[str]]:
    """The names of the files that call themselves so; more than one is a mistake."""
    found: dict[str, list[str]] = {}
    for file in sorted((FOLDER / "versions").glob("*.py")):
        if name := REVISION.search(file.read_text("utf-8")):
            found.setdefault(name[1], []).append(file.name)
    return found


def ancestors(script: ScriptDirectory, revisions: Iterable[str]) -> list[Script]:
    """These revisions and all that come before them, oldest first."""
    wanted = set(revisions)
    found = []
    for each in script.walk_revisions():
        if each.revision in wanted:
            wanted.update(each._all_down_revisions)
            found.append(each)
    return found[::-1]


def metadata_of(script: Script | None) -> MetaData:
    """What names the constraints that a revision leaves without a name.

    Our convention from the first revision on that was written under it. Those before come from
    another project, and later ones of that project mean the names that PostgreSQL chose.
    """
    if script is None or script.revision in _written_under_our_names(_file_names()):
        return db.metadata
    return MetaData()


def recorded_as_unused(scripts: Iterable[Script]) -> set[str]:
    """What these revisions say the models no longer use: `books.title`, or the table `books`."""
    return {name for each in scripts for name in getattr(each.module, "unused", ())}


def next_revision_id(after: str = "") -> str:
    """The time as 20261231235959, so that files sort by date; always later than the newest."""
    dated = (FOLDER / "versions").glob("[0-9]" * 14 + "_*.py")
    newest = max((file.name[:14] for file in dated), default="")
    moment = datetime.now(UTC)
    while f"{moment:%Y%m%d%H%M%S}" <= max(newest, after if len(after) == 14 else ""):
        moment += timedelta(seconds=1)
    return f"{moment:%Y%m%d%H%M%S}"


def _file_names() -> tuple[str, ...]:
    versions = FOLDER / "versions"
    return tuple(sorted(file.name for file in versions.glob("*.py"))) if versions.is_dir() else ()


@lru_cache(maxsize=1)
def _written_under_our_names(names: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for each in reversed([*load().walk_revisions()]):
        parents = {*each._all_down_revisions}
        if parents & found or PRIMARY_KEY.search(Path(each.path).read_text("utf-8")):
            found.add(each.revision)
    return found


@lru_cache(maxsize=1)
def _known(names: tuple[str, ...]) -> set[str]:
    return {each.revision for each in load().walk_revisions()} if names else set()


@lru_cache(maxsize=1)
def _heads(names: tuple[str, ...]) -> set[str]:
    return set(load().get_heads()) if names else set()
