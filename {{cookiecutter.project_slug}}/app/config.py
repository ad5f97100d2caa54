"""Environment → one typed `Settings`; everything missing or wrong is reported at once.

Sources, of which the first wins: environment variables, `.env` (this machine; in production only
if the file itself says APP_ENV=production), `.flaskenv` (this project, tracked), and in a container
the files /run/secrets/NAME.
"""

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from structlog.processors import TimeStamper

ROOT = Path(__file__).resolve().parent.parent

# Name, version, description and title are defined in one place: pyproject.toml.
_PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT: dict[str, Any] = _PYPROJECT["project"] | _PYPROJECT["tool"]["service"]

# Where Docker and others put secrets: one file for each setting, with its name in lower case.
SECRETS = Path("/run/secrets")

DEVELOPMENT_SECRET_KEY = "development-only"

POSTGRESQL_SCHEMES = {"postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"}
URL_FORM = "postgresql://user:password@host:5432/database"
# Several hosts (h1:5432,h2:5433), or the folder of a socket (%2Frun%2Fpostgresql).
HOSTS_OF_LIBPQ = re.compile(r"://([^/@]*@)?[^/?@]*[,%][^/?@]*([/?]|$)")
# After ?host=
IPV6 = re.compile(r"\[?([0-9a-fA-F.]*:[0-9a-fA-F.]*:[0-9a-fA-F:.%]*)(?:\](?::(\d*))?)?")
HOST_AND_PORT = re.compile(r"([^:,\[\]]+)(?::(\d*))?")
SENTRY_DSN = re.compile(r"https?://\w+(:\w+)?@[^/\s]+/(\S+/)?\d+")
SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class InvalidSettings(SystemExit):
    """Ends the process with a message, not a traceback, wherever settings are read."""

    def __init__(self, message: str) -> None:
        """In production, unless a person is watching, the last words are a line of the log."""
        super().__init__(message)
        if os.environ.get("APP_ENV") == "production" and not sys.stderr.isatty():
            words = {"event": message, "logger": "settings", "level": "error"}
            self.code = json.dumps(TimeStamper(fmt="iso", utc=True)(None, "", words))


def _database_url(value: object) -> URL | None:
    if value is None or isinstance(value, URL):
        return value
    unreadable = (
        f"cannot be read as a URL. It must look like {URL_FORM}, "
        "with special characters in the password percent-encoded (@ is %40, / is %2F)."
    )
    try:
        url = _parsed(str(value).strip())
        if url.drivername in POSTGRESQL_SCHEMES:
            url = url.set(drivername="postgresql+psycopg")
            url.get_dialect()().create_connect_args(url)  # checks hosts and ports
    except (ArgumentError, ValueError, psycopg.ProgrammingError) as error:
        raise ValueError(unreadable) from error
    if "@" in f"{url.host}{url.database}":  # it belongs to the password
        raise ValueError(unreadable)
    if url.drivername != "postgresql+psycopg":
        raise ValueError(f"starts with {url.drivername}://. It must be for PostgreSQL: {URL_FORM}.")
    return url


def _parsed(text: str) -> URL:
    if not HOSTS_OF_LIBPQ.search(text):
        return _with_lists_of_hosts(make_url(text))
    # SQLAlchemy accepts such hosts only as parameters after the ?, so let libpq read the URL.
    parts: dict[str, Any] = conninfo_to_dict(re.sub(r"^postgres\w*\+\w+", "postgresql", text))
    user, password, database = (parts.pop(name, None) for name in ("user", "password", "dbname"))
    return URL.create("postgresql", user, password, database=database, query=parts)


def _with_lists_of_hosts(url: URL) -> URL:
    """`?host=a,b&port=1,2` for `?host=a:1&host=b:2`, whose IPv6 addresses SQLAlchemy splits."""
    given = url.query.get("host", ())
    if isinstance(given, str):
        if "port" in url.query:
            return url.update_query_dict({"host": re.sub(r"[\[\]]", "", given)})
        given = (given,)
    found = [IPV6.fullmatch(each) or HOST_AND_PORT.fullmatch(each) for each in given]
    if "port" in url.query or not any(":" in each for each in given) or not all(found):
        return url
    hosts, ports = zip(*(each.groups(default="") for each in found if each), strict=True)
    return url.update_query_dict({"host": ",".join(hosts), "port": ",".join(ports)})


