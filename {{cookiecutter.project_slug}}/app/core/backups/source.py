"""A backup on its way into the database: read once, its checksum taken on the way."""

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import IO

from app.core.backups import script
from app.core.backups.clients import Clients
from app.core.backups.errors import BackupError
from app.core.backups.manifest import Manifest
from app.core.backups.script import Entry

PIECE = 256 * 1024
# Whoever restores owns everything; who may use it is said by SERVICE_ROLE.
OPTIONS = ["--no-owner", "--no-privileges", "--no-tablespaces", "--no-security-labels"]
OPTIONS += ["--no-publications", "--no-subscriptions", "--file=-"]


@contextmanager
def reading(dump: IO[bytes], manifest: Manifest, clients: Clients) -> Iterator[Iterator[Entry]]:
    """The entries of a dump. When the block ends well, all was read and the checksum is right."""
    process = subprocess.Popen(
        [clients.program("pg_restore"), *OPTIONS],
        env=clients.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    pump = _Pump(dump, process.stdin)
    words = _Words(process.stderr)
    pump.start()
    words.start()
    try:
        yield script.entries(process.stdout)
        process.stdout.read()
        code = process.wait()
        pump.join()
        if code or pump.fault or pump.checksum != manifest.sha256:
            raise BackupError(_why(pump, manifest, words.text(), code))
    except BackupError as error:
        process.kill()
        pump.join()
        raise BackupError(_why(pump, manifest, error.message, 0)) from None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        pump.join()
        words.join()
        process.stderr.close()


def _why(pump: "_Pump", manifest: Manifest, words: str, code: int) -> str:
    if pump.fault:
        return f"The backup cannot be read: {pump.fault}"
    if pump.checksum != manifest.sha256:
        return (
            "The backup is not what was written: its SHA-256 is not that of its manifest. It was "
            "cut or changed; take another copy of it. flask backup list shows the others."
        )
    if "unsupported version" in words:
        return (
            f"The pg_restore here is older than the pg_dump {manifest.client_version} that made "
            f"the backup. Install PostgreSQL's client {manifest.client_version.split('.')[0]}."
        )
    return words if not code else f"pg_restore failed: {words or f'exit code {code}'}"


class _Pump(Thread):
    """Feeds the program. Reads to the end even if the program ends early, for the checksum."""

    def __init__(self, dump: IO[bytes], sink: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.dump, self.sink = dump, sink
        self.fault: Exception | None = None
        self.digest = hashlib.sha256()

    @property
    def checksum(self) -> str:
        return self.digest.hexdigest()

    def run(self) -> None:
        is_open = True
        try:
            while piece := self.dump.read(PIECE):
                self.digest.update(piece)
                if is_open:
                    is_open = self._passed_on(piece)
        except Exception as error:  # whatever a store raises is said by the main thread
            self.fault = error
        with suppress(OSError):
            self.sink.close()

    def _passed_on(self, piece: bytes) -> bool:
        try:
            self.sink.write(piece)
        except OSError:
            return False
        return True


class _Words(Thread):
    """Collects what the program says, so that it never waits for somebody to listen."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.lines: list[str] = []

    def run(self) -> None:
        with suppress(ValueError):
            for line in self.stream:
                self.lines = [*self.lines[-9:], line.decode("utf-8", "replace").strip()]

    def text(self) -> str:
        self.join()
        return " ".join(self.lines).removeprefix("pg_restore: error: ")
