"""What the server says about a revision: it is run in a transaction that is rolled back.

It runs in a schema of its own that alone is on the path: nothing of the real one is seen, locked
or filled. With client_min_messages=debug1 PostgreSQL tells which tables it rewrites, scans and
builds indexes on; its catalog before and after tells the rest, whatever the statements look like.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script
from psycopg import Cursor, errors
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import extensions, history
from app.core.database_errors import reason
from app.core.safety import catalog, concurrently, objects, own_schema
from app.core.safety.catalog import Catalog
from app.core.safety.copy import CannotCopy, copy
from app.core.safety.listener import Listener
from app.core.safety.objects import Object
from app.core.safety.observed import CannotJudge, Observed
from app.core.safety.one_transaction import OneTransaction
from app.core.safety.proxies import no_other_connection, proxies
from app.core.safety.run_settings import RunSettings
from app.core.safety.scratch import Scratch
from app.core.sql import split
from app.core.waiting import telling
from app.models import db

OTHER_SCHEMAS = (
    "SELECT nspname FROM pg_namespace n WHERE nspname !~ '^(pg_|dry_run_)' AND nspname NOT IN"
    f" ('information_schema', '{extensions.SCHEMA}')"
    " AND NOT EXISTS (SELECT FROM pg_extension e WHERE e.extnamespace = n.oid)"
)
NOT_OWNED = (
    "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(:schema))"
    " AND relkind IN ('r', 'p', 'm') AND NOT pg_has_role(relowner, 'USAGE')"
)
VERSION_TABLE = "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"

Work = Callable[[], object]


class DryRun:
    """An open dry run. What `observe` runs stays for the next revision, until the end."""

    def __init__(self, connection: Connection, settings: Settings, schema: str) -> None:
        self.connection = connection
        self.settings = settings
        self.schema = schema
        driver: Any = connection.connection.driver_connection
        # For our own questions: what a revision sends goes through another kind of cursor.
        self._server = Cursor(driver)
        self._transaction = OneTransaction(self._server, schema)
        self._run_settings = RunSettings(self._server)
        others = {*connection.scalars(text(OTHER_SCHEMAS))} - {schema, settings.schema_name}
        self.scratch = Scratch(settings.schema_name, schema, others, self._copy_another)
        self._metadata = db.metadata
        # True while a revision has the connection.
        self._running = False
        self._listener: Listener | None = None
        self._known: tuple[Catalog, dict[int, Object]] | None = None
        self._not_owned: set[str] = set()
        driver.add_notice_handler(self._hear)
        extensions.give_a_home(connection)
        # Beneath SQLAlchemy, because a revision may take a cursor of the driver.
        self._rollback = driver.rollback
        driver.commit = driver.rollback = lambda: None
        driver.cursor_factory = self._cursor_class()

    def undo(self) -> None:
        """Roll everything back."""
        self._running = False
        self._rollback()

    def start(self, scripts: Iterable[Script], *, at_current: bool) -> None:
        """Go to the state after these revisions, with no rows.

        Where `at_current` says that the real schema is in this very state, its structure is copied:
        the upgrade will meet that. Otherwise, or if it cannot be copied, the history is replayed.
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
            raise CannotJudge(f"{no_copy}the history cannot be replayed: {why}") from error

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
        before, things = self._now()
        observed = Observed(before, before, things, things, self.scratch.plain, self._not_owned)
        self._run_settings.start()
        self._listener = Listener(observed, self._read_tables)
        for work in works:
            if error := self._run(work):
                observed.failures.append(error)
                if not isinstance(error, DBAPIError):
                    break
        self._listener = None
        observed.settings = self._run_settings.end(observed.statements)
        if any(_misses_something(each) for each in observed.failures):
            observed.hint = extensions.out_of_sight(self.connection)
        if observed.statements:
            self._known = observed.after, observed.objects_after = self._read()
        return observed

    def catalog(self) -> Catalog:
        """What is there now."""
        return self._now()[0]

    def table_id(self, found: Catalog, name: str) -> int | None:
        """The table that a revision means by this name."""
        return found.table_id(name, self.schema)

    def _now(self) -> tuple[Catalog, dict[int, Object]]:
        self._known = self._known or self._read()
        return self._known

    def _read(self) -> tuple[Catalog, dict[int, Object]]:
        found = catalog.read(self.connection, *self.scratch.names.values())
        return found, objects.read(self.connection, self.schema)

    def _read_tables(self, tables: set[int]) -> Catalog:
        with self._between_statements():
            return catalog.read(self.connection, *self.scratch.names.values(), tables=tables)

    def _copy_the_real_one(self) -> None:
        real = self.settings.schema_name
        with self.connection.begin_nested():
            copy(self.connection, real, self.schema)
            known = self._read()
            if known[0].by_names() != catalog.read(self.connection, real).by_names():
                raise CannotCopy(f"a copy of schema {real} differs from it")
        self._known = known
        # The copy is ours, and so it hides what only an owner may do.
        self._not_owned = {*self.connection.scalars(text(NOT_OWNED), {"schema": real})}

    def _copy_another(self, real: str, own: str) -> None:
        """A revision names a schema that is not ours: it gets a copy of that, too."""
        with self._between_statements():
            self._server.execute(f"CREATE SCHEMA {own}")
            try:
                copy(self.connection, real, own)
            except CannotCopy as error:
                raise CannotJudge(f"it names another schema, and {error}") from None

    def _build_anew(self, scripts: Iterable[Script]) -> None:
        self.scratch.from_nothing = True
        # Of a type that a savepoint made, the server lets nobody use a new value, as in an upgrade.
        self._server.execute("SAVEPOINT history")
        self._server.execute(VERSION_TABLE)
        scripts = [*scripts]
        with telling("replaying revisions") as tell:
            for done, script in enumerate(scripts):
                tell(f"replaying revisions: {done} of {len(scripts)} done")
                self._metadata = history.metadata_of(script)
                with self._operations():
                    script.module.upgrade()
                self._end_transaction()
                self._run_settings.reset()

    def _run(self, work: Work) -> BaseException | None:
        """Run a part of a revision; what failed as a statement leaves nothing behind."""
        self._server.execute("SAVEPOINT part")
        try:
            with self._operations():
                work()
            if self._transaction.is_lost:
                raise errors.InFailedSqlTransaction(
                    "a statement failed, and the revision went on in a transaction that is lost"
                )
            self._end_transaction()
        except errors.Error as error:
            self._server.execute("ROLLBACK TO SAVEPOINT part")
            return DBAPIError.instance("", None, error, errors.Error)
        except (Exception, SystemExit) as error:
            if isinstance(error, DBAPIError) or self._transaction.is_lost:
                self._server.execute("ROLLBACK TO SAVEPOINT part")
            return error
        finally:
            self._transaction.autocommit = False
            self._server.execute("RELEASE SAVEPOINT part")
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
            no_other_connection(self._server.connection),
            redirect_stdout(sys.stderr),
            migration.begin_transaction(_per_migration=True),
        ):
            self._running = True
            try:
                yield
            finally:
                self._running = False

    @contextmanager
    def _between_statements(self) -> Iterator[None]:
        """The connection is ours for a moment."""
        running, self._running = self._running, False
        try:
            yield
        finally:
            self._running = running

    def _autocommit_block_of(self, migration: MigrationContext) -> Callable[[], Any]:
        @contextmanager
        def autocommit_block() -> Iterator[None]:
            if migration._transaction is not None:
                migration._transaction.commit()
                migration._transaction = None
            self._end_transaction()
            with self.connection.begin():
                self._transaction.autocommit = True
                yield
            self._transaction.autocommit = False
            self._end_transaction()
            migration._transaction = self.connection.begin()

        return autocommit_block

    def _end_transaction(self) -> None:
        self._transaction.end()
        if self._listener:
            self._listener.end_of_transaction()

    def _hear(self, notice: Any) -> None:
        if self._listener:
            self._listener.messages.append(notice.message_primary or "")

    def _cursor_class(run) -> type[Cursor[Any]]:  # noqa: N805 - the cursor has a self, too
        class RevisionsCursor(Cursor[Any]):
            def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
                if not run._running:
                    return super().execute(query, params, **options)
                with run._statement(self, query) as words:
                    values = run.scratch.translated_values(words, params)
                    super().execute(words, values, **options)
                return self

            def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
                if not run._running:
                    super().executemany(query, params_seq, **options)
                    return
                with run._statement(self, query) as words:
                    super().executemany(words, params_seq, **options)

        return RevisionsCursor

    @contextmanager
    def _statement(self, cursor: Cursor[Any], query: Any) -> Iterator[Any]:
        """Yields what to send in place of the query; around it the server is listened to."""
        commands = split(query_text := _as_string(query, cursor))
        autocommit = self._transaction.autocommit
        if self._listener:
            self._listener.before_statement(commands, autocommit)
            self._run_settings.before_statement(commands)
        with self._transaction.statement():
            self._transaction.prepare(commands)
            translated = self.scratch.translated(query_text)
            yield concurrently.in_a_transaction(self._server, translated)
        if self._listener:
            self._run_settings.after_statement()
            self._listener.after_statement(cursor, autocommit)


@contextmanager
def dry_run(settings: Settings) -> Iterator[DryRun]:
    """A dry run on a connection of its own; nothing that runs in it is ever committed."""
    connection, schema = own_schema.connected(settings)
    with connection:
        run = DryRun(connection, settings, schema)
        try:
            own_schema.bring_extensions_home(connection, settings)
            yield run
        finally:
            run.undo()


def _misses_something(error: BaseException) -> bool:
    missing = errors.UndefinedObject | errors.UndefinedFunction
    return isinstance(error, DBAPIError) and isinstance(error.orig, missing)


def _as_string(query: Any, cursor: Cursor[Any]) -> str:
    if isinstance(query, str):
        return query
    return query.decode() if isinstance(query, bytes) else str(query.as_string(cursor))