def _needed_in_production(value: URL | None, info: ValidationInfo) -> URL | None:
    if value is None and info.data.get("app_env") == "production":
        raise ValueError(f"is not set. Production needs it: {URL_FORM}. See docs/deploying.md.")
    return value


def _secret_in_production(value: str, info: ValidationInfo) -> str:
    if info.data.get("app_env") != "production":
        return value
    if value in ("", DEVELOPMENT_SECRET_KEY):
        fault = "is not set, or still has the value of .env.example."
    elif len(value) < 16 or len(set(value)) < 8:
        fault = "can be guessed: it has less than 16 characters, or mostly the same ones."
    else:
        return value
    raise ValueError(
        f"{fault} Production needs a random value:"
        "\n    python -c 'import secrets; print(secrets.token_hex(32))'"
    )


def _no_debugger_in_production(value: object, info: ValidationInfo) -> object:
    # Flask takes every other word for yes.
    is_on = str(value).strip().lower() not in ("", "0", "false", "no")
    if is_on and info.data.get("app_env") == "production":
        raise ValueError(
            "is on. In production it would let every visitor run code. Unset it, and do not "
            "write --debug after flask."
        )
    return value


def _list(value: object) -> object:
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


def _host_name(value: str) -> str:
    if not re.fullmatch(r"\.?[\w-]+(\.[\w-]+)*|\[[0-9a-f:.]+\]", value := value.lower()):
        raise ValueError(
            f"has {value!r}. It lists names without scheme, port or path, like "
            "example.com,.example.org: the one with a dot in front includes all names below it."
        )
    return value


def _origin(value: str) -> str:
    if not re.fullmatch(r"\*|https?://[^/\s*]+", value):
        raise ValueError(
            f"has {value!r}. It lists origins as a browser sends them, like "
            "https://app.example.com,http://localhost:3000; * alone stands for all."
        )
    return value


def _without_brackets(host: str) -> str:
    """`::` for `[::]`, which is how a URL writes that IPv6 address."""
    return host.removeprefix("[").removesuffix("]")


def _schema_name(value: str) -> str:
    if not SCHEMA_NAME.fullmatch(value) or value.startswith("pg_"):
        raise ValueError(
            f"is {value!r}. A schema name has at most 63 lower-case letters, digits and _, and "
            "starts with a letter or _, but not with pg_."
        )
    if value == "information_schema":
        raise ValueError(f"is {value!r}, which belongs to PostgreSQL. Choose another name.")
    return value


def _role_name(value: str) -> str:
    if value in ("public", "none") or value.startswith("pg_") or not value.isprintable():
        raise ValueError(f"is {value!r}, which cannot be the name of a role of your own.")
    if len(value.encode()) > 63:
        raise ValueError(f"is {value!r}. The name of a role has at most 63 bytes.")
    return value


def _another_port(value: int | None, info: ValidationInfo) -> int | None:
    if value is not None and value == info.data.get("port"):
        raise ValueError(f"is {value}, like PORT. Metrics need a port of their own.")
    return value


def _sentry_dsn(value: str | None) -> str | None:
    if value is not None and not SENTRY_DSN.fullmatch(value):
        raise ValueError("is not a DSN. Copy it from Sentry: https://key@host/project.")
    return _with_its_packages(value, "sentry", "sentry_sdk")


def _otlp_endpoint(value: str | None) -> str | None:
    if value is not None and not value.startswith(("http://", "https://")):
        raise ValueError(f"is {value!r}. It must be a URL: http://collector:4318.")
    packages = "exporter.otlp.proto.http", "instrumentation.flask", "instrumentation.psycopg"
    return _with_its_packages(value, "otel", *(f"opentelemetry.{name}" for name in packages))


def _backup_dir(value: str) -> str:
    if not value.startswith("s3://"):
        return value
    if not re.fullmatch(r"s3://[\w.-]+(/.*)?", value):
        raise ValueError(f"is {value!r}. It must be a folder, or s3://bucket/prefix.")
    return str(_with_its_packages(value, "s3", "boto3"))


