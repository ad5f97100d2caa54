"""PostgreSQL's programs pg_dump and pg_restore: where they are, and which ones fit the server."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.core import embedded
from app.core.backups.errors import BackupError

PROGRAMS = ("pg_dump", "pg_restore")
ENGLISH = {"LC_ALL": "C"}
# Where they are without being on the PATH: Debian's packages, the image (Dockerfile), Homebrew.
FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/local/lib/postgresql/bin",
    "/opt/homebrew/opt/libpq/bin",
    "/usr/local/opt/libpq/bin",
)
INSTALL = """Install PostgreSQL's client, {version} or newer:
  Debian, Ubuntu: apt-get install postgresql-client-{version}
    (if there is none: https://www.postgresql.org/download/linux/debian has every version)
  macOS: brew install libpq
  the image of this project has those of its own version: docs/backups.md, Clients"""


@dataclass(frozen=True)
class Clients:
    """A folder with pg_dump and pg_restore of one version, for example "18.4"."""

    folder: Path
    version: str
    speaks_tls: bool = True

    @property
    def major(self) -> int:
        """18 for "18.4"."""
        return int(self.version.split(".")[0])

    def program(self, name: str) -> str:
        """The path of pg_dump or pg_restore."""
        return str(self.folder / name)

    def environment(self, **changes: str) -> dict[str, str]:
        """What the programs start with: messages in English, because some are read."""
        return os.environ | ENGLISH | changes


def find(major: int, tls: bool = False, why: str = "The server is PostgreSQL") -> Clients:
    """Programs of this major version or newer, the first that there are.

    `tls`: whether they must speak it. Raises `BackupError`, which says what to install.
    """
    found = list(_all())
    fitting = [each for each in found if each.major >= major and (each.speaks_tls or not tls)]
    if fitting:
        return fitting[0]
    install = INSTALL.format(version=major)
    if not found:
        raise BackupError(f"There is no pg_dump here. {install}")
    if any(each.major >= major for each in found):
        raise BackupError(
            f"{why} {major}. The connection uses TLS, and the pg_dump of the development wheel is "
            f"built without. {install}"
        )
    newest = max(found, key=lambda each: each.major)
    raise BackupError(
        f"{why} {major}, and the newest pg_dump and pg_restore here are {newest.version} "
        f"({newest.folder}), which refuse what is newer than they are. {install}"
    )


def _all() -> Iterator[Clients]:
    """The PATH first, then the folders, each with the newest version first, last the wheel."""
    seen = set()
    on_path = shutil.which("pg_dump")
    places = [Path(on_path).parent] if on_path else []
    for pattern in FOLDERS:
        folders = Path("/").glob(pattern.removeprefix("/"))
        places += sorted(folders, key=lambda each: -int(re.sub(r"\D", "", str(each)) or 0))
    for folder in places:
        if folder in seen or not all((folder / name).exists() for name in PROGRAMS):
            continue
        seen.add(folder)
        if version := _version(folder):
            yield Clients(folder, version)
    wheel = embedded.find_program("pg_dump")
    if wheel and (version := _version(wheel.parent)):
        yield Clients(wheel.parent, version, speaks_tls=False)


@lru_cache
def _version(folder: Path) -> str | None:
    """None if it does not run here."""
    try:
        said = subprocess.run(
            [str(folder / "pg_dump"), "--version"],
            env=os.environ | ENGLISH,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\b(\d+(\.\d+)*)", said.stdout)
    return found[1] if found and said.returncode == 0 else None
