"""The statements of a revision, and rules on their text: what no server can say in a dry run."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from app.core.safety.hazards import Hazard
from app.core.safety.whole_tables import changes_all_rows
from app.core.sql import NAME, named, tokens, unquoted

# Their bodies are stored, not run.
STORED = re.compile(
    r"\s*(create\s+(or\s+replace\s+)?(function|procedure|trigger|rule|view)|comment|grant|revoke)\b",
    re.IGNORECASE,
)
CONCURRENTLY = re.compile(
    r"\b(index|reindex|table|partition)\b[^;]*\bconcurrently\b", re.IGNORECASE
)
# Says what a statement would do, and does not do it.
EXPLAINS = re.compile(r"\s*explain\b(?!\s*\(?\s*analyze)", re.IGNORECASE)
# They end a transaction, or do not run in one.
TRANSACTION = re.compile(
    r"(commit|end|rollback(?!\s+to)|abort|begin|start\s+transaction|prepare\s+transaction)\b",
    re.IGNORECASE,
)
ALONE = re.compile(
    r"\s*(vacuum|alter\s+system|(create|drop)\s+(database|tablespace)"
    r"|reindex\s+(\([^)]*\)\s*)?(database|system|schema))\b",
    re.IGNORECASE,
)
TRUNCATE = re.compile(
    r"(?:^|;|\bbegin\b|\bthen\b|')\s*truncate\s+(?:table\s+)?([^;]+)", re.IGNORECASE
)
LOCK = re.compile(r"(?:^|;|\bbegin\b|\bthen\b|')\s*lock\s+(?:table\s+)?([^;']+)", re.IGNORECASE)
WEAK_LOCK = re.compile(r"\bin\s+(access\s+share|row\s+share|row\s+exclusive)\b", re.IGNORECASE)
REWRITES = re.compile(r"\s*(?:cluster\b|vacuum\b[^;]*\bfull\b)", re.IGNORECASE)
DROP_SCHEMA = re.compile(rf"\bdrop\s+schema\s+(?:if\s+exists\s+)?{NAME}", re.IGNORECASE)
DROP_DATABASE = re.compile(r"\bdrop\s+database\b", re.IGNORECASE)
ALTER_SYSTEM = re.compile(r"\s*alter\s+system\s+(?:re)?set\s+(\w+)", re.IGNORECASE)
ALTER_TABLE = re.compile(
    rf"\s*alter\s+table\s+(?:if\s+exists\s+)?(?:only\s+)?{NAME}(.*)", re.IGNORECASE | re.DOTALL
)
ADD_COLUMN = re.compile(
    r"\badd\s+(?!constraint\b|primary\b|unique\b|check\b|foreign\b|exclude\b|not\b)"
    r'(?:column\s+)?(?:if\s+not\s+exists\s+)?("[^"]+"|\w+)',
    re.IGNORECASE,
)


class Statement(NamedTuple):
    """One command as a revision sends it, without comments.

    `autocommit`: outside of a transaction, and alone in its call: several commands in one call are
    one transaction.
    """

    text: str
    autocommit: bool

    @property
    def is_block(self) -> bool:
        """A DO block, which runs in a transaction whatever surrounds it."""
        return re.match(r"\s*do\b", self.text, re.IGNORECASE) is not None

    @property
    def runs_code(self) -> bool:
        """True where its text does not say what it does."""
        return re.match(r"(?i)\s*(do|call)\b", self.text) is not None

    @property
    def is_ddl(self) -> bool:
        """True where it may change the schema."""
        return self.runs_code or re.match(r"(?i)\s*(alter|create|drop)\b", self.text) is not None

    @property
    def words(self) -> str:
        """What the rules look at: no data, and of a DO block what it runs."""
        if self.is_block:
            return _without_inner_comments(self.text)
        if "'" not in self.text and "$" not in self.text:
            return self.text
        return "".join(
            "''" if kind in ("string", "dollar") else it for kind, it in tokens(self.text)
        )


def added_columns(statements: list[Statement]) -> set[str]:
    """The columns that these statements add, as `books.title`."""
    return {
        f"{named(table)}.{unquoted(column)}"
        for statement in statements
        if (table := ALTER_TABLE.match(statement.text))
        for column in ADD_COLUMN.findall(table[3])
    }


def hazards(
    statements: list[Statement], existing: set[str] | None, new_columns: set[str]
) -> Iterator[Hazard]:
    """Judge one revision; `existing` are the tables from before it, None where not known.

    `new_columns` were added lately: no row has a value there.
    """
    ran = [statement for statement in statements if not STORED.match(statement.text)]
    beside_ddl = any(statement.is_ddl for statement in ran)
    new_columns = new_columns | added_columns(ran)
    for statement in ran:
        if EXPLAINS.match(statement.text):
            continue
        words = statement.words
        alone = CONCURRENTLY.search(words) or ALONE.match(words)
        if DROP_DATABASE.search(words):
            yield Hazard("database-drop")
        elif alone and (statement.is_block or not statement.autocommit):
            beginning = " ".join(statement.text.split()[:5])
            yield Hazard("concurrently-in-transaction", detail=f"{beginning} …")
        for hazard in [*_on_all_rows(words, beside_ddl, new_columns), *_on_whole_tables(words)]:
            if existing is None or not hazard.table or hazard.table in existing:
                yield hazard
        for found in DROP_SCHEMA.finditer(words):
            yield Hazard("schema-drop", item=named(found))
        if setting := ALTER_SYSTEM.match(words):
            yield Hazard("run-setting", item=setting[1], detail=" of the whole server")
    if not any(CONCURRENTLY.search(each.words) for each in ran):
        for statement in ran:
            if TRANSACTION.match(statement.text):
                yield Hazard("ends-transaction", detail=statement.text.split()[0].upper())


def _on_all_rows(words: str, beside_ddl: bool, new_columns: set[str]) -> Iterator[Hazard]:
    detail = ", beside a change of the schema" if beside_ddl else ""
    for table in changes_all_rows(words, beside_ddl, new_columns):
        yield Hazard("whole-table-update", table, detail=detail)


def _on_whole_tables(words: str) -> Iterator[Hazard]:
    for found in TRUNCATE.finditer(words):
        cascade = re.search(r"(?i)\bcascade\b", found[1])
        detail = ", and CASCADE those of all tables that refer to it" if cascade else ""
        tables = re.split(r"(?i)\b(?:cascade|restrict|restart|continue)\b", found[1])[0]
        for each in re.finditer(rf"(?:only\s+)?{NAME}", tables, re.IGNORECASE):
            yield Hazard("truncate", named(each), detail=detail)
    for found in LOCK.finditer(words):
        if not WEAK_LOCK.search(found[1]):
            tables = re.split(r"(?i)\b(?:in|nowait)\b", found[1])[0]
            for each in re.finditer(rf"(?:only\s+)?{NAME}", tables, re.IGNORECASE):
                yield Hazard("lock-table", named(each))
    if REWRITES.match(words):
        last_name = re.search(rf"{NAME}\s*(?:using\b.*)?$", words, re.IGNORECASE)
        table = named(last_name) if last_name else ""
        yield Hazard("table-rewrite", "" if table in ("full", "cluster", "vacuum") else table)


def _without_inner_comments(block: str) -> str:
    pieces = []
    for kind, piece in tokens(block):
        if kind == "dollar":
            tag = re.match(r"\$\w*\$", piece)
            length = tag.end() if tag else 0
            body = piece[length:-length]
            piece = "".join(" " if kind == "comment" else it for kind, it in tokens(body))
            pieces.append(f"begin {piece}")
        else:
            pieces.append(piece)
    return "".join(pieces)
