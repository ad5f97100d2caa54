"""What the server says about a revision: it is run in a transaction that is rolled back.

It runs in a schema of its own that alone is on the path: nothing of the real one is seen, locked
or filled. With client_min_messages=debug1 PostgreSQL tells which tables it rewrites, scans and
builds indexes on; its catalog before and after tells the rest, whatever the statements look like.
"""

import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script
from psycopg import Cursor, errors
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import extensions, history
from app.core.database import RESET_SESSION, connect_directly, quote
from app.core.database_errors import explained, reason
from app.core.safety import catalog, concurrently, objects
from app.core.safety.catalog import Catalog
from app.core.safety.copy import CannotCopy, copy
from app.core.safety.objects import Object
from app.core.safety.proxies import proxies
from app.core.safety.scratch import Scratch
from app.core.safety.statements import ALONE, CONCURRENTLY, TRANSACTION, Statement
from app.core.sql import NAME, split
from app.core.waiting import telling
from app.models import db

MESSAGES = {
    "rewriting": re.compile(r'rewriting table "(?P<table>[^"]+)"'),
    "verifying": re.compile(r'verifying table "(?P<table>[^"]+)"'),
    "validating": re.compile(r'validating foreign key constraint "(?P<item>[^"]+)"'),
    "building": re.compile(r'building index "(?P<item>[^"]+)" on table "(?P<table>[^"]+)"'),
}
# On these every migration relies.
SETTINGS = (
    "lock_timeout",
    "statement_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "search_path",
    "role",
    "session_authorization",
    "session_replication_role",
)
# The bulk of all statements; the server need not be asked whether they changed one.
KEEPS_SETTINGS = re.compile(
    r"\s*((create|alter|drop)\s+(unlogged\s+|unique\s+)?(table|index)|comment)\b"
    r"(?!.*\b(select|execute|values)\b)",
    re.IGNORECASE | re.DOTALL,
)
READ_SETTINGS = "SELECT " + ", ".join(f"current_setting('{name}', true)" for name in SETTINGS)
# What ALTER ROLE … SET and ALTER DATABASE … SET leave behind.
READ_DEFAULTS = (
    "SELECT coalesce(rolname, 'all roles'), unnest(setconfig)"
    " FROM pg_db_role_setting LEFT JOIN pg_roles r ON r.oid = setrole"
)
OTHER_SCHEMAS = (
    "SELECT nspname FROM pg_namespace n WHERE nspname !~ '^(pg_|dry_run_)' AND nspname NOT IN"
    f" ('information_schema', '{extensions.SCHEMA}')"
    " AND NOT EXISTS (SELECT FROM pg_extension e WHERE e.extnamespace = n.oid)"
)
DEFERRABLE = (
    "SELECT string_agg(quote_ident(conname), ', '),"
    " string_agg(quote_ident(conname), ', ') FILTER (WHERE condeferred)"
    " FROM pg_constraint WHERE condeferrable AND connamespace = to_regnamespace(%s)"
)
VERSION_TABLE = "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"
ADD_VALUE = re.compile(
    r"\s*alter\s+type\b.*\badd\s+value\s+(?:if\s+not\s+exists\s+)?'((?:[^']|'')*)'",
    re.IGNORECASE | re.DOTALL,
)
DROPPED_AT_COMMIT = re.compile(
    rf"\s*create\s+temp(?:orary)?\s+table\s+(?:if\s+not\s+exists\s+)?{NAME}.*\bon\s+commit\s+drop",
    re.IGNORECASE | re.DOTALL,
)

ONLY_VALIDATES = re.compile(
    r"\s*alter\s+table\s+(if\s+exists\s+)?(only\s+)?\S+\s+validate\s+constraint\s+[^,;]+;?\s*",
    re.IGNORECASE,
)

