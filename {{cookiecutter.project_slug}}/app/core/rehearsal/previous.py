"""What the release before says of the database: its models, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from app.config import ROOT
from app.core import extensions, releases
from app.core.rehearsal.scratch import folder_of, with_options

WORKER = Path(__file__).with_name("models.py")
STATEMENT_MS = 60_000
# A second row like an old one: no more than this rehearsal wants it.
OWN_DOING = ("UniqueViolation", "ExclusionViolation")
# The model allows such a value, but nobody knows whether the code writes it.
PERHAPS = ("CheckViolation", "NotNullViolation", *OWN_DOING)


class DoesNotRunError(Exception):
    """The code cannot be used here; the message says why."""


@dataclass
class Code:
    """The code of a release in a folder, and once somebody asks, a process that runs its models."""

    name: str
    folder: Path
    url: URL
    schema: str
    # What its process says besides answers.
    log: Path
    process: subprocess.Popen[str] | None = None

    def tables(self) -> dict[str, list[str]]:
        """The tables of its models, and their columns."""
        return self._ask("describe")

    def probe(self) -> dict[str, Any]:
        """What became of all that it tried; see models.py. Raises `DoesNotRunError`."""
        return self._ask("probe")

    def multiply(self, count: int) -> dict[str, str]:
        """Copies of rows until each table has so many; why a table has fewer."""
        return self._ask(f"multiply {count}")

    def plant_seeds(self) -> str:
        """`flask seed all`; what it said if it failed."""
        result = subprocess.run(
            [sys.executable, "-m", "flask", "seed", "all"],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return "" if result.returncode == 0 else _last_line(result.stderr or result.stdout)

    def stop(self) -> None:
        """End the process."""
        if self.process:
            self.process.kill()
            self.process.communicate()

    def _ask(self, what: str) -> dict[str, Any]:
        process = self.process = self.process or self._start()
        assert process.stdin
        assert process.stdout
        with suppress(BrokenPipeError):
            print(what, file=process.stdin, flush=True)
        if not (answer := process.stdout.readline()):
            raise DoesNotRunError(f"{self.name}: {_last_line(self.log.read_text())}")
        return dict(json.loads(answer))

    def _start(self) -> subprocess.Popen[str]:
        path = f"search_path={extensions.search_path(self.schema)}"
        options = with_options(self.url, path, f"statement_timeout={STATEMENT_MS}")
        words = options.render_as_string(hide_password=False)
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],
                cwd=self.folder,
                # Not as an argument, which everybody on this machine could see.
                env=self._environment() | {"SCRATCH_DATABASE_URL": words},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}


@contextmanager
def code_of(place: str | None, url: URL, schema: str) -> Iterator[Code]:
    """The code of a tag, branch or commit, until the block ends; None stands for that of now.

    Raises `DoesNotRunError`.
    """
    parent = folder_of(url)
    parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        code = Code("this code", ROOT, url, schema, Path(folder, "log"))
        if place is not None:
            code.name, code.folder = place, Path(folder, "code")
            if not releases.unpack(place, code.folder):
                raise DoesNotRunError(f"{place} has no folder app here")
        try:
            yield code
        finally:
            code.stop()


def broken(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """What worked and no longer does: the table, words, and whether that is certain."""
    for table, done in before["results"].items():
        failures: dict[str, list[str]] = {}
        for what, error in done.items():
            now = after["results"].get(table, {}).get(what, "")
            if now and (not error or _is_worse(what, error, now)):
                failures.setdefault(now, []).append(what)
        for error, actions in failures.items():
            certain = [each for each in actions if _is_certain(each, _kind(error))]
            yield table, f"{', '.join(certain or actions)}: {error}", bool(certain)
    for column, kinds in after["types"].items():
        was = before["types"].get(column, [])
        if was and {*kinds} - {*was}:
            new = ", ".join(sorted({*kinds} - {*was}))
            yield column.split(".")[0], f"read {column}: {new}, and no longer {was[0]}", True


def _kind(error: str) -> str:
    return error.split(":")[0]


def _is_certain(action: str, error: str) -> bool:
    is_a_value = " = " in action
    return error not in (PERHAPS if is_a_value else OWN_DOING)


def _is_worse(action: str, error: str, now: str) -> bool:
    """Whether this is more than a question that was asked already."""
    is_new = _is_certain(action, _kind(now)) or (_kind(now) in OWN_DOING and now != error)
    return is_new and not _is_certain(action, _kind(error))


def _last_line(words: str) -> str:
    lines = [line for line in words.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it ended without a word"
