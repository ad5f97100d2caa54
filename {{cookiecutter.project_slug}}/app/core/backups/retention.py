"""Which old backups go."""

from collections.abc import Iterator

from app.config import Settings
from app.core.backups import places
from app.core.backups.manifest import SUFFIX
from app.core.backups.store import Backup, Store

DAY = 24 * 60 * 60


def prune(settings: Settings, store: Store, dry_run: bool) -> Iterator[str]:
    """Remove old backups of this service and schema, and what dead processes left; say which.

    The newest BACKUP_KEEP stay, and all of the last BACKUP_KEEP_DAYS days. What is not whole is
    somebody's to look at: it counts for nothing and stays.
    """
    verb = "would remove" if dry_run else "removed"
    for name in store.sweep(dry_run):
        yield f"{verb} {name}, which a run that died left"
    for backup in too_old(settings, store):
        if not dry_run:
            # The dump first: a manifest alone looks like nothing, and the next run removes it.
            store.delete(backup.name)
            store.delete(backup.name + SUFFIX)
        yield f"{verb} {store.path(backup.name)}"


def too_old(settings: Settings, store: Store) -> list[Backup]:
    """What prune removes."""
    whole = [
        each for each in store.backups() if each.fault is None and places.is_ours(settings, each)
    ]
    limit = settings.backup_keep_days * DAY
    return [
        each
        for each in whole[settings.backup_keep :]
        if each.manifest is not None and each.manifest.age > limit
    ]
