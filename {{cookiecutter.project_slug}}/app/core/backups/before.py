"""BACKUP_BEFORE_MIGRATE: no backup, no migration."""

from contextlib import suppress

from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import words
from app.core.backups import dump, places, retention
from app.core.backups.errors import BackupError
from app.core.backups.progress import Progress
from app.core.database import DatabaseUnavailable
from app.core.database_errors import reason
from app.core.logs import say


def before_migration(settings: Settings) -> None:
    """Back up the schema. The caller holds the lock of migrations, so of several replicas one does.

    Raises `CommandError`, which keeps the migration from running.
    """
    store = places.store(settings)
    try:
        with Progress(settings.production) as tell:
            name, manifest = dump.create(settings, store, None, tell, before_migration=True)
    except (BackupError, DBAPIError, DatabaseUnavailable) as error:
        why = error.message if isinstance(error, BackupError) else reason(error)
        raise CommandError(
            f"BACKUP_BEFORE_MIGRATE is on, and there is no backup: {why}\nNothing was migrated. "
            "Correct that and run this again, or set BACKUP_BEFORE_MIGRATE=0 to migrate without."
        ) from None
    with suppress(BackupError):  # a backup too many is no reason not to migrate
        retention.thin_out(settings, store, manifest)
    say(
        f"backup before the migration: {store.path(name)}, "
        f"{words.counted(manifest.total_rows, 'row')}, {words.size(manifest.size)}"
    )
