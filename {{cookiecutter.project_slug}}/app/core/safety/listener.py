"""What the server says while the statements of a revision run, and about which tables."""

import re
from collections.abc import Callable
from typing import Any

from psycopg import Cursor

from app.core.safety.catalog import Catalog
from app.core.safety.observed import Heard, Observed
from app.core.safety.statements import Statement

MESSAGES = {
    "rewriting": re.compile(r'rewriting table "(?P<table>[^"]+)"'),
    "verifying": re.compile(r'verifying table "(?P<table>[^"]+)"'),
    "validating": re.compile(r'validating foreign key constraint "(?P<item>[^"]+)"'),
    "building": re.compile(r'building index "(?P<item>[^"]+)" on table "(?P<table>[^"]+)"'),
}
ONLY_VALIDATES = re.compile(
    r"\s*alter\s+table\s+(if\s+exists\s+)?(only\s+)?\S+\s+validate\s+constraint\s+[^,;]+;?\s*",
    re.IGNORECASE,
)


class Listener:
    """Writes into an `Observed` what is heard.

    Only the tables from before the revision matter, and `read(tables)` looks at those alone that a
    statement names: a revision that makes a thousand tables is not slower for those it made.
    """

    def __init__(self, observed: Observed, read: Callable[[set[int]], Catalog]) -> None:
        self.observed = observed
        self.read = read
        self.messages: list[str] = []
        # What is there now of the tables from before.
        self._latest = observed.before
        # The tables that this transaction of the revision changed.
        self._changed: set[int] = set()

    def before_statement(self, commands: list[str], autocommit: bool) -> None:
        """These commands are sent, in one call."""
        alone = autocommit and len(commands) == 1
        self.observed.statements += [Statement(each, alone) for each in commands]
        self.messages.clear()

    def after_statement(self, cursor: Cursor[Any], autocommit: bool) -> None:
        """They have run."""
        heard = [found for message in self.messages if (found := _understood(message))]
        self.messages.clear()
        if not self.observed.statements:
            return
        statement = self.observed.statements[-1]
        if cursor.description and re.match(r"(?i)\s*(select|with|table)\b", statement.text):
            self.observed.reads = True
        tables = self._named_by(statement) if statement.is_ddl else set()
        tables |= {oid for _, name, _ in heard if (oid := self._existing(name)) is not None}
        if not tables:
            return
        before, now = self._latest.only(tables), self.read(tables)
        rewritten = {table for kind, table, _ in heard if kind == "rewriting"}
        for kind, name, item in heard:
            table = self._existing(name) if name else _table_of_constraint(now, item)
            if table in before.tables and (kind == "rewriting" or name not in rewritten):
                locked = self._is_locked(table, statement, autocommit)
                self.observed.heard.append(Heard(kind, table, item, statement, before, now, locked))
        if not ONLY_VALIDATES.fullmatch(statement.text):
            self._changed |= {oid for oid in tables if before.only({oid}) != now.only({oid})}
        self._latest = self._latest.replacing(tables, now)

    def end_of_transaction(self) -> None:
        """The locks of what came before are gone."""
        self._changed.clear()
        self.messages.clear()

    def _is_locked(self, table: int, statement: Statement, autocommit: bool) -> bool:
        if autocommit and not statement.is_block:
            return False
        return table in self._changed or not ONLY_VALIDATES.fullmatch(statement.text)

    def _existing(self, name: str) -> int | None:
        """A table that was there before the revision, by the name that it has now."""
        return next((oid for oid, table in self._latest.tables.items() if table.name == name), None)

    def _named_by(self, statement: Statement) -> set[int]:
        """The tables from before that a statement names; a block may mean any."""
        if statement.runs_code:
            return {*self._latest.tables}
        words = {*re.findall(r"\w+", statement.text)}
        words |= {word.lower() for word in words} | {*re.findall(r'"([^"]+)"', statement.text)}
        return {oid for oid, table in self._latest.tables.items() if table.name in words}


def _table_of_constraint(found: Catalog, name: str) -> int:
    return next((each.table for each in found.constraints.values() if each.name == name), 0)


def _understood(message: str) -> tuple[str, str, str] | None:
    for kind, pattern in MESSAGES.items():
        if found := pattern.match(message):
            names = found.groupdict()
            return kind, names.get("table") or "", names.get("item") or ""
    return None
