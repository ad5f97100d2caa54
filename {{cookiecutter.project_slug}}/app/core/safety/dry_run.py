"""What the server says about a revision: it is run in a transaction that is rolled back.

With client_min_messages=debug1 PostgreSQL tells which tables it rewrites, scans and builds indexes
on; its catalog before and after tells the rest, whatever the statements look like.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import alembic.context
import alembic.op
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import AddColumnOp, AlterColumnOp, CreateTableOp
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from psycopg import Cursor
from sqlalchemy import Column as ModelColumn
from sqlalchemy import Connection, Enum, text
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core.database import connect_directly, quote
from app.core.database_errors import reason
from app.core.safety import catalog
from app.core.safety.catalog import Catalog
from app.core.safety.statements import CONCURRENTLY, DDL, NOT_IN_TRANSACTION, Statement, split
from app.models import db

MESSAGES = {
    "rewriting": re.compile(r'rewriting table "(?P<table>[^"]+)"'),
    "verifying": re.compile(r'verifying table "(?P<table>[^"]+)"'),
    "validating": re.compile(r'validating foreign key constraint "(?P<item>[^"]+)"'),
    "building": re.compile(r'building index "(?P<item>[^"]+)" on table "(?P<table>[^"]+)"'),
}
STRONG_LOCKS = (
    "SELECT relation FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' AND mode"
    " IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
)

Work = Callable[[], object]


class CannotJudge(Exception):  # noqa: N818 - a verdict, not a mistake
    """No verdict, and why."""


class Heard(NamedTuple):
    """A message of the server about a table that was there before the revision.

    `kind` is a key of MESSAGES, `item` a constraint or an index; the catalogs are those before and
    after the statement; `locked`: the revision stops others at the table besides this statement.
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
    # The names of the tables that were there before, as a statement may call them.
    existing: set[str]
    statements: list[Statement] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    failures: list[DBAPIError] = field(default_factory=list)