def _with_its_packages(value: str | None, group: str, *modules: str) -> str | None:
    """Refuse to start without packages that the setting needs and that few services install."""
    if value is not None and not all(map(_is_installed, modules)):
        raise ValueError(
            f"is set, but its packages are not installed. Run: uv sync --group {group}. In an "
            f"image: docker build --build-arg DEPENDENCY_GROUPS={group}. See docs/operating.md."
        )
    return value


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent is there
        return False


HostName = Annotated[str, AfterValidator(_host_name)]
Origin = Annotated[str, AfterValidator(_origin)]
DatabaseUrl = Annotated[URL | None, NoDecode, BeforeValidator(_database_url)]


class Settings(BaseSettings):
    """The service's settings. `.env.example` lists them all and explains each."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        str_strip_whitespace=True,
        extra="ignore",
        arbitrary_types_allowed=True,
        populate_by_name=True,
        validate_default=True,
    )

    # First, because the rules for the settings below depend on it.
    app_env: Literal["development", "test", "production"] = "development"

    database_url: Annotated[DatabaseUrl, AfterValidator(_needed_in_production)] = Field(
        None, repr=False
    )
    database_url_migrations: DatabaseUrl = Field(None, repr=False)
    database_pooled: bool = False
    database_pool_size: int = Field(8, ge=1)
    database_pool_overflow: int = Field(7, ge=0)
    database_pool_recycle: int = Field(1800, ge=-1)
    database_pool_timeout: float = Field(2, gt=0, allow_inf_nan=False)
    database_statement_timeout_ms: int = Field(12_000, ge=0)
    database_lock_timeout_ms: int = Field(11_000, ge=0)
    database_idle_timeout_ms: int = Field(30_000, ge=0)
    database_wait_seconds: float = Field(60, ge=0, allow_inf_nan=False)
    schema_name: Annotated[str, AfterValidator(_schema_name)] = Field(
        "public", validation_alias="SCHEMA"
    )

    # The role in DATABASE_URL, if migrations run as another one: `flask db upgrade` grants it what
    # it needs.
    service_role: Annotated[str, AfterValidator(_role_name)] | None = None

    secret_key: Annotated[str, AfterValidator(_secret_in_production)] = Field(
        DEVELOPMENT_SECRET_KEY, repr=False
    )
    flask_debug: Annotated[bool, BeforeValidator(_no_debugger_in_production)] = False
    # If unset: everywhere except in production.
    show_pages: bool | None = None
    trusted_hosts: Annotated[list[HostName], NoDecode, BeforeValidator(_list)] = []
    cors_origins: Annotated[list[Origin], NoDecode, BeforeValidator(_list)] = []
    proxy_hops: int = Field(0, ge=0)

    host: Annotated[str, AfterValidator(_without_brackets)] = "127.0.0.1"
    port: int = Field(5000, ge=1, le=65535)
    web_concurrency: int = Field(2, ge=1)
    web_threads: int = Field(24, ge=1)
    # If unset: 5 in production, 0 elsewhere.
    drain_seconds: float | None = Field(None, ge=0, le=3600)
    # A worker holds at most 64 MiB that clients are sending.
    max_content_length: int = Field(1024 * 1024, ge=0, le=32 * 1024 * 1024)
    client_seconds: float = Field(20, gt=0, allow_inf_nan=False)
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)
    ] = "INFO"

    metrics_port: Annotated[int | None, AfterValidator(_another_port)] = Field(None, ge=1, le=65535)
    sentry_dsn: Annotated[str | None, AfterValidator(_sentry_dsn)] = Field(None, repr=False)
    otel_exporter_otlp_endpoint: Annotated[str | None, AfterValidator(_otlp_endpoint)] = None

    run_migrations: bool = True
    # If unset: yes in development, no elsewhere.
    run_seeds: bool | None = None
    migration_lock_timeout_ms: int = Field(500, ge=1)
    # A revision: it and those before it are older than `flask db lint` in this project.
    migration_lint_start_after: str | None = None
    migration_lock_wait_seconds: float = Field(300, ge=0, allow_inf_nan=False)

    # A folder, in the project unless it begins with /, or s3://bucket/prefix.
    backup_dir: Annotated[str, AfterValidator(_backup_dir)] = "backups"
    backup_keep: int = Field(7, ge=1)
    backup_keep_days: int = Field(14, ge=0)
    backup_before_migrate: bool = False
    rehearsal_database_url: DatabaseUrl = Field(None, repr=False)

    @property
    def production(self) -> bool:
        """True if APP_ENV is production."""
        return self.app_env == "production"

    @property
    def shows_pages(self) -> bool:
        """Whether people see `/`, `/docs` and `/openapi.json`."""
        return not self.production if self.show_pages is None else self.show_pages

    @property
    def request_seconds(self) -> int:
        """How long a request with one slow statement may wait for the database; 14 if no limit."""
        statement = (self.database_statement_timeout_ms or 12_000) / 1000
        return round(self.database_pool_timeout + statement)

    @property
    def connections_of_a_worker(self) -> int:
        """How many connections a worker may open for requests; it has one more for /readyz."""
        return self.database_pool_size + self.database_pool_overflow

    @property
    def address(self) -> str:
        """Host and port as in a URL, with an IPv6 address in brackets."""
        return self.address_of(self.port)

    def address_of(self, port: int) -> str:
        """The host with another port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{port}"


