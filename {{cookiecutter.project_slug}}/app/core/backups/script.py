"""What pg_restore prints of a dump: SQL, entry after entry, with the rows between."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

from app.core.backups.errors import BackupError

HEADER = re.compile(
    rb"-- (?:Data for )?Name: (.*); Type: (.*?); Schema: (.*?); Owner: .*\n", re.DOTALL
)
COPY = re.compile(rb"COPY .* FROM stdin;\n")
END_OF_ROWS = b"\\.\n"
ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class Entry:
    """An object of the dump: what makes it, or the statement that takes the rows of a table."""

    kind: str
    schema: str
    name: str
    sql: bytes
    rows: Iterator[list[bytes]] | None = None

    def with_sql(self, sql: bytes) -> "Entry":
        """The same with another statement."""
        return replace(self, sql=sql)


def entries(script: IO[bytes]) -> Iterator[Entry]:
    """The entries of a script; the rows of one must be read before the next entry."""
    title, lines, key = ("SETTINGS", "", ""), list[bytes](), b""
    for line in script:
        # psql's own words, which keep a hostile dump from giving it commands.
        if not key and line.startswith(b"\\restrict "):
            key = line.split()[1]
        elif key and line == b"\\unrestrict " + key + b"\n":
            continue
        elif lines[-1:] == [b"--\n"] and (found := HEADER.fullmatch(line)):
            yield Entry(*title, b"".join(lines))
            name, kind, schema = (part.decode("utf-8", "replace") for part in found.groups())
            title, lines = (kind, schema, name), []
        elif title[0] == "TABLE DATA" and COPY.fullmatch(line):
            yield Entry(*title, line, rows=_rows(script, title[2]))
            title, lines = ("SETTINGS", "", ""), []
        else:
            lines.append(line)
    yield Entry(*title, b"".join(lines))


def _rows(script: IO[bytes], table: str) -> Iterator[list[bytes]]:
    rows: list[bytes] = []
    for line in script:
        if line == END_OF_ROWS:
            yield rows
            return
        rows.append(line)
        if len(rows) == ROWS_AT_ONCE:
            yield rows
            rows = []
    raise BackupError(f"The backup ends within the rows of table {table}: it is cut or damaged.")
