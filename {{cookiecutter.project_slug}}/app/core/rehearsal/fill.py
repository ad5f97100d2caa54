"""The rows that a rehearsal works on: those of a backup, or seeds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL

from app.config import Settings
from app.core.backups import restore
from app.core.backups.store import Backup, Store
from app.core.database import connect_directly
from app.core.rehearsal.previous import Code, code_of
from app.core.rehearsal.revisions import Plan, upgrade
from app.core.rehearsal.scratch import CannotRehearse
from app.core.waiting import telling

# What belongs to the service itself, not to a scratch database.
WITHOUT: dict[str, Any] = {
    "database_pooled": False,
    "backup_before_migrate": False,
    "service_role": None,
    "sentry_dsn": None,
    "otel_exporter_otlp_endpoint": None,
    "metrics_port": None,
}


@contextmanager
def service_on(url: URL, settings: Settings) -> Iterator[Settings]:
    """The same service with the scratch database, for revisions that reach for `db` as well."""
    from app import create_app

    own = settings.model_copy(
        update=WITHOUT | {"database_url": url, "database_url_migrations": url}
    )
    words = url.render_as_string(hide_password=False)
    before = {**os.environ}
    os.environ |= {"DATABASE_URL": words, "DATABASE_URL_MIGRATIONS": words}
    os.environ |= {"SCHEMA": own.schema_name, "DATABASE_POOLED": "false"}
    try:
        with create_app(own).app_context():
            yield own
    finally:
        os.environ.clear()
        os.environ.update(before)


def with_backup(store: Store, backup: Backup, settings: Settings) -> str:
    """Restore a backup; say which."""
    manifest, schema = backup.manifest, settings.schema_name
    assert manifest is not None
    with telling(f"restoring {backup.name}") as tell, connect_directly(settings) as connection:
        store.check(backup)
        with store.open(backup.name) as dump, connection.begin():
            restore.fill(restore.driver(connection), dump, manifest, schema, tell)
    rows = manifest.total_rows - manifest.rows.get("alembic_version", 0)
    return f"{backup.name} ({rows:,} rows of {manifest.created:%Y-%m-%d})"


def with_seeds(
    plan: Plan, previous: Code | None, url: URL, settings: Settings, rows: int
) -> Iterator[str]:
    """Upgrade to where the pending revisions begin, and plant seeds; first say which.

    Copies of their rows follow, until each table has `rows`; then say what could not be copied.
    """
    for each in plan.before:
        run = upgrade(each, str(url.database))
        if run.error:
            raise CannotRehearse(
                f"{each.revision} is before what is rehearsed, and fails: {run.error}"
            )
    if not plan.before:
        yield "no rows"
        return
    faults = []
    with code_of(None, url, settings.schema_name) as this_code:
        for code in filter(None, [previous, this_code]):
            if not (fault := code.plant_seeds()):
                break
            faults.append(f"the seeds of {code.name} do not fit: {fault}")
        else:
            yield f"no rows, because {'; '.join(faults)}"
            return
        if not rows:
            yield f"the seeds of {code.name}"
            return
        yield f"the seeds of {code.name}, copied until a table has {rows:,} rows"
        with telling(f"making {rows:,} rows for each table"):
            for table, error in code.multiply(rows).items():
                yield f"{table} has fewer rows: {error}"
