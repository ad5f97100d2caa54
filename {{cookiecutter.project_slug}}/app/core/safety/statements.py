"""The statements of a revision, and rules on their text: what no server can say in a dry run."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script

from app.core.safety.hazards import Hazard
from app.models import db

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
# They end a transaction, or do not run in one.
NOT_IN_TRANSACTION = re.compile(
    r"(commit|end|rollback(?!\s+to)|abort|begin|start\s+transaction|prepare\s+transaction"
    r"|vacuum|alter\s+system|(create|drop)\s+(database|tablespace)"
    r"|reindex\s+(\([^)]*\)\s*)?(database|system|schema))\b",
    re.IGNORECASE,
)
ALONE = re.compile(
    r"\s*(vacuum|alter\s+system|create\s+database|reindex\s+(database|system|schema))\b",
    re.IGNORECASE,
)
MERGE = re.compile(rf"\bmerge\s+into\s+(?:only\s+)?{NAME}([^;]*)", re.IGNORECASE)
UPDATE = re.compile(
    rf"\bupdate\s+(?:only\s+)?{NAME}(?:\s*\*)?(?:\s+(?:as\s+)?(?:\"[^\"]+\"|\w+))?\s+set\b([^;]*)",
    re.IGNORECASE,
)
DELETE = re.compile(rf"\bdelete\s+from\s+(?:only\s+)?{NAME}([^;]*)", re.IGNORECASE)
# A comparison with a value. IS NULL, <> or a join may be true of all rows.
SELECTIVE = re.compile(
    r"""(?ix)
    (?<![<>!=])(?:=|<=|>=|<|>|~)(?![<>=]) \s* (?!"?[a-z_][\w."]*"?(?!\s*\()) \S
    | \b(?:in|between|like|ilike|exists|any)\b
    """
)
TRUNCATE = re.compile(
    r"(?:^|;|\bbegin\b|\bthen\b|')\s*truncate\s+(?:table\s+)?([^;]+)", re.IGNORECASE
)
REWRITES = re.compile(r"\s*(?:cluster\b|vacuum\b[^;]*\bfull\b)", re.IGNORECASE)
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


def offline(script: Script) -> list[Statement]:
    """What upgrade() would send, as far as it can say so without a database."""
    buffer = io.StringIO()
    options = {"as_sql": True, "output_buffer": buffer, "target_metadata": db.metadata}
    migration = MigrationContext.configure(dialect_name="postgresql", opts=options)

    @contextmanager
    def autocommit_block() -> Iterator[None]:
        buffer.write("-- autocommit\n;")
        yield
        buffer.write("-- transaction\n;")

    migration.autocommit_block = autocommit_block  # type: ignore[method-assign]
    try:
        with Operations.context(migration):
            script.module.upgrade()
    except Exception:
        pass  # what came before it is judged all the same
    autocommit = False
    statements = []
    for piece in re.split(r"(-- (?:autocommit|transaction)\n;)", buffer.getvalue()):
        if piece.startswith("-- "):
            autocommit = piece.startswith("-- autocommit")
        else:
            statements += [Statement(each, autocommit) for each in split(piece)]
    return statements


def hazards(statements: list[Statement], existing: set[str] | None) -> Iterator[Hazard]:
    """Judge one revision; `existing` are the tables from before it, None where not known."""
    ran = [statement for statement in statements if not STORED.match(statement.text)]
    changes_schema = any(DDL.match(statement.text) or statement.is_block for statement in ran)
    dropped: set[str] = set()
    for statement in ran:
        text = statement.text if statement.is_block else LITERAL.sub("''", statement.text)
        alone = CONCURRENTLY.search(text) or ALONE.match(text)
        if alone and (statement.is_block or not statement.autocommit):
            beginning = " ".join(statement.text.split()[:5])
            yield Hazard("concurrently-in-transaction", detail=f"{beginning} …")
        dropped |= {_name(found) for found in DROP_IF_EXISTS.finditer(text)}
        for found in BUILD.finditer(text):
            if not found[1] or _name(found) not in dropped:
                yield Hazard(
                    "concurrent-build", item=_name(found) if found[1] else "without a name"
                )
        for hazard in [*_on_all_rows(text, changes_schema), *_on_whole_tables(text)]:
            if existing is None or not hazard.table or hazard.table in existing:
                yield hazard
        for found in DROP_SCHEMA.finditer(text):
            yield Hazard("schema-drop", item=_name(found))
        if DROP_DATABASE.search(text):
            yield Hazard("database-drop")


def _on_all_rows(text: str, changes_schema: bool) -> Iterator[Hazard]:
    detail = ", beside a change of the schema" if changes_schema else ""
    for pattern in (UPDATE, DELETE):
        for found in pattern.finditer(text):
            condition = _condition(found[3])
            if not condition or (changes_schema and not SELECTIVE.search(condition)):
                yield Hazard("whole-table-update", _name(found), detail=detail)
    for found in MERGE.finditer(text):
        if re.search(r"(?i)\bthen\s+(update|delete)\b", found[3]):
            yield Hazard("whole-table-update", _name(found), detail=detail)


def _on_whole_tables(text: str) -> Iterator[Hazard]:
    for found in TRUNCATE.finditer(text):
        cascade = re.search(r"(?i)\bcascade\b", found[1])
        detail = ", and CASCADE those of all tables that refer to it" if cascade else ""
        tables = re.split(r"(?i)\b(?:cascade|restrict|restart|continue)\b", found[1])[0]
        for each in re.finditer(rf"(?:only\s+)?{NAME}", tables, re.IGNORECASE):
            yield Hazard("truncate", _name(each), detail=detail)
    if REWRITES.match(text):
        named = re.search(rf"{NAME}\s*(?:using\b.*)?$", text, re.IGNORECASE)
        table = _name(named) if named else ""
        yield Hazard("table-rewrite", "" if table in ("full", "cluster", "vacuum") else table)


def _name(found: re.Match[str]) -> str:
    name = found[2] or found[1]
    return name[1:-1] if name.startswith('"') else name.lower()


def _condition(rest: str) -> str:
    """What a WHERE demands; empty where it is missing, or true of every row."""
    where = re.split(r"(?i)\bwhere\b", rest, maxsplit=1)
    condition = where[1] if len(where) == 2 else ""
    condition = re.sub(r"\b(\d+)\s*=\s*\1\b|(?i:\btrue\b)", " ", condition)
    return condition.strip(" ()\n\t")
