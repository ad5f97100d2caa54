"""Every error as RFC 9457 problem+json."""

from http import HTTPStatus
from typing import Any

import structlog
from apiflask import APIFlask, HTTPError
from flask import json
from pydantic import BaseModel
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug import Response
from werkzeug.exceptions import HTTPException

from app.models import db

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger("errors")


class Fault(BaseModel):
    """One thing that is wrong with a request: where (`json.title`, `query.page`) and what."""

    where: str
    detail: str


class Problem(BaseModel):
    """RFC 9457: `type` says which kind (about:blank: the status alone), `detail` says more."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[Fault] | None = None


def init_app(app: APIFlask) -> None:
    """Answer every error with a `Problem`, and say so in the OpenAPI document."""
    # APIFlask makes an instance of a class, which fields without a default forbid.
    shape = Problem.model_construct()
    app.config["HTTP_ERROR_SCHEMA"] = shape
    app.config["VALIDATION_ERROR_SCHEMA"] = shape
    app.error_processor(_http_error)
    app.register_error_handler(HTTPException, _werkzeug_error)
    app.register_error_handler(DataError, _data_error)
    app.register_error_handler(IntegrityError, _integrity_error)
    app.register_error_handler(OperationalError, _database_error)
    app.register_error_handler(PoolTimeout, _database_error)
    app.spec_processor(_problem_media_type)


def _problem(
    status: int, detail: str | None = None, errors: list[Fault] | None = None, headers: Any = None
) -> Response:
    problem = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors
    )
    body = json.dumps(problem.model_dump(exclude_none=True))
    return Response(body, status, headers, content_type=MEDIA_TYPE)


def _http_error(error: HTTPError) -> Response:
    """`abort()` of APIFlask, and what its validation found."""
    faults = [
        Fault(where=f"{location}.{field}", detail=message)
        for location, fields in (error.detail or {}).items()
        for field, messages in fields.items()
        for message in messages
    ]
    return _problem(error.status_code, error.message, faults or None, error.headers)


def _werkzeug_error(error: HTTPException) -> Response:
    """Flask's own errors: no such URL, method not allowed, unreadable JSON, unhandled exception."""
    if error.response is not None:
        return error.response  # type: ignore[return-value]
    headers = [item for item in error.get_headers() if item[0] != "Content-Type"]
    return _problem(error.code or 500, error.description, headers=headers)


def _data_error(error: DataError) -> Response:
    """A value that PostgreSQL cannot store, say a NUL character."""
    db.session.rollback()
    return _problem(422, str(error.orig).splitlines()[0])


def _integrity_error(error: IntegrityError) -> Response:
    """A unique, foreign key, check or not-null constraint that says no."""
    db.session.rollback()
    diagnosis = getattr(error.orig, "diag", None)
    return _problem(409, getattr(diagnosis, "message_detail", None) or "A constraint forbids this.")


def _database_error(error: Exception) -> Response:
    """The database is away or has no connection left."""
    log.error("database unavailable", error=str(error).splitlines()[0])
    return _problem(503, "The database is not available.", headers={"Retry-After": "5"})


def _problem_media_type(spec: dict[str, Any]) -> dict[str, Any]:
    for path in spec["paths"].values():
        for operation in path.values():
            for status, response in operation.get("responses", {}).items():
                content = response.get("content", {})
                if int(status) >= 400 and "application/json" in content:
                    content[MEDIA_TYPE] = content.pop("application/json")
    return spec
