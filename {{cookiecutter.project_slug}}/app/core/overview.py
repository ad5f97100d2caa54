"""What `/` shows in development below the state: pending changes, tables, seeds, routes, links.

Nothing here may break the page or keep it waiting: what cannot be known is said in words.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from time import monotonic
from typing import Any
from urllib.parse import quote as quote_url

from flask import current_app
from sqlalchemy import Connection, Select, func, literal, select, table, text
from sqlalchemy.exc import DBAPIError

from app.config import Settings
from app.core import history
from app.core.database import connect_directly, probe, quote
from app.core.database_errors import is_in_use, reason
from app.core.migrations.autogenerate import differences
from app.core.privileges import VERSION_TABLE
from app.core.seeding import Seed
from app.models import db

# Up to here rows are counted one by one; of more, the server's estimate is told.
COUNTED = 10_000
COUNTING_SECONDS = 1.0
COMPARING_SECONDS = 2.0
MOST_CHANGES = 50
LIMITS = text(
    "SELECT set_config('statement_timeout', '300', true), set_config('lock_timeout', '100', true)"
)
SERVER = text("SELECT current_setting('server_version'), current_database(), current_user")
TABLES = text(
    "SELECT relname, reltuples, has_table_privilege(oid, 'SELECT') FROM pg_class"
    " WHERE relkind IN ('r', 'p') AND NOT relispartition"
    " AND relnamespace = to_regnamespace(:schema) ORDER BY relname"
)


@dataclass(frozen=True)
class Line:
    """A name, more about it, and where it leads."""

    name: str
    more: str = ""
    url: str = ""


@dataclass
class Part:
    """A heading: a sentence, commands to paste, and lines."""

    title: str
    words: str = ""
    commands: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


def parts(settings: Settings, answers: bool) -> list[Part]:
    """All parts, the server's first; `answers`: whether it does, or is not to be asked again."""
    why = "Not known: the database does not answer."
    found = None
    if answers:
        try:
            with probe().connect() as connection:
                found = Look(connection, settings).parts()
        except Exception as error:
            why = f"Not known: {reason(error)}."
    server, pending, tables, seeds = found or [Part(title, why) for title in Look.TITLES]
    if not pending.words:
        _compare(pending, settings)
    return [server, pending, tables, seeds, _links(settings), _routes()]


def head() -> str:
    """The newest revision of the code."""
    try:
        return " and ".join(sorted(history.heads())) or "none"
    except Exception as error:
        return f"not known: {reason(error)}"


class Look:
    """A short look into the database, in a transaction that ends with it."""

    TITLES = "Server", "Pending changes", "Tables", "Seeds"

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        self.deadline = monotonic() + COUNTING_SECONDS
        connection.execute(LIMITS)
        schema = {"schema": quote(settings.schema_name)}
        self.tables = {row.relname: row for row in connection.execute(TABLES, schema)}

    def parts(self) -> list[Part]:
        """What was seen; a part that cannot be seen does not hide the others."""
        looks = self._server, self._pending, self._tables, self._seeds
        found = [Part(title) for title in self.TITLES]
        for part, look in zip(found, looks, strict=True):
            try:
                with self.connection.begin_nested():
                    look(part)
            except Exception as error:
                part.words = f"Not known: {reason(error)}."
        return found

    def _server(self, part: Part) -> None:
        version, database, role = self.connection.execute(SERVER).one()
        part.lines = [
            Line("Server", f"PostgreSQL {version}"),
            Line("Database", database),
            Line("Role", role),
        ]

    def _pending(self, part: Part) -> None:
        current = self._current()
        if not history.heads():
            part.words = "There is no revision yet."
            init = [] if history.FOLDER.exists() else ["flask db init"]
            part.commands = [*init, 'flask db migrate -m "initial"']
        elif history.is_ahead(current):
            part.words = "None that this code knows of."
        elif current != history.heads():
            script = history.load()
            applied = {each.revision for each in history.ancestors(script, current)}
            newest_first = script.walk_revisions()
            pending = [each for each in newest_first if each.revision not in applied][::-1]
            part.words = f"{_number(len(pending), 'revision')} to apply."
            part.lines = _some([Line(each.revision, each.doc) for each in pending])
        elif self.settings.app_env == "test":
            part.words = "None; models are not compared during a test."
        # Otherwise models and database are compared, after this look.

    def _current(self) -> set[str]:
        """The revisions that the schema is at; raises if the role may not see them."""
        if VERSION_TABLE not in self.tables:
            return set()
        versions = table(VERSION_TABLE, schema=self.settings.schema_name)
        return set(self.connection.scalars(select(text("version_num")).select_from(versions)))

    def _tables(self, part: Part) -> None:
        models = {each.name for each in db.metadata.tables.values() if not _is_view(each)}
        for name in sorted(models | self.tables.keys() - {VERSION_TABLE}):
            rows = self._rows_of(name)
            part.lines.append(Line(name, rows if name in models else f"{rows}, no model"))
        if not part.lines:
            part.words = "There is none yet. A new model begins one: README.md, A new noun."

    def _rows_of(self, name: str) -> str:
        if name not in self.tables:
            return "not in the database yet"
        _, estimate, may_read = self.tables[name]
        if not may_read:
            return "this role may not read it"
        rows = select(literal(1)).select_from(table(name, schema=self.settings.schema_name))
        found, why_not = self._count(rows)
        if found is not None and found <= COUNTED:
            return _number(found, "row")
        if estimate > COUNTED or (found is None and estimate >= 0):
            return f"about {_number(round(estimate), 'row')}{why_not}"
        return f"rows not counted{why_not}" if found is None else f"more than {COUNTED:,} rows"

    def _seeds(self, part: Part) -> None:
        seeds: list[Seed] = current_app.extensions["seeds"]
        for seed in seeds:
            listed = f"of {_number(len(seed.rows), 'row')} in {seed.file}"
            if seed.noun not in self.tables:
                part.lines.append(Line(seed.noun, f"none {listed}: no table yet"))
                continue
            planted = select(literal(1)).select_from(seed.table).where(seed.owns(seed.table))
            found, why_not = self._count(planted)
            there = f"unknown number{why_not}" if found is None else _or_more(found)
            part.lines.append(Line(seed.noun, f"{there} {listed}"))
            if found is not None and found < min(len(seed.rows), COUNTED):
                part.commands = ["flask seed all"]
        if not seeds:
            part.words = "There is none yet: README.md, A seed."

    def _count(self, rows: Select[Any]) -> tuple[int | None, str]:
        """How many there are, at most COUNTED + 1; or None, and why."""
        if monotonic() > self.deadline:
            return None, " (no time left)"
        try:
            with self.connection.begin_nested():
                some = rows.limit(COUNTED + 1).subquery()
                return self.connection.scalar(select(func.count()).select_from(some)), ""
        except DBAPIError as error:
            return None, " (locked)" if is_in_use(error) else f" ({reason(error)})"