class DryRun:
    """An open dry run. What `observe` runs stays for the next revision, until the end."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        # No two dry runs wait for each other's schema.
        self.schema = f"dry_run_{connection.scalar(text('SELECT pg_backend_pid()'))}"
        # The labels that the history gave to each enum column, by (table, column).
        self.labels: dict[tuple[str, str], list[str]] = {}
        self._messages: list[str] = []
        self._listening = False
        self._autocommit = False
        nothing = Catalog({}, {}, {}, {}, {}, {})
        self.observed = Observed(nothing, nothing, set())
        self._latest = nothing
        self._locked: set[int] = set()
        driver: Any = connection.connection.driver_connection
        driver.add_notice_handler(
            lambda notice: self._messages.append(notice.message_primary or "")
        )
        # Beneath SQLAlchemy, because a revision may take a cursor of the driver.
        self._rollback = driver.rollback
        driver.commit = driver.rollback = lambda: None
        driver.cursor_factory = self._cursor_class()

    def undo(self) -> None:
        """Roll everything back."""
        self._listening = False
        self._rollback()

    def start(self, history: Iterable[Script], *, at_current: bool) -> None:
        """Go to the state after `history`: built in a schema of the dry run's own, with no rows.

        Where the history can not be built anew, as in an adopted database, and `at_current` says
        that the real schema is in this very state: go on from there.
        """
        try:
            self._build_anew(history)
        except Exception as error:
            if not at_current or self.settings.production:
                raise CannotJudge(f"the history does not build anew: {reason(error)}") from error
            self.connection.rollback()
            self._rollback()

    def observe(self, works: Iterable[Work]) -> Observed:
        """Run the parts of one revision; after a part that fails the next ones go on."""
        before = self._latest = self.catalog()
        self._locked = set(self.connection.scalars(text(STRONG_LOCKS)))
        schemas = self.schema, self.settings.schema_name
        existing = {each.name for each in before.tables.values() if each.schema in schemas}
        self.observed = Observed(before, before, existing)
        for work in works:
            self.connection.exec_driver_sql("SAVEPOINT part")
            try:
                with self._operations():
                    self._listening = True
                    work()
            except DBAPIError as error:
                self._listening = False
                self.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT part")
                self.observed.failures.append(error)
            finally:
                self._listening = self._autocommit = False
        self.observed.after = self.catalog()
        return self.observed

    def catalog(self) -> Catalog:
        """What is there now."""
        schemas = self.schema, self.settings.schema_name
        return catalog.read(self.connection, *schemas, others=True)

    def table_id(self, found: Catalog, name: str) -> int | None:
        """The table that a revision means by this name."""
        return found.table_id(name, self.schema, self.settings.schema_name)

    def _build_anew(self, history: Iterable[Script]) -> None:
        path = (
            self.schema
            if self.settings.production
            else f"{self.schema}, {quote(self.settings.schema_name)}"
        )
        self.connection.exec_driver_sql(f"CREATE SCHEMA {self.schema}")
        self.connection.exec_driver_sql(f"SET LOCAL search_path = {path}")
        for script in history:
            with self._operations():
                script.module.upgrade()

    @contextmanager
    def _operations(self) -> Iterator[None]:
        """`op` and `context` for revisions, also inside a running `flask db` command."""
        migration = MigrationContext.configure(
            self.connection, opts={"target_metadata": db.metadata}
        )
        migration.autocommit_block = self._autocommit_block  # type: ignore[method-assign]
        operations = Operations(migration)
        operations.invoke = self._recording(operations.invoke)  # type: ignore
        with _proxies(operations):
            yield

    @contextmanager
    def _autocommit_block(self) -> Iterator[None]:
        self._autocommit = True
        yield
        self._autocommit = False

    def _recording(self, invoke: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def recorded(operation: Any) -> Any:
            for table, column, type_ in typed_columns(operation):
                if isinstance(type_, Enum):
                    self.labels[table, column] = list(type_.enums)
            return invoke(operation)

        return recorded

    def _cursor_class(run) -> type[Cursor[Any]]:  # noqa: N805 - the cursor has a self, too
        class Listening(Cursor[Any]):
            def execute(self, query: Any, *values: Any, **options: Any) -> Any:
                words = query if isinstance(query, str) else _as_string(query, self)
                result = super().execute(run._prepared(words), *values, **options)
                run._after_statement()
                return result

            def executemany(self, query: Any, *values: Any, **options: Any) -> None:
                words = query if isinstance(query, str) else _as_string(query, self)
                super().executemany(run._prepared(words), *values, **options)
                run._after_statement()

        return Listening

    def _prepared(self, statement: str) -> Any:
        """The statement without what would end the transaction or can not run in one."""
        commands = split(statement)
        if self._listening:
            self.observed.statements += [Statement(each, self._autocommit) for each in commands]
            self._messages.clear()
        runnable = [each for each in commands if not NOT_IN_TRANSACTION.match(each)]
        concurrent = any(CONCURRENTLY.search(each) for each in runnable)
        if len(runnable) == len(commands) and not concurrent:
            return statement
        plain = [
            each if Statement(each, False).is_block else re.sub(r"(?i)\bconcurrently\b", "", each)
            for each in runnable
        ]
        return "; ".join(plain) or "SELECT 1"

    def _after_statement(self) -> None:
        heard = [found for message in self._messages if (found := _understood(message))]
        self._messages.clear()
        ran = self.observed.statements
        changes = ran and (DDL.match(ran[-1].text) or ran[-1].is_block)
        if self._listening and (heard or changes):
            self._listening = False
            now = self.catalog()
            rewritten = {table for kind, table, _ in heard if kind == "rewriting"}
            for kind, table, item in heard:
                if kind == "rewriting" or table not in rewritten:
                    self._note(kind, table, item, now)
            self._latest = now
            self._listening = True

    def _note(self, kind: str, table: str, item: str, now: Catalog) -> None:
        constraint = next(
            (
                found
                for found in now.constraints.values()
                if found.name == item and found.table in self.observed.before.tables
            ),
            None,
        )
        oid = self._visible(table) if table else constraint and constraint.table
        if oid in self.observed.before.tables:
            locked = self._locked_by_this_revision(oid)
            statement = self.observed.statements[-1]
            heard = Heard(kind, oid, item, statement, self._latest, now, locked)
            self.observed.heard.append(heard)

    def _visible(self, table: str) -> int | None:
        query = text("SELECT to_regclass(quote_ident(:name))::oid")
        found: int | None = self.connection.scalar(query, {"name": table})
        return found

    def _locked_by_this_revision(self, table: int) -> bool:
        if table not in set(self.connection.scalars(text(STRONG_LOCKS))):
            return False
        if self._autocommit:
            return self.observed.statements[-1].is_block
        if table not in self._locked:
            return True
        # Locked since an earlier revision of this dry run: then only the words can tell.
        name = self._latest.tables[table].name
        return any(
            re.search(rf"(?i)\balter\s+table\b[^;]*\b{re.escape(name)}\b(?!\W*validate)", each.text)
            for each in self.observed.statements
        )


@contextmanager
def dry_run(settings: Settings) -> Iterator[DryRun]:
    """A dry run on a connection of its own; nothing that runs in it is ever committed."""
    with connect_directly(
        settings,
        f"lock_timeout={settings.migration_lock_timeout_ms}",
        "client_min_messages=debug1",
        # Only elsewhere than in UTC is timestamp -> timestamptz a rewrite.
        "TimeZone=Asia/Tokyo",
    ) as connection:
        # One snapshot: what others do meanwhile is no change of the revision.
        connection.execution_options(isolation_level="REPEATABLE READ")
        run = DryRun(connection, settings)
        try:
            yield run
        finally:
            run.undo()


@contextmanager
def _proxies(operations: Operations) -> Iterator[None]:
    """Put `operations` behind `from alembic import op`, and what was there back in the end."""
    outer = _proxy(alembic.op)
    operations._install_proxy()
    environment = None
    if _proxy(alembic.context) is None:
        config = Config()
        environment = EnvironmentContext(config, ScriptDirectory("."))
        environment._migration_context = operations.get_context()
        environment._install_proxy()
    try:
        yield
    finally:
        if environment is not None:
            environment._remove_proxy()
        if outer is None:
            operations._remove_proxy()
        else:
            outer._install_proxy()


def _as_string(query: Any, cursor: Cursor[Any]) -> str:
    if isinstance(query, bytes):
        return query.decode()
    return str(query.as_string(cursor))


def _proxy(module: ModuleType) -> Any:
    return getattr(module, "_proxy", None)


def _understood(message: str) -> tuple[str, str, str] | None:
    for kind, pattern in MESSAGES.items():
        if found := pattern.match(message):
            names = found.groupdict()
            return kind, names.get("table") or "", names.get("item") or ""
    return None


def typed_columns(operation: Any) -> Iterator[tuple[str, str, Any]]:
    """The columns to which an operation of Alembic gives a type: table, column, type."""
    if isinstance(operation, CreateTableOp):
        for column in operation.columns:
            if isinstance(column, ModelColumn):
                yield operation.table_name, column.name, column.type
    elif isinstance(operation, AddColumnOp):
        yield operation.table_name, operation.column.name, operation.column.type
    elif isinstance(operation, AlterColumnOp) and operation.modify_type is not None:
        yield operation.table_name, operation.column_name, operation.modify_type
