"""One log line for each request, and the id that every line of a request carries.

The id is the caller's, if well-formed: X-Request-ID, else the trace id of `traceparent`. It goes
back in X-Request-ID and in every problem. What the fields mean: docs/operating.md.
"""

import errno
import logging
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask
from pydantic_core import to_json
from sqlalchemy import Engine, event
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars
from werkzeug.wsgi import get_path_info

from app.config import Settings
from app.core import errors
from app.core.database import probe
from app.core.logs import TEXT_LINE
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
    started: float
    # Of these, for a free thread.
    waited: float = 0.0
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
        self.query_started = monotonic()

    def end_query(self) -> None:
        """Add the time that it took, even if it failed."""
        if self.query_started:
            self.db_seconds += monotonic() - self.query_started
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
        now = monotonic()
        started = environ.get("app.queued_at", now)
        tally = Tally(environ, _id_of(environ), started, waited=now - started)
        current.set(tally)
        clear_contextvars()
        bind_contextvars(request_id=tally.request_id)
        answer = Answer(self, tally, start_response)
        try:
            answer.take_from(self.wsgi_app)
        except (Exception, SystemExit):
            if self.app.testing or self.app.debug:
                self.end(tally)
                raise
            answer.take_instead("a request failed outside of its route")
        return answer

    def end(self, tally: Tally) -> None:
        """Tell the observers."""
        tally.seconds = monotonic() - tally.started
        try:
            for observe in self.observers:
                observe(tally)
        finally:
            current.set(None)
            clear_contextvars()


class Answer:
    """What is sent to the client; the request ends when the server closes it.

    No exception is left to gunicorn, whose line would have the query string and not the id, and
    whose answer would be a page for people.
    """

    def __init__(self, line: RequestLine, tally: Tally, start_response: "StartResponse") -> None:
        """Nothing is there yet."""
        self.line = line
        self.tally = tally
        self.start_response: StartResponse | None = start_response
        self.head: tuple[str, list[tuple[str, str]]]
        self.body: Iterable[bytes] = []
        self.parts: Iterator[bytes] = iter([])

    def take_from(self, wsgi_app: "WSGIApplication") -> None:
        """Take status, headers and body."""
        self.body = wsgi_app(self.tally.environ, self._keep)
        self.parts = iter(self.body)

    def take_instead(self, what: str) -> None:
        """After an exception: log it and, if nothing is sent yet, take a problem instead."""
        log.exception(what)
        if self.start_response is None:
            # gunicorn hangs up, as if the client had.
            raise BrokenPipeError(errno.EPIPE, what)
        self._close_body()
        self.take_from(errors.unexpected())

    def __iter__(self) -> Iterator[bytes]:
        """Part after part."""
        return self

    def __next__(self) -> bytes:
        """The next part."""
        part: bytes | None = None
        try:
            part = next(self.parts, None)
            self._send_head()
        except Exception:
            if self.line.app.testing or self.line.app.debug:
                raise
            self.take_instead("an answer broke off")
            part = next(self.parts)
            self._send_head()
        if part is None:
            raise StopIteration
        return part

    def close(self) -> None:
        """The last part was sent, or the client has gone."""
        try:
            self._close_body()
        finally:
            self.line.end(self.tally)

    def _close_body(self) -> None:
        if close := getattr(self.body, "close", None):
            close()

    def _keep(self, status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        """Keep the head until the first part is there: so long it can become another one."""
        self.head = status, [*headers, ("X-Request-ID", self.tally.request_id)]
        self.tally.answer(int(status[:3]))

    def _send_head(self) -> None:
        if self.start_response:
            status, headers = self.head
            for _, value in headers:
                value.encode("latin-1")  # or gunicorn could not send it, and would answer itself
            self.start_response(status, headers)
            self.start_response = None


def _id_of(environ: "WSGIEnvironment") -> str:
    given: str = environ.get("HTTP_X_REQUEST_ID", "")
    if WELL_FORMED.fullmatch(given):
        return given
    trace = TRACEPARENT.fullmatch(environ.get("HTTP_TRACEPARENT", ""))
    # Not `secrets`, which asks the kernel and lets another thread run meanwhile.
    return trace[1] if trace else f"{random.getrandbits(128):032x}"


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
    """Write past the standard library's logging, which costs several times as much."""
    line = _json if settings.production else _text
    ranks = logging.getLevelNamesMapping()
    least = ranks[settings.log_level]
    stream = sys.stderr

    def write(tally: Tally) -> None:
        level = _level(tally.status)
        if ranks[level] >= least:
            now = datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
            stream.write(line(tally, level.lower(), f"{now}Z"))

    return write


def _level(status: int) -> str:
    if status < 500:
        return "INFO"
    # 503 says that somebody else is in trouble, and its reason is a line at ERROR already.
    return "WARNING" if status == 503 else "ERROR"


def _json(tally: Tally, level: str, timestamp: str) -> str:
    # What the code of the service has bound comes along: a tenant, the id of a user.
    known = get_contextvars() | {
        "timestamp": timestamp,
        "level": level,
        "logger": "requests",
        "event": "request",
        "request_id": tally.request_id,
        "method": tally.environ["REQUEST_METHOD"],
        "route": tally.route,
        # Without its query, which may hold what is personal.
        "path": get_path_info(tally.environ),
        "status": tally.status,
        "ms": round(tally.seconds * 1000, 2),
        "wait_ms": round(tally.waited * 1000, 2),
        "db_ms": round(tally.db_seconds * 1000, 2),
        "queries": tally.queries,
        "client": tally.environ.get("REMOTE_ADDR"),
    }
    # pydantic's writer takes a twentieth of the time of json.dumps.
    return f"{to_json(known, fallback=repr).decode()}\n"


def _text(tally: Tally, level: str, timestamp: str) -> str:
    path = get_path_info(tally.environ)
    known = {
        "event": f"{tally.environ['REQUEST_METHOD']} {path if path.isprintable() else ascii(path)}"
        f" {tally.status}",
        "ms": round(tally.seconds * 1000, 2),
        "db_ms": round(tally.db_seconds * 1000, 2),
        "queries": tally.queries,
        "request_id": tally.request_id,
    }
    return f"{TEXT_LINE(None, '', known | {'level': level, 'timestamp': timestamp})}\n"
