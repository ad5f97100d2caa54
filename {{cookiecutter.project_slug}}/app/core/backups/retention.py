"""Which old backups go."""

from collections.abc import Iterator

from app.config import Settings
from app.core.backups import places
from app.core.backups.manifest import SUFFIX, Manifest
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
            _remove(store, backup)
        yield f"{verb} {store.path(backup.name)}"


def thin_out(settings: Settings, store: Store, made: Manifest) -> None:
    """Of a migration that fails again and again keep the first try's backup, and `made`."""
    tries = [
        each
        for each, manifest in _whole(settings, store)
        if manifest.before_migration and manifest.revisions == made.revisions
        if manifest.age < DAY
    ]
    for backup in tries[1:-1]:
        _remove(store, backup)


def too_old(settings: Settings, store: Store) -> list[Backup]:
    """What prune removes."""
    limit = settings.backup_keep_days * DAY
    old = _whole(settings, store)[settings.backup_keep :]
    return [backup for backup, manifest in old if manifest.age > limit]


def _whole(settings: Settings, store: Store) -> list[tuple[Backup, Manifest]]:
    """Those of this service and schema, the newest first."""
    return [
        (each, each.manifest)
        for each in store.backups()
        if each.fault is None and each.manifest is not None and places.is_ours(settings, each)
    ]


def _remove(store: Store, backup: Backup) -> None:
    # The dump first: a manifest alone looks like nothing, and the next run removes it.
    store.delete(backup.name)
    store.delete(backup.name + SUFFIX)
