"""Every error as RFC 9457 problem+json."""

import traceback
from typing import Any

import psycopg
import structlog
from apiflask import APIFlask, HTTPError
from flask import current_app, json, request
from psycopg.errors import ForeignKeyViolation, UniqueViolation
from pydantic import BaseModel
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    PendingRollbackError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError
from structlog.contextvars import get_contextvars
from werkzeug import Response
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError
from werkzeug.http import HTTP_STATUS_CODES

from app.config import ROOT
from app.core import privileges, refusals
from app.core.database_errors import (
    conflicting_columns,
    is_behind_the_models,
    is_without_privilege,
    passing,
    reason,
    wrong_value,
)

MEDIA_TYPE = "application/problem+json"
MOST_FAULTS = 50

log = structlog.get_logger("errors")


class Problem(BaseModel):
    """RFC 9457: `type` says which kind (about:blank: the status alone), `detail` says more.

    `errors` lists what is wrong with a request: `where` (`json.title`, `query.page`) and `detail`.
    `request_id` is in every log line of the request.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[dict[str, str]] | None = None
    request_id: str | None = None


def init_app(app: APIFlask) -> None:
    """Answer every error with a `Problem`, and say so in the OpenAPI document."""
    app.error_processor(_http_error)
    app.register_error_handler(HTTPException, _werkzeug_error)
    for kind in (DBAPIError, PendingRollbackError, PoolTimeout, psycopg.Error):
        app.register_error_handler(kind, _database_error)
    app.register_error_handler(IntegrityError, _integrity_error)
    app.register_error_handler(ProgrammingError, _programming_error)
    app.register_error_handler(StatementError, _statement_error)
    app.register_error_handler(StaleDataError, _changed_meanwhile)
    app.register_error_handler(ObjectDeletedError, _changed_meanwhile)
    app.register_error_handler(RecursionError, _nested_too_deeply)
    app.spec_processor(_finish_spec)


def _problem(
    status: int, detail: str | None, errors: list[dict[str, str]] | None = None, headers: Any = None
) -> Response:
    title = HTTP_STATUS_CODES.get(status, "Unknown")
    problem = Problem(title=title, status=status, detail=detail, errors=errors)
    problem.request_id = get_contextvars().get("request_id")
    body = json.dumps(problem.model_dump(exclude_none=True))
    return Response(body, status, headers, content_type=MEDIA_TYPE)


def unexpected() -> Response:
    """The answer to an exception that no handler has seen."""
    return _problem(500, InternalServerError.description)


def _http_error(error: HTTPError) -> Response:
    """APIFlask's `abort()`, and what its validation found."""
    try:
        faults = [
            {"where": f"{location}.{field}".removesuffix("._schema"), "detail": message}
            for location, fields in (error.detail or {}).items()
            for field, messages in fields.items()
            for message in messages
        ]
    except AttributeError:  # a view's own abort(), with a detail of its own
        faults = [{"where": "detail", "detail": str(error.detail)}]
    if more := faults[MOST_FAULTS:]:
        faults[MOST_FAULTS:] = [{"where": "…", "detail": f"And {len(more)} more."}]
    return _problem(error.status_code, error.message, faults or None, error.headers)


def _werkzeug_error(error: HTTPException) -> Response:
    """Flask's own errors: no such URL, method not allowed, unreadable JSON, unhandled exception."""
    if error.response is not None:
        return error.response  # type: ignore[return-value]
    headers = [item for item in error.get_headers() if item[0] != "Content-Type"]
    unreadable = error.description == BadRequest.description
    detail = "The request cannot be read; is its body JSON?" if unreadable else error.description
    return _problem(error.code or 500, detail, headers=headers)


def _database_error(error: Exception) -> Response:
    """What passes is 503, a value that cannot be stored 422, anything else a mistake of ours."""
    if detail := passing(error):
        return _try_again(detail, error, refusals.instruction(error) or reason(error))
    if isinstance(error, DBAPIError) and (detail := wrong_value(error)):
        log.info("a value cannot be stored", error=type(error.orig).__name__, where=_where(error))
        # Invalid in a body, not found in a URL.
        return _problem(422 if request.content_length else 404, detail)
    raise error


def _try_again(detail: str, error: Exception, why: str) -> Response:
    """503, and a line for the operator; docs/operating.md has what to do."""
    log.error(detail, error=why, where=_where(error))
    return _problem(503, detail, headers={"Retry-After": "5"})


def _where(error: Exception) -> list[str]:
    """The lines of this service that led to the error: a whole traceback would flood the log."""
    return [
        f"{frame.filename.removeprefix(f'{ROOT}/')}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(f"{ROOT}/app/")
    ]


def _statement_error(error: StatementError) -> Response:
    """A text that an enum column does not have, found before it reaches PostgreSQL."""
    if not isinstance(error.orig, LookupError):
        return _database_error(error)
    return _problem(422 if request.content_length else 404, reason(error))


def _integrity_error(error: IntegrityError) -> Response:
    """A unique, foreign key, check or not-null constraint is violated.

    The server's own words show whole rows, or values of others: only what the client sent is named.
    """
    log.info("a constraint is violated", error=reason(error), where=_where(error))
    columns = conflicting_columns(error)
    sent = request.get_json(silent=True) if request.is_json else None
    if not isinstance(sent, dict) or not sent.keys() >= {*columns}:
        columns, sent = [], {}
    values = " and ".join(f"{name} {sent[name]}" for name in columns)
    if isinstance(error.orig, UniqueViolation):
        detail = f"{values or 'This'} already exists."
    elif not isinstance(error.orig, ForeignKeyViolation):
        detail = "A constraint forbids this."
    elif request.method == "DELETE":
        detail = f"Rows of {error.orig.diag.table_name} still refer to this."
    else:
        detail = f"{values or 'What this refers to'} does not exist."
    faults = [{"where": f"json.{name}", "detail": detail} for name in columns]
    return _problem(409, detail, faults or None)


def _programming_error(error: ProgrammingError) -> Response:
    """A missing privilege, a model without its migration, or a mistake in SQL."""
    try:
        # Without USAGE on the schema, its tables look as if they were not there.
        shortage = privileges.of_failed_statement(error)
    except SQLAlchemyError as lost:
        return _database_error(lost)
    if shortage or is_without_privilege(error):
        detail = "The service lacks a privilege in its database; its log says which."
        return _try_again(detail, error, f"{reason(error)}. {shortage or ''}".strip())
    if not is_behind_the_models(error):
        return _database_error(error)
    detail = "The database is behind the code."
    if not current_app.config["SETTINGS"].production:
        detail += " Run flask db upgrade, after flask db migrate if a model has changed."
    return _try_again(detail, error, reason(error))


def _changed_meanwhile(error: Exception) -> Response:
    """Another request deleted the row between our read and our write."""
    return _problem(409, "Another request changed this at the same time.")


def _nested_too_deeply(error: RecursionError) -> Response:
    """JSON a thousand levels deep."""
    return _problem(400, "The body is nested too deeply.")


def _finish_spec(spec: Any) -> Any:
    schemas = spec.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    return spec
