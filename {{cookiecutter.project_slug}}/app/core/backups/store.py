"""Where backups are kept, and what is there: a folder here, or a bucket (bucket.py)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import IO

from app.core.backups.errors import BackupError
from app.core.backups.manifest import SUFFIX, Manifest, without_manifest

ENDING = ".dump"


@dataclass(frozen=True)
class Backup:
    """A dump in a store. `fault` says what is wrong with it, as far as one can see from outside."""

    name: str
    size: int
    manifest: Manifest | None
    fault: str | None


class Writer(ABC):
    """A backup that is being written. Nobody sees it before it is published."""

    name: str

    @abstractmethod
    def write(self, piece: bytes) -> None:
        """Add to it."""

    @abstractmethod
    def publish(self, manifest: Manifest) -> None:
        """First the manifest, then the dump get their names."""


class Store(ABC):
    """What create, list, verify, restore and prune need of a place."""

    @abstractmethod
    def path(self, name: str) -> str:
        """What people call a backup in it."""

    @abstractmethod
    def writing(self, name: str, or_another: bool = False) -> AbstractContextManager[Writer]:
        """Write a backup. Of a name that is taken: `BackupError`, or the next one with a number."""

    @abstractmethod
    def names(self) -> dict[str, int]:
        """All files and their sizes."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A small file."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A dump, to be read once."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file."""

    @abstractmethod
    def sweep(self, dry_run: bool = False) -> list[str]:
        """Remove what processes that died have left; what it was."""

    @abstractmethod
    def check(self, backup: Backup) -> None:
        """Raise `BackupError` early if that is cheap; restoring looks at the checksum too."""

    def backups(self) -> Iterator[Backup]:
        """All of them, the newest first; those without a manifest come last."""
        sizes = self.names()
        dumps = [name for name in sizes if f"{name}{SUFFIX}" in sizes or name.endswith(ENDING)]
        found = [self._backup(name, sizes) for name in sorted(dumps)]
        yield from sorted(
            found, key=lambda each: each.manifest.created.timestamp() if each.manifest else 0
        )[::-1]

    def get(self, name: str) -> Backup:
        """The complete backup of this name. Raises `BackupError`."""
        sizes = self.names()
        if name not in sizes or f"{name}{SUFFIX}" not in sizes:
            there = name if name in sizes else None
            raise BackupError(without_manifest(there, self.path(name)))
        self.read(f"{name}{SUFFIX}")  # who may not is told so
        backup = self._backup(name, sizes)
        if backup.fault:
            raise BackupError(f"{self.path(name)} {backup.fault}. Take another copy of it.")
        return backup

    def is_manifest(self, name: str) -> bool:
        """Whether that is what the file says: another one is not ours."""
        try:
            Manifest.parse(self.read(name), name)
        except BackupError:
            return False
        return True

    def _backup(self, name: str, sizes: dict[str, int]) -> Backup:
        size = sizes[name]
        if f"{name}{SUFFIX}" not in sizes:
            return Backup(name, size, None, "has no manifest")
        try:
            text = self.read(f"{name}{SUFFIX}")
        except BackupError:
            return Backup(name, size, None, "has a manifest that this user may not read")
        try:
            manifest = Manifest.parse(text, f"{name}{SUFFIX}")
        except BackupError:
            return Backup(name, size, None, "has a manifest that cannot be read")
        fault = None
        if manifest.size != size:
            fault = f"is not complete: it has {size:,} bytes of {manifest.size:,}"
        return Backup(name, size, manifest, fault)


def numbered(name: str) -> Iterator[str]:
    """The name, then the same with 2, 3, …"""
    yield name
    for number in count(2):
        yield f"{name.removesuffix(ENDING)}-{number}{ENDING}"
