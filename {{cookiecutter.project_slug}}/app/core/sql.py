"""Rules on the text of a revision's statements: what the server can not say in a dry run."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from app.core.hazards import Hazard

NAME = r'("[^"]+"|\w+)(?:\.("[^"]+"|\w+))?'
PARTS = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<end>;)|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\w*)\$.*?\$\3\$|.""",
    re.DOTALL,
)
LITERAL = re.compile(r"'(?:[^']|'')*'")
DDL = re.compile(r"\s*(alter|create|drop)\b", re.IGNORECASE)
# Their bodies are stored, not run.
STORED = re.compile(
    r"\s*(create\s+(or\s+replace\s+)?(function|procedure|trigger|rule|view)|comment|grant|revoke)\b",
    re.IGNORECASE,
)
CONCURRENTLY = re.compile(
    r"\b(index|reindex|table|partition)\b[^;]*\bconcurrently\b", re.IGNORECASE
)
BUILD = re.compile(
    rf"\bcreate\s+(?:unique\s+)?index\s+concurrently\s+(?:if\s+not\s+exists\s+)?(?:{NAME}\s+)?on\b",
    re.IGNORECASE,
)
DROP_IF_EXISTS = re.compile(
    rf"\bdrop\s+index\s+(?:concurrently\s+)?if\s+exists\s+{NAME}", re.IGNORECASE
)
UPDATE = re.compile(
    rf"\bupdate\s+(?:only\s+)?{NAME}(?:\s+(?:as\s+)?\w+)?\s+set\b([^;]*)", re.IGNORECASE
)
DELETE = re.compile(rf"\bdelete\s+from\s+(?:only\s+)?{NAME}([^;]*)", re.IGNORECASE)
TRUNCATE = re.compile(
    rf"\btruncate\s+(?:table\s+)?(?:only\s+)?{NAME}(?=\s|,|;|$)([^;]*)", re.IGNORECASE
)
REWRITES = re.compile(
    rf"^\s*(?:cluster|vacuum\s*\(?\s*full[^)\s]*\)?)\s+(?:verbose\s+)?{NAME}", re.IGNORECASE
)
DROP_SCHEMA = re.compile(rf"\bdrop\s+schema\s+(?:if\s+exists\s+)?{NAME}", re.IGNORECASE)
DROP_DATABASE = re.compile(r"\bdrop\s+database\b", re.IGNORECASE)


class Statement(NamedTuple):
    """One command as a revision sends it, without comments."""

    text: str
    autocommit: bool

    @property
    def is_block(self) -> bool:
        """A DO block, which runs in a transaction whatever surrounds it."""
        return re.match(r"\s*do\b", self.text, re.IGNORECASE) is not None


def split(sql: str) -> list[str]:
    """The commands of a string that may hold several, without their comments."""
    commands = [""]
    for part in PARTS.finditer(sql):
        if part["end"]:
            commands.append("")
        else:
            commands[-1] += " " if part["comment"] else part[0]
    return [command.strip() for command in commands if command.strip()]


def hazards(statements: list[Statement], existing: set[str] | None) -> Iterator[Hazard]:
    """Judge one revision; `existing` are the tables from before it, None where not known."""
    ran = [statement for statement in statements if not STORED.match(statement.text)]
    changes_schema = any(DDL.match(statement.text) or statement.is_block for statement in ran)
    dropped: set[str] = set()
    for statement in ran:
        text = statement.text if statement.is_block else LITERAL.sub("''", statement.text)
        if CONCURRENTLY.search(text) and (statement.is_block or not statement.autocommit):
            beginning = " ".join(statement.text.split()[:5])
            yield Hazard("concurrently-in-transaction", detail=f"{beginning} …")
        dropped |= {_name(found) for found in DROP_IF_EXISTS.finditer(text)}
        for found in BUILD.finditer(text):
            if not found[1] or _name(found) not in dropped:
                yield Hazard(
                    "concurrent-build", item=_name(found) if found[1] else "without a name"
                )
        for pattern in (UPDATE, DELETE):
            for found in pattern.finditer(text):
                table, rest = _name(found), found[3]
                mixed = changes_schema and not _selects(rest)
                if _matters(table, existing) and (mixed or not re.search(r"(?i)\bwhere\b", rest)):
                    detail = ", beside a change of the schema" if changes_schema else ""
                    yield Hazard("whole-table-update", table, detail=detail)
        for found in TRUNCATE.finditer(text):
            if _matters(_name(found), existing):
                cascade = re.search(r"(?i)\bcascade\b", found[3])
                detail = ", and CASCADE those of all tables that refer to it" if cascade else ""
                yield Hazard("truncate", _name(found), detail=detail)
        for found in REWRITES.finditer(text):
            if _matters(_name(found), existing):
                yield Hazard("table-rewrite", _name(found))
        for found in DROP_SCHEMA.finditer(text):
            yield Hazard("schema-drop", item=_name(found))
        if DROP_DATABASE.search(text):
            yield Hazard("database-drop")


def _matters(table: str, existing: set[str] | None) -> bool:
    return existing is None or table in existing


def _name(found: re.Match[str]) -> str:
    name = found[2] or found[1]
    return name[1:-1] if name.startswith('"') else name.lower()


def _selects(rest: str) -> bool:
    """Whether a WHERE picks rows by a value; IS NULL, a join or 1=1 may be true of all rows."""
    where = re.split(r"(?i)\bwhere\b", rest, maxsplit=1)
    if len(where) == 1:
        return False
    condition = re.sub(r"(?i)<>|!=|\bis\s+(not\s+)?distinct\s+from\b", " ", where[1])
    condition = re.sub(r"\b(\d+)\s*=\s*\1\b", " ", condition)
    condition = re.sub(r'(?i)[\w."]+\s*=\s*[a-z_"][\w."]*(?!\s*\()', " ", condition)
    return re.search(r"(?i)[=<>~]|\b(in|between|like|ilike|exists|any)\b", condition) is not None
