"""The session of a request: GET and HEAD only read, everything else runs in one transaction."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
import structlog
from flask import Flask, current_app, has_request_context, request
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import scoped_session

from app.core.database_errors import reason

READING_METHODS = ("GET", "HEAD")
# Neither a comment nor a text nor a quoted name is a word of SQL.
NO_WORDS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", re.DOTALL)
READS = re.compile(r"[\s(]*(SELECT|WITH|VALUES|TABLE|SHOW|EXPLAIN)\b", re.IGNORECASE)
# What only a transaction can do: change rows, lock something, or set something until it ends.
NEEDS_A_TRANSACTION = re.compile(
    r"\b(INSERT|UPDATE|DELETE\s+FROM|MERGE|INTO|FOR\s+(KEY\s+)?SHARE|set_config|\w+_xact_lock\w*)\b"
    r"|;\s*\S",
    re.IGNORECASE,
)

log = structlog.get_logger("database")

View = TypeVar("View", bound=Callable[..., Any])


class WriteInGetError(RuntimeError):
    """A GET tried to change something; the message says what to do."""


def in_transaction(view: View) -> View:
    """For a GET that writes, streams rows, or whose queries must all see the same state.

    Put it below the route:

    @logins.get("/callback")
    @in_transaction
    def callback(): …
    """
    view.in_transaction = True  # type: ignore[attr-defined]
    return view


class Session(FlaskSession):
    """Without a transaction, reading saves two of three journeys to the database."""

    def __init__(self, db: Any, **options: Any) -> None:
        super().__init__(db, **options)
        self.only_reads = _request_only_reads()

    def get_bind(self, *args: Any, **options: Any) -> Engine | Connection:
        """The engine or, to read, its copy that refuses to write."""
        engines = self._db.engines
        # With SQLALCHEMY_BINDS, Flask-SQLAlchemy must find the right one first.
        is_chosen = len(engines) > 1 or options.get("bind") is not None
        engine = super().get_bind(*args, **options) if is_chosen else engines[None]
        return getattr(engine, "reading", engine) if self.only_reads else engine


def init_app(app: Flask, sessions: scoped_session[Any], engine: Engine) -> Engine:
    """Give requests that only read an engine that refuses to write, and return it."""
    reading = engine.execution_options(only_reads=True)
    event.listen(reading, "before_cursor_execute", _refuse_to_write)
    engine.reading = reading  # type: ignore[attr-defined]

    @app.teardown_appcontext
    def end(_error: BaseException | None) -> None:
        """Give the connection back; that it is gone by now no longer concerns the request."""
        if not sessions.registry.has():
            return
        try:
            sessions.remove()
        except (SQLAlchemyError, psycopg.Error) as error:
            log.warning("connection lost at the end of a request", error=reason(error))
            sessions().invalidate()
            sessions.registry.clear()

    return reading


def _request_only_reads() -> bool:
    if not has_request_context() or request.method not in READING_METHODS:
        return False
    view = current_app.view_functions.get(request.endpoint or "")
    return not getattr(view, "in_transaction", False)


def _refuse_to_write(_c: Any, _cursor: Any, statement: str, _p: Any, context: Any, _m: Any) -> None:
    options = context.execution_options if context else {}
    is_streamed = options.get("stream_results") or options.get("yield_per")
    if is_streamed or not _only_reads(statement):
        raise WriteInGetError(
            f"A {request.method} may only read, and this needs a transaction: {statement[:200]}. "
            "Use POST, PUT, PATCH or DELETE. If it must be this method, decorate the view: "
            "@in_transaction, from app.core.session."
        )


@lru_cache(maxsize=1000)
def _only_reads(statement: str) -> bool:
    words = NO_WORDS.sub(" ", statement)
    return bool(READS.match(words)) and not NEEDS_A_TRANSACTION.search(words)
