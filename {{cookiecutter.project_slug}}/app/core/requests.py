"""One log line for each request, and the id that every line of a request carries.

The id is the caller's, if well-formed: X-Request-ID, else the trace id of `traceparent`. It goes
back in X-Request-ID and in every problem. What the fields mean: docs/operating.md.
"""

import logging
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask
from sqlalchemy import Engine, event
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars
from werkzeug.wsgi import get_path_info

from app.config import Settings
from app.core import errors
from app.core.database import probe
from app.core.logs import JSON_LINE, TEXT_LINE
from app.models import db

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

WELL_FORMED = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# https://www.w3.org/TR/trace-context: version, trace id, span id, flags; not all of them zeros.
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)

log = structlog.get_logger("requests")


@dataclass(slots=True)
class Tally:
    """What is known and measured of one request; times in seconds."""

    environ: "WSGIEnvironment"
    request_id: str
    started: float = field(default_factory=perf_counter)
    seconds: float = 0.0
    status: int = 500
    # `/api/books/<int:book_id>`; None if no rule matched.
    route: str | None = None
    queries: int = 0
    db_seconds: float = 0.0
    query_started: float = 0.0

    def answer(self, status: int) -> None:
        """Note the status, and the rule that matched, while Flask still knows it."""
        self.status = status
        request = self.environ.get("werkzeug.request")
        if request and request.url_rule:
            self.route = request.url_rule.rule

    def begin_query(self) -> None:
        """Count a statement that is sent."""
        self.queries += 1
        self.query_started = perf_counter()

    def end_query(self) -> None:
        """Add the time that it took, even if it failed."""
        if self.query_started:
            self.db_seconds += perf_counter() - self.query_started
            self.query_started = 0.0


current: ContextVar[Tally | None] = ContextVar("current", default=None)


def init_app(app: Flask, settings: Settings) -> None:
    """Give each request its id, and write its line when it has ended."""
    line = app.extensions["requests"] = RequestLine(app, _writer(settings))
    app.wsgi_app = line  # type: ignore[method-assign]
    with app.app_context():
        for engine in {db.engine, probe()}:
            _count_queries(engine)


class RequestLine:
    """Around all of Flask, because a request ends after its teardown and its last streamed byte."""

    def __init__(self, app: Flask, write: Callable[[Tally], object]) -> None:
        """`observers` are called with each request that has ended, the writer first."""
        self.app = app
        self.wsgi_app: WSGIApplication = app.wsgi_app
        self.observers = [write]

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Serve a request."""
        tally = Tally(environ, _id_of(environ))
        current.set(tally)
        clear_contextvars()
        bind_contextvars(request_id=tally.request_id)

        answer: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
            # Kept until Flask is done: what fails in its teardown must still become an answer.
            answer[:] = status, [*headers, ("X-Request-ID", tally.request_id)]
            tally.answer(int(status[:3]))

        try:
            body = self.wsgi_app(environ, start)
        except Exception:
            if self.app.testing or self.app.debug:
                self.end(tally)
                raise
            # Not left to gunicorn, whose line would have the query, and whose answer is HTML.
            log.exception("a request failed outside of its route")
            body = errors.unexpected()(environ, start)
        start_response(*answer)
        return Body(body, tally, self.end)

    def end(self, tally: Tally) -> None:
        """Write the line."""
        tally.seconds = perf_counter() - tally.started
        for observe in self.observers:
            observe(tally)
        current.set(None)


class Body:
    """The bytes of an answer; the request ends when the server closes it."""

    def __init__(self, body: Iterable[bytes], tally: Tally, end: Callable[[Tally], None]) -> None:
        """The server has not asked for the first part yet."""
        self.body = body
        self.parts = iter(body)
        self.tally = tally
        self.end = end
        self.is_broken = False

    def __iter__(self) -> Iterator[bytes]:
        """Part after part."""
        return self

    def __next__(self) -> bytes:
        """The next part."""
        try:
            return next(self.parts)
        except StopIteration:
            raise
        except Exception:
            self.is_broken = True
            raise

    def close(self) -> None:
        """The last part was sent, or the client has gone."""
        try:
            if close := getattr(self.body, "close", None):
                close()
        finally:
            self.end(self.tally)
            # gunicorn has yet to log what broke the answer; that line needs the id too.
            if not self.is_broken:
                clear_contextvars()


def _id_of(environ: "WSGIEnvironment") -> str:
    given: str = environ.get("HTTP_X_REQUEST_ID", "")
    if WELL_FORMED.fullmatch(given):
        return given
    trace = TRACEPARENT.fullmatch(environ.get("HTTP_TRACEPARENT", ""))
    return trace[1] if trace else secrets.token_hex(16)


def _count_queries(engine: Engine) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def before(*_: Any) -> None:
        if tally := current.get():
            tally.begin_query()

    @event.listens_for(engine, "after_cursor_execute")
    @event.listens_for(engine, "handle_error")
    def after(*_: Any) -> None:
        if tally := current.get():
            tally.end_query()


def _writer(settings: Settings) -> Callable[[Tally], None]:
    """Write lines past the standard library's logging, which costs five times as much."""
    lines = structlog.WriteLogger(sys.stderr)
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True)
    fields = _fields if settings.production else _fields_for_people
    rendered: Any = JSON_LINE if settings.production else TEXT_LINE
    ranks = logging.getLevelNamesMapping()

    def write(tally: Tally) -> None:
        level = _level(tally.status)
        if ranks[level.upper()] >= ranks[settings.log_level]:
            # What the service's own code has bound comes along: a user's id, a tenant.
            known = get_contextvars() | fields(tally) | {"level": level}
            lines.msg(rendered(None, "", stamped(None, "", known)))

    return write


def _level(status: int) -> str:
    if status < 500:
        return "info"
    # 503 says that somebody else is in trouble, and its reason is a line at ERROR already.
    return "warning" if status == 503 else "error"


def _fields(tally: Tally) -> dict[str, Any]:
    return {
        "event": "request",
        "logger": "requests",
        "method": tally.environ["REQUEST_METHOD"],
        "route": tally.route,
        # Without its query, which may hold what is personal.
        "path": get_path_info(tally.environ),
        "status": tally.status,
        "ms": round(tally.seconds * 1000, 2),
        "db_ms": round(tally.db_seconds * 1000, 2),
        "queries": tally.queries,
        "client": tally.environ.get("REMOTE_ADDR"),
        "request_id": tally.request_id,
    }


def _fields_for_people(tally: Tally) -> dict[str, Any]:
    known = _fields(tally)
    path = ascii(known["path"])[1:-1] if not known["path"].isprintable() else known["path"]
    return {
        "event": f"{known['method']} {path} {tally.status}",
        **{name: known[name] for name in ("ms", "db_ms", "queries", "request_id")},
    }