SETTING_NAMES = {
    str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()
}


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `overrides` by field name (`app_env="test"`) beat every source.

    Raises `InvalidSettings`, which lists all faults at once and never shows a secret.
    """
    files = [ROOT / ".flaskenv", ROOT / ".env"]
    if os.environ.get("APP_ENV") == "production" and _forget_development(files[1]):
        files.pop()
    faults = [fault for file in files for fault in _misspelt(file)]
    if unreadable := list(_unreadable_secrets()):
        raise InvalidSettings("\n  ".join(["These settings are wrong:", *faults, *unreadable]))
    try:
        folder = SECRETS if SECRETS.is_dir() else None
        settings = Settings(_env_file=files, _secrets_dir=folder, **overrides)
    except ValidationError as error:
        faults += [_fault(item) for item in error.errors()]
    if faults:
        raise InvalidSettings("\n  ".join(["These settings are wrong:", *faults]))
    return settings


def _forget_development(env_file: Path) -> bool:
    """Undo what Flask's command line took from `.env`, unless that is for production itself.

    True if the file is not to be read.
    """
    values = dotenv_values(env_file)
    if values.get("APP_ENV") == "production":
        return False
    # `flask` copies .env into the environment before any code of ours runs. Only FLASK_SKIP_DOTENV
    # stops it, which init.sh sets and nobody types. A value that production itself set must stay,
    # even if .env has the same: Linux knows what the process was started with.
    given = Path("/proc/self/environ")
    names = set(re.findall(r"(?:^|\0)(\w+)=", given.read_text() if given.exists() else ""))
    for name, value in values.items():
        if name not in names and os.environ.get(name) == value:
            del os.environ[name]
    return True


def _misspelt(env_file: Path) -> Iterator[str]:
    for name in dotenv_values(env_file).keys() - SETTING_NAMES:
        for meant in get_close_matches(name, SETTING_NAMES, n=1, cutoff=0.9):
            yield f"{name} in {env_file.name} is not a setting. Did you mean {meant}?"


def _unreadable_secrets() -> Iterator[str]:
    files = [SECRETS / name.lower() for name in sorted(SETTING_NAMES)]
    for file in files:
        if file.exists() and not os.access(file, os.R_OK):
            yield (
                f"{file.name.upper()} is in {file}, which user {os.getuid()} may not read. "
                f"On the machine: chmod 644 secrets/{file.name}. See docs/deploying.md."
            )


def _fault(error: Any) -> str:
    name = str(error["loc"][0]).upper()
    if error["type"] == "value_error":
        return f"{name} {error['ctx']['error']}"
    reason = error["msg"].replace("Input should be", "It should be")
    return f"{name} is {error['input']!r}. {reason}."