Work = Callable[[], object]


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
    # The names of the tables that were there before, as a statement may call them.
    existing: set[str] = field(default_factory=set)
    statements: list[Statement] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    # The settings that were changed: name, and a word about the change.
    settings: dict[str, str] = field(default_factory=dict)
    reads: bool = False
    hint: str = ""

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


class DryRun:
    """An open dry run. What `observe` runs stays for the next revision, until the end."""

    def __init__(self, connection: Connection, settings: Settings, schema: str) -> None:
        self.connection = connection
        self.settings = settings
        self.schema = schema
        self._messages: list[str] = []
        self._running = False
        self._listening = False
        self._autocommit = False
        self._metadata = db.metadata
        driver: Any = connection.connection.driver_connection
        self._server = Cursor(driver)
        others = {*connection.scalars(text(OTHER_SCHEMAS))} - {schema, settings.schema_name}
        self.scratch = Scratch(settings.schema_name, schema, others, self._copy_another)
        self.observed = self._nothing_observed()
        self._latest = self.observed.before
        self._known: tuple[Catalog, dict[int, Object]] | None = None
        # The tables that this transaction of the revision changed.
        self._changed: set[int] = set()
        self._temporary: set[str] = set()
        # Values of enums that this transaction, or one before it, added.
        self._new_values: set[str] = set()
        self._old_values: set[str] = set()
        self._settings: tuple[Any, ...] = ()
        self._defaults = self._read_defaults()
        driver.add_notice_handler(
            lambda notice: self._messages.append(notice.message_primary or "")
        )
        extensions.give_a_home(connection)
        # Beneath SQLAlchemy, because a revision may take a cursor of the driver.
        self._rollback = driver.rollback
        driver.commit = driver.rollback = lambda: None
        driver.cursor_factory = self._cursor_class()

    def undo(self) -> None:
        """Roll everything back."""
        self._running = self._listening = False
        self._rollback()

    def start(self, scripts: Iterable[Script], *, at_current: bool) -> None:
        """Go to the state after these revisions, with no rows.

        Where `at_current` says that the real schema is in this very state, its structure is copied:
        the upgrade will meet that. Else, or where there can be no copy, the history is built anew.
        """
        no_copy = ""
        if at_current:
            try:
                self._copy_the_real_one()
                return
            except CannotCopy as error:
                no_copy = f"{error}, and "
        try:
            self._build_anew(scripts)
        except (Exception, SystemExit) as error:
            why = self.scratch.plain(reason(error))
            raise CannotJudge(f"{no_copy}the history does not build anew: {why}") from error

    def observe(self, works: Iterable[Work], script: Script | None = None) -> Observed:
        """Run the parts of one revision; after a statement that fails the next parts go on.

        `script` is its file, where it has one already.
        """
        self._metadata = history.metadata_of(script)
        works = [*works]
        observed = self._observe([lambda: [work() for work in works]])
        if len(works) > 1 and any(isinstance(each, DBAPIError) for each in observed.failures):
            # It was rolled back. Now each part alone, to hear of all that fail.
            observed = self._observe(works)
        return observed

    def _observe(self, works: Iterable[Work]) -> Observed:
        self._known = self._known or self._read()
        before, things = self._known
        existing = {each.name for each in before.tables.values()}
        self.observed = Observed(before, before, things, things, self.scratch.plain, existing)
        self._latest = before
        self._changed = set()
        for work in works:
            if error := self._run(work):
                self.observed.failures.append(error)
                if not isinstance(error, DBAPIError):
                    break
        if not all(KEEPS_SETTINGS.match(each.text) for each in self.observed.statements):
            self._note_defaults()
        self._reset_settings()
        if any(_misses_an_extension(each) for each in self.observed.failures):
            self.observed.hint = extensions.out_of_sight(self.connection)
        if self.observed.statements:
            self._known = self._read()
            self.observed.after, self.observed.objects_after = self._known
        return self.observed

    def catalog(self) -> Catalog:
        """What is there now."""
        return catalog.read(self.connection, *self.scratch.names.values())

    def table_id(self, found: Catalog, name: str) -> int | None:
        """The table that a revision means by this name."""
        return found.table_id(name, self.schema)

    def _nothing_observed(self) -> Observed:
        nothing = Catalog({}, {}, {}, {}, {}, {})
        return Observed(nothing, nothing, {}, {}, self.scratch.plain)

    def _copy_the_real_one(self) -> None:
        real = self.settings.schema_name
        with self.connection.begin_nested():
            copy(self.connection, real, self.schema)
            known = self._read()
            if known[0].by_names() != catalog.read(self.connection, real).by_names():
                raise CannotCopy(f"a copy of schema {real} differs from it")
        self._known = known

    def _copy_another(self, real: str, own: str) -> None:
        """A revision names a schema that is not ours: it gets a copy of that, too."""
        running, self._running = self._running, False
        self._server.execute(f"CREATE SCHEMA {own}")
        try:
            copy(self.connection, real, own)
        except CannotCopy as error:
            raise CannotJudge(f"it names another schema, and {error}") from None
        finally:
            self._running = running

    def _build_anew(self, scripts: Iterable[Script]) -> None:
        self.scratch.from_nothing = True
        # Of a type that a savepoint made, the server lets nobody use a new value, as in an upgrade.
        self._server.execute("SAVEPOINT history")
        self._server.execute(VERSION_TABLE)
        scripts = [*scripts]
        with telling(f"replaying {len(scripts)} revisions") as tell:
            for done, script in enumerate(scripts):
                tell(f"replaying {len(scripts)} revisions: {done} done")
                self._metadata = history.metadata_of(script)
                with self._operations():
                    script.module.upgrade()
                self._end_transaction()
                self._reset_settings()

    def _run(self, work: Work) -> BaseException | None:
        """Run a part of a revision; what failed as a statement leaves nothing behind."""
        self._server.execute("SAVEPOINT part")
        try:
            return self._attempt(work)
        finally:
            self._server.execute("RELEASE SAVEPOINT part")

    def _attempt(self, work: Work) -> BaseException | None:
        try:
            with self._operations():
                self._listening = True
                work()
                self._listening = False
            if self._is_aborted():
                raise errors.InFailedSqlTransaction(
                    "a statement failed, and the revision went on in a transaction that is lost"
                )
            self._end_transaction()
        except errors.Error as error:
            self._server.execute("ROLLBACK TO SAVEPOINT part")
            return DBAPIError.instance("", None, error, errors.Error)
        except (Exception, SystemExit) as error:
            if isinstance(error, DBAPIError) or self._is_aborted():
                self._server.execute("ROLLBACK TO SAVEPOINT part")
            return error
        finally:
            self._listening = self._autocommit = False
        return None

    @contextmanager
    def _operations(self) -> Iterator[None]:
        """`op` and `context` for revisions, also inside a running `flask db` command."""
        # SQLAlchemy's own idea of a transaction ends; that of the server goes on.
        self.connection.commit()
        options = {"target_metadata": self._metadata, "transaction_per_migration": True}
        migration = MigrationContext.configure(self.connection, opts=options)
        migration.autocommit_block = self._autocommit_block_of(migration)  # type: ignore[method-assign]
        with (
            proxies(Operations(migration)),
            self._nowhere_else(),
            redirect_stdout(sys.stderr),
            migration.begin_transaction(_per_migration=True),
        ):
            self._running = True
            try:
                yield
            finally:
                self._running = False

    @contextmanager
    def _nowhere_else(self) -> Iterator[None]:
        """A revision that takes another connection would work on the real rows."""
        ours: Any = self.connection.connection.driver_connection

        def refuse(connection: Connection, *_: Any) -> None:
            if connection.connection.driver_connection is not ours:
                raise CannotJudge(
                    "it works on a connection of its own, which a dry run cannot roll back: take "
                    "op.get_bind(), not db.session or an engine"
                )

        event.listen(Engine, "before_cursor_execute", refuse)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", refuse)

    def _autocommit_block_of(self, migration: MigrationContext) -> Callable[[], Any]:
        @contextmanager
        def autocommit_block() -> Iterator[None]:
            if migration._transaction is not None:
                migration._transaction.commit()
                migration._transaction = None
            self._end_transaction()
            with self.connection.begin():
                self._autocommit = True
                yield
            self._autocommit = False
            self._end_transaction()
            migration._transaction = self.connection.begin()

        return autocommit_block

    def _end_transaction(self) -> None:
        """Do what the server does at COMMIT: check constraints that wait, drop what goes then."""
        self._changed.clear()
        self._old_values |= self._new_values
        self._new_values.clear()
        row = self._server.execute(DEFERRABLE, [self.schema]).fetchone()
        deferrable, deferred = row or ("", "")
        if deferrable:
            self._server.execute(f"SET CONSTRAINTS {deferrable} IMMEDIATE")
        if deferred:
            self._server.execute(f"SET CONSTRAINTS {deferred} DEFERRED")
        while self._temporary:
            self._server.execute(f"DROP TABLE IF EXISTS pg_temp.{self._temporary.pop()}")
        self._messages.clear()

    def _cursor_class(run) -> type[Cursor[Any]]:  # noqa: N805 - the cursor has a self, too
        class Listening(Cursor[Any]):
            def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
                if not run._running:
                    return super().execute(query, params, **options)
                words = _as_string(query, self)
                run._before_statement(words)
                values = run.scratch.translated_values(words, params)
                with run._one_statement():
                    super().execute(run._runnable(words), values, **options)
                run._after_statement(self)
                return self

            def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
                if not run._running:
                    super().executemany(query, params_seq, **options)
                    return
                words = _as_string(query, self)
                run._before_statement(words)
                with run._one_statement():
                    super().executemany(run._runnable(words), params_seq, **options)
                run._after_statement(self)

        return Listening

    @contextmanager
    def _one_statement(self) -> Iterator[None]:
        """Outside of a transaction a statement that fails takes nothing else along.

        Nor does one that uses a value of an enum which an earlier revision added: to the server
        all of a dry run is one transaction, and too early for that.
        """
        if not self._autocommit and not self._old_values:
            yield
            return
        self._server.execute("SAVEPOINT one_statement")
        try:
            yield
        except errors.UnsafeNewEnumValueUsage as error:
            self._server.execute("ROLLBACK TO SAVEPOINT one_statement")
            if not any(f'"{value}"' in str(error) for value in self._old_values - self._new_values):
                raise
        except errors.Error:
            self._server.execute("ROLLBACK TO SAVEPOINT one_statement")
            raise
        finally:
            self._server.execute("RELEASE SAVEPOINT one_statement")

    def _runnable(self, words: str) -> Any:
        """The statement in our schema, without what would end the transaction or needs none."""
        commands = split(words)
        if self._listening:
            alone = self._autocommit and len(commands) == 1
            self.observed.statements += [Statement(each, alone) for each in commands]
            self._messages.clear()
        self._new_values |= {found[1] for each in commands if (found := ADD_VALUE.match(each))}
        temporary = (DROPPED_AT_COMMIT.match(each) for each in commands)
        self._temporary |= {found[2] or found[1] for found in temporary if found}
        if self._autocommit:
            concurrently.refuse_outside_of_a_transaction(commands)
        translated = self.scratch.translated(words)
        if not any(
            TRANSACTION.match(each) or ALONE.match(each) or CONCURRENTLY.search(each)
            for each in commands
        ):
            return translated
        runnable = []
        for each in split(translated):
            if TRANSACTION.match(each):
                continue
            if ALONE.match(each):
                runnable += concurrently.checked_instead(each)
            elif CONCURRENTLY.search(each) and not Statement(each, False).is_block:
                concurrently.refuse_what_the_server_refuses(self._server, each)
                runnable.append(concurrently.WORD.sub("", each))
            else:
                runnable.append(each)
        return "; ".join(runnable) or "SELECT 1"

    def _before_statement(self, words: str) -> None:
        if self._listening:
            harmless = all(KEEPS_SETTINGS.match(each) for each in split(words))
            self._settings = () if harmless else self._read_settings()

    def _after_statement(self, cursor: Cursor[Any]) -> None:
        if not self._listening:
            return
        heard = [found for message in self._messages if (found := _understood(message))]
        self._note_settings()
        statement = self.observed.statements[-1] if self.observed.statements else None
        if statement is None:
            return
        if cursor.description and re.match(r"(?i)\s*(select|with|table)\b", statement.text):
            self.observed.reads = True
        tables = self._named_by(statement) if statement.is_ddl else set()
        tables |= {oid for _, name, _ in heard if (oid := self._existing(name)) is not None}
        if not tables:
            return
        self._running = False
        now = catalog.read(self.connection, *self.scratch.names.values(), tables=tables)
        self._running = True
        before = self._latest.only(tables)
        rewritten = {table for kind, table, _ in heard if kind == "rewriting"}
        for kind, table, item in heard:
            if kind == "rewriting" or table not in rewritten:
                self._note(kind, table, item, statement, before, now)
        if not _only_validates(statement):
            self._changed |= {oid for oid in tables if before.only({oid}) != now.only({oid})}
        self._latest = self._latest.replacing(tables, now)

    def _note(
        self, kind: str, name: str, item: str, statement: Statement, before: Catalog, now: Catalog
    ) -> None:
        table = self._existing(name) if name else None
        for constraint in now.constraints.values():
            if not name and constraint.name == item:
                table = constraint.table
        if table in self.observed.before.tables:
            locked = self._is_locked(table, statement)
            self.observed.heard.append(Heard(kind, table, item, statement, before, now, locked))

    def _is_locked(self, table: int, statement: Statement) -> bool:
        if statement.autocommit or (self._autocommit and not statement.is_block):
            return False
        return table in self._changed or not _only_validates(statement)

    def _existing(self, name: str) -> int | None:
        """A table that was there before the revision, by the name that it has now."""
        return self._latest.table_id(name, *self.scratch.names.values())

    def _named_by(self, statement: Statement) -> set[int]:
        """The tables from before that a statement names; a block may mean any."""
        if statement.runs_code:
            return {*self._latest.tables}
        words = {*re.findall(r"\w+", statement.text)}
        words |= {word.lower() for word in words} | {*re.findall(r'"([^"]+)"', statement.text)}
        return {oid for oid, table in self._latest.tables.items() if table.name in words}

    def _note_settings(self) -> None:
        if not self._settings:
            return
        for name, old, new in zip(SETTINGS, self._settings, self._read_settings(), strict=True):
            if old != new:
                change = self.scratch.plain(f" from {old or 'nothing'} to {new or 'nothing'}")
                self.observed.settings.setdefault(name, change)

    def _read_settings(self) -> tuple[Any, ...]:
        if self._is_aborted():
            return self._settings
        return self._server.execute(READ_SETTINGS).fetchone() or ()

    def _note_defaults(self) -> None:
        before, self._defaults = self._defaults, self._read_defaults()
        for role, setting in self._defaults - before:
            name = setting.split("=")[0]
            if name in SETTINGS:
                self.observed.settings[name] = f" for {role}, for good"

    def _read_defaults(self) -> set[tuple[str, str]]:
        return {*self._server.execute(READ_DEFAULTS).fetchall()}

    def _reset_settings(self) -> None:
        """As `flask db upgrade` does after each revision."""
        self._server.execute(RESET_SESSION)

    def _read(self) -> tuple[Catalog, dict[int, Object]]:
        found = self.catalog()
        return found, objects.read(self.connection, self.schema)

    def _is_aborted(self) -> bool:
        return self._server.connection.info.transaction_status == TransactionStatus.INERROR


