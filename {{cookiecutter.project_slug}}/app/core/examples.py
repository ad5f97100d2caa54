"""Examples for the OpenAPI document, made of those of the fields: `Field(examples=["Beloved"])`."""

from typing import Any

# A part of the document.
Spec = dict[str, Any]

JSON = "application/json"
SCHEMAS = "#/components/schemas/"
# Of a value that has no rules.
EXAMPLES = {
    "string": "text",
    "boolean": True,
    "integer": 1,
    "number": 1.5,
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def add_to(operation: Spec, schemas: Spec) -> None:
    """Give the bodies of an operation an example each, unless they have one."""
    for part in (operation.get("requestBody", {}), *operation["responses"].values()):
        for media_type, content in part.get("content", {}).items():
            if media_type == JSON and not content.keys() & {"example", "examples"}:
                example = _example(content["schema"], schemas)
                content.update({} if example is None else {"example": example})


def _example(schema: Spec, schemas: Spec, seen: tuple[str, ...] = ()) -> Any:
    """A value made of the examples of its fields; None if a field that must be there has none."""
    if name := schema.get("$ref", "").removeprefix(SCHEMAS):
        return None if name in seen else _example(schemas[name], schemas, (*seen, name))
    if known := schema.get("examples") or schema.get("enum"):
        return known[0]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], schemas, seen)
    if "items" in schema and "minItems" not in schema:
        item = _example(schema["items"], schemas, seen)
        return None if item is None else [item]
    if "properties" not in schema:
        is_free = schema.keys() <= {"type", "format", "title", "description"}
        kind = str(schema.get("format") or schema.get("type"))
        return schema.get("default", EXAMPLES.get(kind) if is_free else None)
    fields = {name: _example(each, schemas, seen) for name, each in schema["properties"].items()}
    found = {name: example for name, example in fields.items() if example is not None}
    return found if found.keys() >= set(schema.get("required", [])) else None
