"""What a dry run saw of one revision."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError

from app.core.database_errors import explained
from app.core.safety.catalog import Catalog
from app.core.safety.objects import Object
from app.core.safety.statements import Statement


class CannotJudge(Exception):  # noqa: N818 - a verdict, not a mistake
    """No verdict, and why."""


class Heard(NamedTuple):
    """A message of the server about a table that was there before the revision.

    `kind` is a key of MESSAGES, `item` a constraint or an index; the catalogs hold this table (and
    perhaps others) before and after the statement; `locked`: the revision stops others at the table
    besides this statement.
    """

    kind: str
    table: int
    item: str
    statement: Statement
    before: Catalog
    after: Catalog
    locked: bool

    @property
    def validates(self) -> bool:
        """True for VALIDATE CONSTRAINT, which reads all rows and stops nobody by itself."""
        return "validate constraint" in self.statement.text.lower()


@dataclass
class Observed:
    """What one revision sent, what the server said, and the catalogs before and after it."""

    before: Catalog
    after: Catalog
    objects_before: dict[int, Object]
    objects_after: dict[int, Object]
    # Turns a message into one for people, who know nothing of the dry run's schemas.
    plain: Callable[[str], str]
    # Tables of the real schema that belong to another role.
    not_owned: set[str] = field(default_factory=set)
    statements: list[Statement] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    # The settings that were changed: name, and a word about the change.
    settings: dict[str, str] = field(default_factory=dict)
    reads: bool = False
    hint: str = ""

    @property
    def existing(self) -> set[str]:
        """The names of the tables that were there before, as a statement may call them."""
        return {each.name for each in self.before.tables.values()}

    @property
    def needs_rows(self) -> BaseException | None:
        """The error of a revision that asked for rows, and got none: a dry run has none."""
        last = self.failures[-1] if self.failures else None
        stops = isinstance(last, DBAPIError | SystemExit | CannotJudge)
        return last if last is not None and self.reads and not stops else None

    def said(self, error: BaseException) -> str:
        """An error for people."""
        words = explained(error)
        if not isinstance(error, DBAPIError | CannotJudge):
            words = f"{type(error).__name__}: {words}"
        return self.plain(words + self.hint)