@contextmanager
def dry_run(settings: Settings) -> Iterator[DryRun]:
    """A dry run on a connection of its own; nothing that runs in it is ever committed."""
    connection, schema = _connected(settings)
    with connection:
        run = DryRun(connection, settings, schema)
        try:
            _bring_extensions_home(connection, settings)
            yield run
        finally:
            run.undo()


def _connected(settings: Settings) -> tuple[Connection, str]:
    """A connection, and the empty schema that it looks in: made now, or made for us once."""
    # No two dry runs wait for each other's schema.
    schema = f"dry_run_{secrets.token_hex(4)}"
    connection = _connect(settings, schema)
    try:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    except DBAPIError as error:
        connection.close()
        if not isinstance(error.orig, errors.InsufficientPrivilege):
            raise
    else:
        return connection, schema
    schema = f"{settings.schema_name[:55]}_dry_run"
    connection = _connect(settings, schema)
    _check_prepared(connection, schema)
    return connection, schema


def _connect(settings: Settings, schema: str) -> Connection:
    connection = connect_directly(
        settings,
        f"search_path={extensions.search_path(schema)}",
        f"lock_timeout={settings.migration_lock_timeout_ms}",
        "client_min_messages=debug1",
        # Only elsewhere than in UTC is timestamp -> timestamptz a rewrite.
        "TimeZone=Asia/Tokyo",
    )
    # One snapshot: what others do meanwhile is no change of the revision.
    return connection.execution_options(isolation_level="REPEATABLE READ")


