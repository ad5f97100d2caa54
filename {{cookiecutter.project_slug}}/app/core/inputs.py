"""Requests are taken at their word: whatever the OpenAPI document does not allow is refused.

pydantic judges each value of a body. Here is what it never sees: how a value was spelled, what
nobody declared, and what is not JSON.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from typing import IO, Any

from apiflask import APIFlask, abort
from apiflask.openapi_adapters import openapi_helper
from flask import Request, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import BadRequest, NotFound, UnsupportedMediaType
from werkzeug.routing import IntegerConverter, Map

from app.core.api import LARGEST
from app.core.examples import JSON
from app.core.openapi import documented_view

# How a query spells the values of a type; Python's int() and pydantic accept more, such as 1_0.
WHOLE = "-?(0|[1-9][0-9]*)"
SPELLING = {
    "integer": (re.compile(WHOLE), "It should be a whole number, such as 20."),
    "number": (
        re.compile(rf"{WHOLE}(\.[0-9]+)?([eE][+-]?[0-9]+)?"),
        "It should be a number, such as 1.5.",
    ),
    "boolean": (re.compile(r"true|false"), "It should be true or false."),
}
NOT_STORABLE = "It has a character that cannot be stored: NUL, or half of a surrogate pair."

Faults = dict[str, list[str]]


def init_app(app: APIFlask) -> None:
    """Judge every request of the API before its view sees it."""
    app.request_class = JSONRequest
    app.json = StrictJSON(app)
    app.url_map.converters["int"] = PlainInteger
    app.before_request(_refuse_what_is_undocumented)


class PlainInteger(IntegerConverter):
    """`<int:…>` in a URL: ASCII digits without leading zeros, at most as many as an id can have."""

    regex = "(?:0|[1-9][0-9]{0,18})"

    def __init__(self, map: Map, fixed_digits: int = 0, **options: Any) -> None:
        if fixed_digits:
            self.regex = "[0-9]+"
        super().__init__(map, fixed_digits, **options)

    def to_python(self, value: str) -> int:
        """The number, if a `bigint` can hold it."""
        number: int = super().to_python(value)
        if abs(number) > LARGEST:
            # Not werkzeug's ValidationError, which becomes 405 if the URL has other methods.
            raise NotFound
        return number


class JSONRequest(Request):
    """A request that says why its body is not JSON."""

    def _get_file_stream(self, *_: Any, **__: Any) -> IO[bytes]:
        """Keep uploads in memory, where their body is already: the root can be read-only."""
        return BytesIO()

    def on_json_loading_failed(self, e: ValueError | None) -> Any:
        """Answer 415 without an error, which means another media type; else 400 with the reason."""
        if e is None:
            raise UnsupportedMediaType(f"Send the body as JSON, with Content-Type: {JSON}.")
        raise BadRequest(f"The body is not valid JSON: {e}.")


class StrictJSON(DefaultJSONProvider):
    """Reads what the standard calls JSON; Python's own reader takes NaN and doubled fields."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        """Read `s`; a ValueError says what is wrong with it."""
        rules: dict[str, Any] = {
            "parse_constant": _refuse_constant,
            "parse_float": _number,
            "object_pairs_hook": _object,
        }
        # As bytes, UTF-16 and halves of surrogate pairs would pass.
        text = s.decode() if isinstance(s, bytes) else s
        return super().loads(text, **rules | kwargs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _number(text: str) -> float | int:
    number = float(text)
    if abs(number) == float("inf"):
        raise ValueError("a number is too large")
    # In JSON, 75.0 is an integer.
    return int(number) if number.is_integer() and abs(number) <= LARGEST else number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {json.dumps(twice)} is there twice")
    return found


def _refuse_what_is_undocumented() -> None:
    view = documented_view()
    if view is None or request.method == "OPTIONS":
        return
    if request.query_string and (faults := _faults_of_query(view)):
        abort(422, "Validation error", detail={"query": faults})
    if view.get("content_type") == JSON and (faults := _faults_of_body(view["body"])):
        abort(422, "Validation error", detail={"json": faults})


def _faults_of_query(view: dict[str, Any]) -> Faults:
    known = _parameters(tuple(view.get("args", ())))
    faults: Faults = {}
    for name, values in request.args.lists():
        if name not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            faults[name] = [f"This URL has no such parameter. {takes}"]
        elif len(values) > 1 and known[name].get("type") != "array":
            faults[name] = ["It is there twice. Give it once."]
        elif fault := _fault_of_text(values, known[name]):
            faults[name] = [fault]
    return faults


@cache
def _parameters(args: tuple[tuple[Any, str], ...]) -> dict[str, dict[str, Any]]:
    """The schema of each query parameter of a view."""
    found: list[dict[str, Any]] = []
    for schema, location in args:
        if location in ("query", "querystring"):
            found += openapi_helper.schema_to_parameters(schema, location)
    return {parameter["name"]: parameter["schema"] for parameter in found}


def _fault_of_text(values: list[str], schema: dict[str, Any]) -> str | None:
    if not all(map(_is_storable, values)):
        return NOT_STORABLE
    types = {each.get("type") for each in schema.get("anyOf", [schema])} - {"null"}
    pattern, fault = SPELLING.get(types.pop() if len(types) == 1 else "", (None, None))
    return fault if pattern and not all(map(pattern.fullmatch, values)) else None


def _faults_of_body(schema: Any) -> Faults:
    body = request.get_data()
    if not body:
        raise BadRequest(f"The body is missing. Send a JSON object, with Content-Type: {JSON}.")
    if request.mimetype != JSON:
        request.on_json_loading_failed(None)
    value = request.get_json()
    # APIFlask would take null for an empty object.
    is_object = not getattr(schema, "__pydantic_root_model__", True)
    if value is None or (is_object and not isinstance(value, dict)):
        return {"_schema": ["The body is not a JSON object. Send one."]}
    # Only an escape can hold a character that is not text.
    if b"\\u" not in body:
        return {}
    return {path or "_schema": [NOT_STORABLE] for path in _not_storable(value, "")}


def _not_storable(value: Any, path: str) -> Iterator[str]:
    """Where the texts are that PostgreSQL cannot store."""
    if isinstance(value, str) and not _is_storable(value):
        yield path
    elif isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            below = f"{path}.{name}".removeprefix(".")
            if isinstance(name, str) and not _is_storable(name):
                yield below
            yield from _not_storable(each, below)


def _is_storable(text: str) -> bool:
    return "\0" not in text and not re.search("[\ud800-\udfff]", text)
