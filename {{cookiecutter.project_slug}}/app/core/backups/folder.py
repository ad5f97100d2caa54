"""Backups in a folder.

While one is written it has another name, `.NAME.backup-part`, and its writer holds a lock on it. So
what a kill left can be told from what somebody is writing, and it never looks like a backup.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG
from typing import IO

from app.core.backups.errors import BackupError
from app.core.backups.manifest import SUFFIX, Manifest
from app.core.backups.store import ENDING, Backup, Store, Writer, numbered

PART = ".backup-part"


class Folder(Store):
    """A folder, which is made when the first backup is written.

    `is_kept`: it is BACKUP_DIR, so that what a kill left in it may be removed. Any other folder
    is somebody else's.
    """

    def __init__(self, folder: Path, is_kept: bool = False) -> None:
        self.folder, self.is_kept = folder, is_kept

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @contextmanager
    def writing(self, name: str, or_another: bool = False) -> Iterator[Writer]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.sweep()
            name, part = self._claim(name, or_another)
        except OSError as error:
            why = "it is a file" if os.path.isfile(self.folder) else error.strerror
            raise BackupError(
                f"{self.folder} cannot be written to: {why}. Set BACKUP_DIR to a folder "
                "that this user may write to (in a container: one that is mounted)."
            ) from None
        final = self.folder / name
        with part:
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
        with _in_words(self.folder), suppress(FileNotFoundError):
            for file in self.folder.iterdir():
                with suppress(FileNotFoundError):
                    if not file.name.startswith(".") and S_ISREG((facts := file.stat()).st_mode):
                        found[file.name] = facts.st_size
        return found

    def read(self, name: str) -> bytes:
        file = self.folder / name
        with _in_words(file):
            return file.read_bytes()

    @contextmanager
    def open(self, name: str) -> Iterator[BufferedReader]:
        path = self.folder / name
        with _in_words(path):
            file = path.open("rb")
        with file:
            yield file

    def delete(self, name: str) -> None:
        file = self.folder / name
        with _in_words(file, "cannot be removed"):
            file.unlink(missing_ok=True)

    def check(self, backup: Backup) -> None:
        with self.open(backup.name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if backup.manifest and digest != backup.manifest.sha256:
            raise BackupError(
                f"{self.path(backup.name)} is not what was written: its SHA-256 is not that of its "
                "manifest. It was changed; take another copy of it."
            )

    def sweep(self, dry_run: bool = False) -> list[str]:
        left: list[str] = []
        if not self.is_kept:
            return left
        for part in self.folder.glob(f".*{PART}"):
            if (free := _try_lock(part)) is not None:
                with free:
                    left.append(part.name)
                    if not dry_run:
                        self.delete(part.name)
        for name in self.names():
            dump = name.removesuffix(SUFFIX)
            # In this order: a dump that gets its name at this moment is one or the other.
            is_being_written = self._part(dump).exists()
            if (
                not name.endswith(ENDING + SUFFIX)
                or is_being_written
                or (self.folder / dump).exists()
            ):
                continue
            if self.is_manifest(name):
                left.append(name)
                if not dry_run:
                    self.delete(name)
        return left

    def _claim(self, name: str, or_another: bool) -> tuple[str, IO[bytes]]:
        """A name that nobody has or takes at this moment, and its part, which is locked."""
        for each in numbered(name) if or_another else [name]:
            part = _lock(self._part(each))
            there = [file for file in (each, each + SUFFIX) if (self.folder / file).exists()]
            if part and not there:
                return each, part
            if part:
                self._part(each).unlink(missing_ok=True)
                part.close()
            if not or_another:
                break
        if part is None:
            raise BackupError(f"Another process is writing {self.path(name)} at this moment.")
        raise BackupError(
            f"{self.path(there[0])} exists already. Choose another name, or remove it."
        )

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}{PART}"


class _Writing(Writer):
    def __init__(self, part: IO[bytes], final: Path) -> None:
        self.part, self.final, self.name = part, final, final.name

    def write(self, piece: bytes) -> None:
        self.part.write(piece)

    def publish(self, manifest: Manifest) -> None:
        _sync(self.part)
        final = self.final.with_name(self.final.name + SUFFIX)
        part = final.with_name(f".{final.name}{PART}")
        with _open(part, "wb") as file:
            file.write(manifest.json_text().encode())
            _sync(file)
        part.rename(final)
        self.final.with_name(f".{self.final.name}{PART}").rename(self.final)
        folder = os.open(self.final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _lock(part: Path) -> IO[bytes] | None:
    """None if another process has it."""
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
            return None
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


@contextmanager
def _in_words(file: Path, what: str = "cannot be read") -> Iterator[None]:
    try:
        yield
    except NotADirectoryError:
        folder = file.parent if os.path.isfile(file.parent) else file
        raise BackupError(
            f"{folder} is a file, and must be a folder. Is BACKUP_DIR right?"
        ) from None
    except PermissionError as error:
        raise BackupError(f"{file} {what}: {error.strerror}.{_who_may(file, what)}") from None
    except OSError as error:
        raise BackupError(f"{file} {what}: {error.strerror}.") from None


def _who_may(file: Path, what: str) -> str:
    # To remove a file takes its folder; where the file cannot even be looked at, the same.
    for each in [file.parent] if "removed" in what else [file, file.parent]:
        with suppress(OSError, KeyError):
            it = "It" if each == file else "Its folder"
            return f" {it} belongs to user {each.owner()}: run this as that user."
    return " Run this as the user who made the backups."
