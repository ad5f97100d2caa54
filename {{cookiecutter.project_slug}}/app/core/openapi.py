"""The OpenAPI document: /openapi.json, which APIFlask makes from the routes, completed.

Nothing here knows a noun: the routes of a new blueprint are completed like all others.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

from apiflask import APIFlask
from flask import current_app, request

from app.core import examples
from app.core.errors import MEDIA_TYPE
from app.core.examples import JSON, SCHEMAS, Spec

# Its two schemas of errors, for which we have one.
APIFLASKS = ("HTTPError", "ValidationError")
CHANGES = ("post", "put", "patch", "delete")

# What APIFlask does not know: which answers an operation can give.
ANSWERS = {
    "304": "It still has the ETag that the client sent in If-None-Match.",
    "400": "The request cannot be read.",
    "403": "The client may not do this.",
    "409": "Something in the database stands in the way: it is taken, missing or still needed.",
    "412": "It has none of the ETags that the client sent in If-Match.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "422": "Something is not as this document says; `errors` tells where.",
    "500": "The service made a mistake.",
    "503": "The service cannot answer now.",
}
IF_MATCH = (
    "To change only what you have seen, send its ETag in the header If-Match: "
    "if somebody was faster, the answer is 412."
)
HEADERS: Spec = {
    "ETag": {
        "description": "Which version of the resource this is.",
        "schema": {"type": "string", "examples": ['"0a4d55a8d778e5022fab701977c5d840bbc486d0"']},
    },
    "Location": {
        "description": "The URL of what was created.",
        "schema": {"type": "string", "format": "uri-reference", "examples": ["/api/nouns/1"]},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "string", "examples": ["5"]},
    },
}
HEADERS_OF = {"201": ["Location"], "503": ["Retry-After"]}
# The answers that show a resource as it now is, and therefore have its ETag.
TAGGED = {
    ("GET", "200"),
    ("GET", "304"),
    ("HEAD", "200"),
    ("POST", "201"),
    ("PUT", "200"),
    ("PATCH", "200"),
}


def init_app(app: APIFlask) -> None:
    """Complete the document when somebody asks for it."""
    app.config["AUTO_OPERATION_ID"] = True
    # APIFlask would keep the host that the first client named.
    app.config["SERVERS"] = [{"url": "/"}]
    app.spec_processor(partial(_complete, app, app.spec_callback))


def documented_view() -> Spec | None:
    """What APIFlask knows of the requested view; None if the document does not have it."""
    if (rule := request.url_rule) is None or rule.endpoint.endswith(".static"):
        return None
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    return _known(app, rule.endpoint, request.method)


@lru_cache(1000)
def _known(app: APIFlask, endpoint: str, method: str) -> Spec | None:
    blueprint = app.blueprints.get(endpoint.rpartition(".")[0])
    if not getattr(blueprint, "enable_openapi", False):
        return None
    view = app.view_functions[endpoint]
    of_methods = getattr(view, "_method_spec", {})
    of_view = getattr(view, "_spec", {})
    known: Spec = of_methods.get("GET" if method == "HEAD" else method) or of_view
    return None if known.get("hide") else known


def _complete(app: APIFlask, add_problem: Any, spec: Spec) -> Spec:
    spec = _with_each_schema_once(add_problem(spec))
    spec["components"]["headers"] = HEADERS
    schemas = spec["components"]["schemas"]
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            _forget_omitted(field)
    for method, operation in _operations(spec):
        _complete_parameters(operation)
        _complete_answers(method, operation)
        examples.add_to(operation, schemas)
    _name_operations(app, spec)
    _describe_tags(app, spec)
    return spec


def _operations(spec: Spec) -> Iterator[tuple[str, Spec]]:
    for path in spec["paths"].values():
        yield from path.items()


def _with_each_schema_once(spec: Spec) -> Spec:
    """APIFlask writes the schema of a field again for each parent: `BookIn.Genre` is `Genre`."""
    schemas = spec["components"]["schemas"]
    for name in APIFLASKS:
        schemas.pop(name, None)
    parent = re.escape(SCHEMAS) + r"[\w-]+\."
    forms: dict[str, set[str]] = {}
    for name, schema in schemas.items():
        text = re.sub(parent, SCHEMAS, json.dumps(schema, sort_keys=True))
        forms.setdefault(name.rpartition(".")[2], set()).add(text)
    # Two models of one name that differ keep their parents.
    once = [name for name, found in forms.items() if len(found) == 1]
    for name in list(schemas):
        if (short := name.rpartition(".")[2]) in once:
            schemas[short] = schemas.pop(name)
    names = "|".join(map(re.escape, once))
    completed: Spec = json.loads(
        re.sub(rf'{parent}({names})(?=")', rf"{SCHEMAS}\1", json.dumps(spec))
    )
    return completed


def _forget_omitted(field: Spec) -> None:
    """A field with this "default" may be left out, but for most null is not a valid value."""
    if field.get("default", ...) is None:
        del field["default"]


def _complete_parameters(operation: Spec) -> None:
    for parameter in operation.get("parameters", []):
        schema = parameter["schema"]
        if parameter["in"] == "path" and schema == {"type": "integer"}:
            parameter["schema"] = schema | {"minimum": 0, "maximum": 2**63 - 1, "examples": [1]}
        _forget_omitted(schema)
        if "description" in schema:
            parameter["description"] = schema.pop("description")


def _complete_answers(method: str, operation: Spec) -> None:
    answers = operation["responses"]
    if JSON in operation.get("requestBody", {}).get("content", {}):
        operation["requestBody"]["required"] = True
    for status in _statuses(method, operation):
        answers.setdefault(status, {"description": ANSWERS[status]})
    if "412" in answers:
        operation["description"] = f"{operation.get('description', '')}\n\n{IF_MATCH}".strip()
    for status, answer in answers.items():
        if status[0] in "45" and ("content" not in answer or _is_of_apiflask(answer["content"])):
            answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": f"{SCHEMAS}Problem"}}}
        tag = ["ETag"] if (method.upper(), status) in TAGGED else []
        for name in tag + HEADERS_OF.get(status, []):
            header = {"$ref": f"#/components/headers/{name}"}
            answer.setdefault("headers", {}).setdefault(name, header)
    operation["responses"] = dict(sorted(answers.items()))


def _is_of_apiflask(content: Spec) -> bool:
    known = [{"$ref": SCHEMAS + name} for name in APIFLASKS]
    return content.get(JSON, {}).get("schema") in known


def _statuses(method: str, operation: Spec) -> list[str]:
    found = ["400", "422", "500", "503"]
    found += ["304"] if method == "get" else []
    found += ["409"] if method in CHANGES else []
    found += ["413", "415"] if "requestBody" in operation else []
    found += ["403"] if operation.get("security") else []
    return found


def _name_operations(app: APIFlask, spec: Spec) -> None:
    """Call each operation like its function, `get_book`, unless two would have the same name."""
    functions = {
        f"{method}_{rule.endpoint.replace('.', '_')}": rule.endpoint.rpartition(".")[2]
        for rule in app.url_map.iter_rules()
        for method in map(str.lower, rule.methods or ())
    }
    operations = [operation for _, operation in _operations(spec)]
    ids: list[str] = [each["operationId"] for each in operations]
    names = [functions.get(each, each) for each in ids]
    count = Counter(names)
    taken: Counter[str] = Counter()
    for operation, long, name in zip(operations, ids, names, strict=True):
        unique = name if count[name] == 1 else long
        taken[unique] += 1
        # A function may have several URLs.
        operation["operationId"] = unique if taken[unique] == 1 else f"{unique}_{taken[unique]}"


def _describe_tags(app: APIFlask, spec: Spec) -> None:
    """Say of each blueprint's tag what the docstring of its module says."""
    for name, blueprint in app.blueprints.items():
        words = sys.modules[blueprint.import_name].__doc__
        for tag in spec.get("tags", []):
            if words and tag["name"] == (getattr(blueprint, "tag", None) or name.title()):
                tag.setdefault("description", words.strip())