def _compare(part: Part, settings: Settings) -> None:
    """What `flask db check` finds, looked for in a thread: with many models it takes its time."""
    comparison = current_app.extensions.get("comparison") or _in_background(settings)
    current_app.extensions["comparison"] = comparison
    try:
        found = comparison.result(COMPARING_SECONDS)
    except TimeoutError:
        part.words = "Models and database are still being compared. Reload this page."
        return
    except Exception as error:
        part.words = f"Not known: {error}"
        return
    finally:
        if comparison.done():
            current_app.extensions["comparison"] = None
    if found:
        part.words = "The models have changed, and no revision says so yet."
        part.commands = ['flask db migrate -m "describe the change"', "flask db upgrade"]
        part.lines = _some([Line(each) for each in found])
    else:
        part.words = "None: models, revisions and database agree."


def _in_background(settings: Settings) -> "Future[list[str]]":
    app: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    future: Future[list[str]] = Future()

    def work() -> None:
        try:
            with app.app_context(), connect_directly(settings, wait_seconds=0) as connection:
                future.set_result(differences(connection, settings))
        except BaseException as error:  # a command would end with SystemExit
            why = reason(error) if isinstance(error, DBAPIError) else str(error)
            future.set_exception(RuntimeError(why))

    Thread(target=work, daemon=True).start()
    return future


def _routes() -> Part:
    methods: dict[str, set[str]] = {}
    links: set[str] = set()
    for rule in current_app.url_map.iter_rules():
        own = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        methods[rule.rule] = methods.get(rule.rule, set()) | own
        if "GET" in own and not rule.arguments:
            links.add(rule.rule)
    lines = [
        Line(path, " ".join(sorted(methods[path])), quote_url(path) if path in links else "")
        for path in sorted(methods)
    ]
    return Part("Routes", lines=lines)


def _links(settings: Settings) -> Part:
    pages = {
        "API documentation": "/docs",
        "OpenAPI document": "/openapi.json",
        "Liveness": "/healthz",
        "Readiness": "/readyz",
    }
    if port := settings.metrics_port:
        is_everywhere = settings.host in ("0.0.0.0", "::")
        address = f"127.0.0.1:{port}" if is_everywhere else settings.address_of(port)
        pages["Metrics"] = f"http://{address}/metrics"
    lines = [Line(name, url, url) for name, url in pages.items()]
    return Part("Links", lines=lines)


def _is_view(model: Any) -> bool:
    return bool(model.info.get("is_view"))


def _some(lines: list[Line]) -> list[Line]:
    rest = len(lines) - MOST_CHANGES
    return [*lines[:MOST_CHANGES], Line(f"… and {rest} more")] if rest > 0 else lines


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _or_more(count: int) -> str:
    return f"more than {COUNTED:,}" if count > COUNTED else f"{count:,}"
