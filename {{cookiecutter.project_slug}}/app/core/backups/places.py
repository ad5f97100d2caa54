"""Which store and which name a FILE on the command line means."""

import os.path
from pathlib import Path

from app.config import PROJECT, ROOT, Settings
from app.core.backups.bucket import SCHEME, Bucket
from app.core.backups.errors import BackupError
from app.core.backups.folder import Folder
from app.core.backups.store import Backup, Store

LATEST = "latest"


def store(settings: Settings) -> Store:
    """Where backups are kept: BACKUP_DIR."""
    place = settings.backup_dir
    if place.startswith(SCHEME):
        return Bucket(place, is_kept=True)
    return Folder(ROOT / place, is_kept=True)


def to_write(settings: Settings, file: str | None) -> tuple[Store, str | None]:
    """Where a new backup goes; no name if BACKUP_DIR shall have one of the usual form."""
    if file is None:
        return store(settings), None
    if file.startswith(SCHEME):
        return _object(file)
    path = Path(file).absolute()
    if os.path.isdir(path) or not path.name or file.endswith("/"):
        raise BackupError(f"{file} is a folder. Name the file, for example {path / 'my.dump'}")
    return Folder(path.parent), path.name


def existing(settings: Settings, file: str) -> tuple[Store, Backup]:
    """A complete backup: a path, an s3:// address, a name in BACKUP_DIR, or `latest`."""
    kept = store(settings)
    if file == LATEST:
        for backup in kept.backups():
            if backup.fault is None and is_ours(settings, backup):
                return kept, backup
        raise BackupError(
            f"There is no complete backup of schema {settings.schema_name} in {kept.path('')}. "
            "Run flask backup create, or name one that flask backup list shows."
        )
    if file.startswith(SCHEME):
        place, name = _object(file)
        return place, place.get(name)
    path = Path(file).absolute()
    if os.path.exists(path) or "/" in file:
        folder = Folder(path.parent)
        return folder, folder.get(path.name)
    return kept, kept.get(file)


def is_ours(settings: Settings, backup: Backup) -> bool:
    """Whether it is of this service and this schema: several may share a place."""
    it = backup.manifest
    mine = (PROJECT["name"], settings.schema_name)
    return it is not None and (it.service, it.schema_name) == mine


def _object(address: str) -> tuple[Store, str]:
    place, _, name = address.rpartition("/")
    if not name or not place.removeprefix(SCHEME.rstrip("/")).strip("/"):
        raise BackupError(f"{address} names no object. It must look like s3://bucket/my.dump")
    return Bucket(place), name
