"""ETags, so that clients need not read again what they have, nor overwrite what others wrote.

The ETag of an answer is a hash of what the client sees, so every resource has one.
"""

from typing import Any

from apiflask import APIFlask, abort
from flask import Response, jsonify, request
from pydantic import BaseModel
from werkzeug.http import generate_etag

from app.core.openapi import documented_view

# The answers that show a resource as it now is.
TAGGED = {("GET", 200), ("HEAD", 200), ("POST", 201), ("PATCH", 200), ("PUT", 200)}

CHANGED = "This has changed since you read it. Read it again, and send If-Match with its new ETag."


def init_app(app: APIFlask) -> None:
    """Give every resource that the API answers with its ETag."""
    app.after_request(_tag)


def refuse_if_changed(row: Any, schema: type[BaseModel]) -> None:
    """Answer 412 if the client wants to change another version of `row`: see its If-Match.

    `schema` is what GET answers. Read the row `with_for_update=True`: then nobody else can change
    it between this check and the commit. Say `doc(responses=[412])` in the route.
    """
    if "If-Match" not in request.headers:
        return
    shown = jsonify(schema.model_validate(row).model_dump(mode="json", by_alias=True))
    if not request.if_match.contains(generate_etag(shown.get_data())):
        abort(412, CHANGED)


def _tag(response: Response) -> Response:
    if (request.method, response.status_code) not in TAGGED or not response.is_json:
        return response
    if documented_view() is None:
        return response
    response.add_etag()
    tag, _ = response.get_etag()
    if request.method in ("GET", "HEAD") and request.if_none_match.contains_weak(tag or ""):
        response.status_code = 304
        response.set_data(b"")
    return response
