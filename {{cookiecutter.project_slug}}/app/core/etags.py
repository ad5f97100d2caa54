"""ETags, so that clients need not read again what they have, nor overwrite what others wrote.

The ETag of an answer is a hash of what the client sees, so every resource has one.
"""

from typing import Any

from apiflask import APIFlask, abort
from flask import Response, jsonify, request
from pydantic import BaseModel
from werkzeug.http import generate_etag

from app.core.openapi import TAGGED, documented_view

CHANGED = "This has changed since you read it. Read it again, and send If-Match with its new ETag."


def init_app(app: APIFlask) -> None:
    """Give every resource that the API answers with its ETag."""
    app.after_request(_tag)


def refuse_if_changed(row: Any, schema: type[BaseModel]) -> None:
    """Answer 412 if the client wants to change another version of `row`: see its If-Match.

    `schema` is what GET answers. Read the row `LOCKED`, so that nobody changes it between this
    check and the commit, and tell readers of the document: `doc(responses=[412])`.
    """
    if "If-Match" not in request.headers:
        return
    shown = jsonify(schema.model_validate(row).model_dump(mode="json", by_alias=True))
    if not request.if_match.contains(generate_etag(shown.get_data())):
        abort(412, CHANGED)


def _tag(response: Response) -> Response:
    is_whole = not (response.is_streamed or response.direct_passthrough)
    is_tagged = is_whole and response.is_json and (request.method, response.status[:3]) in TAGGED
    if is_tagged and documented_view() is not None:
        response.add_etag()
        if "If-None-Match" in request.headers and _is_known_to_client(response):
            response.status_code = 304
            response.set_data(b"")
    return response


def _is_known_to_client(response: Response) -> bool:
    tag, _ = response.get_etag()
    return request.method in ("GET", "HEAD") and request.if_none_match.contains_weak(tag or "")