def _check_prepared(connection: Connection, schema: str) -> None:
    query = text(
        "SELECT current_user, current_database(), to_regnamespace(:schema),"
        " has_schema_privilege(to_regnamespace(:schema), 'CREATE'),"
        " EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace(:schema))"
    )
    name = quote(schema)
    role, database, there, allowed, full = connection.execute(query, {"schema": name}).one()
    if there is None or not allowed:
        raise CannotJudge(
            f"a dry run works in a schema of its own, and the role {role} may not create one in "
            f"the database {database}. Somebody who may is to run once:\n"
            f"  CREATE SCHEMA {name} AUTHORIZATION {quote(role)};\n"
            "It stays empty: what a dry run does there is rolled back."
        )
    if full:
        raise CannotJudge(f"the schema {schema} is for dry runs, and it is not empty")
    # Two dry runs would wait for each other's names; so the second one waits here.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '10min'")
    lock = text("SELECT pg_advisory_xact_lock(hashtext(:schema))")
    connection.execute(lock, {"schema": f"dry run in {schema}"})
    connection.exec_driver_sql("RESET lock_timeout")


def _bring_extensions_home(connection: Connection, settings: Settings) -> None:
    """The real schema is out of sight, and so must be no extension that stands in it."""
    # The embedded server's are moved by the upgrade itself.
    schemas = [settings.schema_name] if settings.database_url else []
    try:
        with connection.begin_nested():
            extensions.bring_home(connection, *schemas)
    except DBAPIError:
        pass  # it may not be moved; a statement that needs it says so


def _misses_an_extension(error: BaseException) -> bool:
    missing = errors.UndefinedObject | errors.UndefinedFunction
    return isinstance(error, DBAPIError) and isinstance(error.orig, missing)


def _only_validates(statement: Statement) -> bool:
    return ONLY_VALIDATES.fullmatch(statement.text) is not None


def _as_string(query: Any, cursor: Cursor[Any]) -> str:
    if isinstance(query, str):
        return query
    return query.decode() if isinstance(query, bytes) else str(query.as_string(cursor))


def _understood(message: str) -> tuple[str, str, str] | None:
    for kind, pattern in MESSAGES.items():
        if found := pattern.match(message):
            names = found.groupdict()
            return kind, names.get("table") or "", names.get("item") or ""
    return None
