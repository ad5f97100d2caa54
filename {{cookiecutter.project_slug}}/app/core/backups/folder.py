"""Backups in a folder.

While one is written it has another name, `.NAME.part`, and its writer holds a lock on it. So what a
kill left can be told from what somebody is writing, and it never looks like a backup.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from app.core.backups.errors import BackupError
from app.core.backups.manifest import SUFFIX, Manifest
from app.core.backups.store import Backup, Store, Writer

PART = ".part"


class Folder(Store):
    """A folder, which is made when the first backup is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        final = self.folder / name
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.sweep()
            part = _lock(self._part(name))
        except OSError as error:
            raise BackupError(
                f"{self.folder} cannot be written to: {error.strerror}. Set BACKUP_DIR to a folder "
                "that this user may write to (in a container: one that is mounted)."
            ) from None
        with part:
            if final.exists() or final.with_name(name + SUFFIX).exists():
                part.close()
                self._part(name).unlink(missing_ok=True)
                raise BackupError(f"{final} exists already. Choose another name, or remove it.")
            try:
                yield _Writing(part, final)
            except OSError as error:
                raise BackupError(
                    f"{final} cannot be written: {error.strerror}. Nothing was left behind."
                ) from None
            finally:
                for left in (self._part(name), self._part(name + SUFFIX)):
                    left.unlink(missing_ok=True)
                if not final.exists():
                    final.with_name(name + SUFFIX).unlink(missing_ok=True)

    def names(self) -> dict[str, int]:
        found = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            for file in self.folder.iterdir():
                if not file.name.startswith(".") and file.is_file():
                    with suppress(FileNotFoundError):
                        found[file.name] = file.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with (self.folder / name).open("rb") as file:
            yield file

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def check(self, backup: Backup) -> None:
        with (self.folder / backup.name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if backup.manifest and digest != backup.manifest.sha256:
            raise BackupError(
                f"{self.path(backup.name)} is not what was written: its SHA-256 is not that of its "
                "manifest. It was changed; take another copy of it."
            )

    def sweep(self, dry_run: bool = False) -> list[str]:
        left = []
        for part in self.folder.glob(f".*{PART}"):
            if (free := _try_lock(part)) is not None:
                with free:
                    left.append(part.name)
                    if not dry_run:
                        part.unlink(missing_ok=True)
        for name in self.names():
            dump = name.removesuffix(SUFFIX)
            # In this order: a dump that gets its name at this moment is one or the other.
            is_being_written = self._part(dump).exists()
            if not name.endswith(SUFFIX) or is_being_written or (self.folder / dump).exists():
                continue
            if _is_manifest(self.folder / name):
                left.append(name)
                if not dry_run:
                    self.delete(name)
        return left

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}{PART}"


class _Writing(Writer):
    def __init__(self, part: IO[bytes], final: Path) -> None:
        self.part, self.final = part, final

    def write(self, piece: bytes) -> None:
        self.part.write(piece)

    def publish(self, manifest: Manifest) -> None:
        _sync(self.part)
        final = self.final.with_name(self.final.name + SUFFIX)
        part = final.with_name(f".{final.name}{PART}")
        with _open(part, "xb") as file:
            file.write(manifest.json_text().encode())
            _sync(file)
        part.rename(final)
        self.final.with_name(f".{self.final.name}{PART}").rename(self.final)
        folder = os.open(self.final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _lock(part: Path) -> IO[bytes]:
    while True:
        file = _open(part, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody may have swept it away before it was locked.
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                file.truncate(0)
                return file
        except BlockingIOError:
            file.close()
            raise BackupError(f"Another process is writing {part} at this moment.") from None
        except FileNotFoundError:
            pass
        file.close()


def _try_lock(part: Path) -> IO[bytes] | None:
    try:
        file = part.open("rb")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _open(path: Path, mode: str) -> IO[bytes]:
    """A backup has everybody's rows: only this user may read it."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _is_manifest(file: Path) -> bool:
    try:
        Manifest.parse(file.read_bytes(), file.name)
    except (BackupError, OSError):
        return False
    return True
