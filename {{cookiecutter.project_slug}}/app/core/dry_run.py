"""What the server says about a revision: it is run in a transaction that is rolled back.

With client_min_messages=debug1 PostgreSQL tells which tables it rewrites, scans and builds indexes
on; its catalog before and after tells the rest, whatever the statements look like.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import alembic.context
import alembic.op
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import AddColumnOp, AlterColumnOp, CreateTableOp
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from psycopg import Cursor, errors
from sqlalchemy import Column as ModelColumn
from sqlalchemy import Connection, Enum, text
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import catalog, sql
from app.core.catalog import Catalog
from app.core.database import connect_directly, reason
from app.core.hazards import Hazard, unique
from app.models import db

MESSAGES = {
    "rewriting": re.compile(r'rewriting table "(?P<table>[^"]+)"'),
    "verifying": re.compile(r'verifying table "(?P<table>[^"]+)"'),
    "validating": re.compile(r'validating foreign key constraint "(?P<item>[^"]+)"'),
    "building": re.compile(r'building index "(?P<item>[^"]+)" on table "(?P<table>[^"]+)"'),
}
RETYPING = re.compile(r'ALTER TABLE ("[^"]+"|\w+) ALTER COLUMN ("[^"]+"|\w+) TYPE')
STRONG_LOCKS = (
    "SELECT relation FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' AND mode"
    " IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
)

Work = Callable[[], object]
Columns = dict[str, catalog.Column]


class CannotJudge(Exception):  # noqa: N818 - a verdict, not a mistake
    """No verdict, and why."""


class DryRun:
    """An open dry run. What `observe` runs stays for the next revision, until the end."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        # No two dry runs wait for each other's schema.
        self.schema = f"dry_run_{connection.scalar(text('SELECT pg_backend_pid()'))}"
        self.statements: list[sql.Statement] = []
        # The labels that the history gave to each enum column, by (table, column).
        self.labels: dict[tuple[str, str], list[str]] = {}
        self._heard: list[str] = []
        self._found: list[Hazard] = []
        self._listening = False
        self._autocommit = False
        self._before = self._latest = Catalog({}, {}, {}, {}, {}, {})
        self._locked: set[int] = set()
        driver: Any = connection.connection.driver_connection
        driver.add_notice_handler(lambda notice: self._heard.append(notice.message_primary or ""))
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

    def observe(self, works: Iterable[Work]) -> list[Hazard]:
        """Run the parts of one revision; a part that fails is a hazard, and the next ones go on."""
        self._before = self._latest = self.catalog()
        self._locked = set(self.connection.scalars(text(STRONG_LOCKS)))
        self._found, self.statements = [], []
        for work in works:
            self.connection.exec_driver_sql("SAVEPOINT part")
            try:
                with self._operations():
                    self._listening = True
                    work()
            except DBAPIError as error:
                self._listening = False
                self.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT part")
                self._found.append(_failure(error))
            finally:
                self._listening = self._autocommit = False
        after = self.catalog()
        existing = {
            table.name
            for table in self._before.tables.values()
            if table.schema in (self.schema, self.settings.schema_name)
        }
        found = [
            *self._found,
            *_differences(self._before, after),
            *sql.hazards(self.statements, existing),
        ]
        return unique(found)

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
            else f'{self.schema}, "{self.settings.schema_name}"'
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
        commands = sql.split(statement)
        if self._listening:
            self.statements += [sql.Statement(each, self._autocommit) for each in commands]
            self._heard.clear()
        runnable = [each for each in commands if not sql.NOT_IN_TRANSACTION.match(each)]
        concurrent = any(sql.CONCURRENTLY.search(each) for each in runnable)
        if len(runnable) == len(commands) and not concurrent:
            return statement
        plain = [
            each
            if sql.Statement(each, False).is_block
            else re.sub(r"(?i)\bconcurrently\b", "", each)
            for each in runnable
        ]
        return "; ".join(plain) or "SELECT 1"

    def _after_statement(self) -> None:
        heard = [found for message in self._heard if (found := _understood(message))]
        self._heard.clear()
        changes = self.statements and (
            sql.DDL.match(self.statements[-1].text) or self.statements[-1].is_block
        )
        if self._listening and (heard or changes):
            self._listening = False
            now = self.catalog()
            rewritten = {table for kind, table, _ in heard if kind == "rewriting"}
            for kind, table, item in heard:
                if kind == "rewriting" or table not in rewritten:
                    self._found += self._judge(kind, table, item, now)
            self._latest = now
            self._listening = True

    def _judge(self, kind: str, table: str, item: str, now: Catalog) -> Iterator[Hazard]:
        """What one message of the server means for a table that was there before the revision."""
        constraint = next(
            (
                found
                for oid, found in now.constraints.items()
                if found.name == item and found.table in self._before.tables
            ),
            None,
        )
        oid = self._visible(table) if table else constraint and constraint.table
        if oid not in self._before.tables:
            return
        table = now.tables[oid].name
        old, new = self._latest.columns_of(oid), now.columns_of(oid)
        validates = "validate constraint" in self.statements[-1].text.lower()
        match kind:
            case "verifying" | "validating" if validates:
                if self._locked_by_this_revision(oid):
                    yield Hazard("validate-with-ddl", table)
            case "rewriting":
                found = [*_added_with_a_rewrite(table, old, new), *_retyped(table, old, new)]
                yield from found or [Hazard("table-rewrite", table)]
            case "verifying":
                known = set(self._latest.constraints)
                required = [
                    name
                    for name in old.keys() & new.keys()
                    if new[name].required and not old[name].required
                ]
                checks = [
                    each.name
                    for number, each in now.constraints.items()
                    if number not in known and each.table == oid and each.kind == "c"
                ]
                added = [name for name in new if name not in old and new[name].required]
                yield from (Hazard("set-not-null", table, name) for name in required)
                yield from (Hazard("check-constraint", table, name) for name in checks)
                if not required and not checks and not added:
                    yield Hazard("table-scan", table)
            case "validating":
                yield Hazard("foreign-key", table, item)
            case "building":
                yield from self._judge_build(oid, table, item, now)

    def _judge_build(self, oid: int, table: str, item: str, now: Catalog) -> Iterator[Hazard]:
        """An index that is new, or that a REINDEX or a change of type builds again."""
        added = [each for each in now.constraints if each not in self._latest.constraints]
        if any(now.constraints[each].name == item for each in added):
            if any(now.constraints[each][1:3] == (item, "u") for each in added):
                yield Hazard("unique-constraint", table, item)
            return
        old, new = self._latest.columns_of(oid), now.columns_of(oid)
        yield from _retyped(table, old, new)
        known = {each.name for each in self._latest.indexes_of(oid)}
        known |= {each.name for each in self._latest.constraints_of(oid)}
        words = self.statements[-1].text
        rebuilt = re.match(r"(?i)\s*reindex\b", words)
        if (item not in known or rebuilt) and not sql.CONCURRENTLY.search(words):
            yield Hazard("index-build", table, item)

    def _visible(self, table: str) -> int | None:
        query = text("SELECT to_regclass(quote_ident(:name))::oid")
        found: int | None = self.connection.scalar(query, {"name": table})
        return found

    def _locked_by_this_revision(self, table: int) -> bool:
        if table not in set(self.connection.scalars(text(STRONG_LOCKS))):
            return False
        if self._autocommit:
            return self.statements[-1].is_block
        if table not in self._locked:
            return True
        # Locked since an earlier revision of this dry run: then only the words can tell.
        name = self._latest.tables[table].name
        return any(
            re.search(rf"(?i)\balter\s+table\b[^;]*\b{re.escape(name)}\b(?!\W*validate)", each.text)
            for each in self.statements
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


def at_models(settings: Settings) -> tuple[Catalog, Catalog]:
    """What the models would build, in a schema that is rolled back, and what SCHEMA holds now."""
    tables = [table for table in db.metadata.tables.values() if table.schema is None]
    with dry_run(settings) as run:
        name = f"{run.schema}_models"
        run.connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        run.connection.exec_driver_sql(f'SET LOCAL search_path = {name}, "{settings.schema_name}"')
        db.metadata.create_all(run.connection, tables, checkfirst=False)
        return (
            catalog.read(run.connection, name),
            catalog.read(run.connection, settings.schema_name),
        )


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


def _added_with_a_rewrite(table: str, old: Columns, new: Columns) -> Iterator[Hazard]:
    for name in new.keys() - old.keys():
        column = new[name]
        if column.identity or "nextval(" in (column.default or ""):
            yield Hazard("identity-column", table, name)
        elif column.generated == "s":
            yield Hazard("generated-column", table, name)
        elif "(" in (column.default or ""):
            yield Hazard("volatile-default", table, name, str(column.default))


def _retyped(table: str, old: Columns, new: Columns) -> Iterator[Hazard]:
    for name in old.keys() & new.keys():
        if old[name].type != new[name].type:
            detail = f" from {old[name].type} to {new[name].type}"
            yield Hazard("type-change", table, name, detail)


def _differences(before: Catalog, after: Catalog) -> Iterator[Hazard]:
    """What happened to the tables that were there before."""
    for oid in before.schemas.keys() - after.schemas.keys():
        yield Hazard("schema-drop", item=before.schemas[oid])
    for oid, table in before.tables.items():
        if oid not in after.tables:
            yield Hazard("table-drop", table.name)
        else:
            if after.tables[oid] != table:
                new_name = ".".join(after.tables[oid])
                yield Hazard("table-rename", table.name, detail=f": {new_name}")
            yield from _table_differences(oid, table.name, before, after)
    for oid, enum in before.enums.items():
        now = after.enums.get(oid) or next(
            (each for each in after.enums.values() if each[:2] == enum[:2]), None
        )
        for label in sorted(set(enum.labels) - set(now.labels)) if now else []:
            yield Hazard("enum-value-removed", item=enum.name, detail=label)


def _table_differences(oid: int, table: str, before: Catalog, after: Catalog) -> Iterator[Hazard]:
    columns, columns_now = before.columns.get(oid, {}), after.columns.get(oid, {})
    for number, column in columns.items():
        now = columns_now.get(number)
        if now is None:
            yield Hazard("column-drop", table, column.name)
        elif now.name != column.name:
            yield Hazard("column-rename", table, column.name, f": {now.name}")
    for number, column in columns_now.items():
        was = columns.get(number)
        filled = column.default is not None or column.identity or column.generated
        if was is None and column.required and not filled:
            yield Hazard("required-column", table, column.name)
        if column.type == "json" and (was is None or was.type != "json"):
            yield Hazard("json-column", table, column.name)
    key, key_now = (each.primary_key_of(oid) for each in (before, after))
    if key != key_now:
        detail = f": {key or 'none'} becomes {key_now or 'none'}"
        yield Hazard("primary-key", table, detail=detail)
    for number, constraint in after.constraints.items():
        if constraint.table == oid and constraint.kind == "x" and number not in before.constraints:
            yield Hazard("exclusion-constraint", table, constraint.name)


def _failure(error: DBAPIError) -> Hazard:
    diagnosis: Any = getattr(error.orig, "diag", None)
    if getattr(error.orig, "sqlstate", None) == errors.NotNullViolation.sqlstate:
        return Hazard("required-column", diagnosis.table_name, diagnosis.column_name)
    retyped = RETYPING.search(error.statement or "")
    if retyped and isinstance(error.orig, errors.DatatypeMismatch):
        detail = f" (the server says: {reason(error)})"
        return Hazard("type-change", retyped[1].strip('"'), retyped[2].strip('"'), detail)
    return Hazard("fails", detail=reason(error))
