"""Which database, and how to connect: URL, schema, pool, waiting."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psycopg
import structlog
from flask import Flask, current_app
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from app.config import PROJECT, InvalidSettings, Settings
from app.core import embedded, extensions, pool, refusals, session
from app.core.pool import ServiceConnection
from app.core.pooled import PooledConnection
from app.core.refusals import quote as quote
from app.core.waiting import at_most_every, tries
from app.models import db

CONNECT_TIMEOUT_SECONDS = 5
# How the kernel notices that nobody is at the other end any more: what was sent stays
# unacknowledged for so long, or an idle connection does not answer.
NETWORK = {
    "tcp_user_timeout": 5000,
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
# What /readyz may take: the probe of a balancer waits a few seconds at most.
PROBE_SECONDS = 2
REPORT_EVERY_SECONDS = 3
# How long a name that no name server knows may take to appear, as that of a container that starts.
NAME_SECONDS = 5

# Settings of a connection for work that may take hours, and that ends when its process does.
LONG_WORK = [
    "statement_timeout=0",
    "idle_in_transaction_session_timeout=0",
    "client_connection_check_interval=1s",
]

# Back to what the connection began with; locks of the session stay.
RESET_SESSION = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL"

log = structlog.get_logger("database")

AnyConnection = TypeVar("AnyConnection", bound=psycopg.Connection[Any])


class DatabaseUnavailable(SystemExit):
    """No login within the time allowed; the message says where and why."""


def init_app(app: Flask, settings: Settings) -> None:
    """Attach `db` to the service: pooled connections whose search_path is SCHEMA."""
    url = database_url(settings)
    limits = _limits(settings)
    options = _engine_options(settings, url, limits)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    db.init_app(app)
    with app.app_context():
        engine = db.engine
    # After db.init_app: of what ends a request, Flask begins with what was registered last.
    reading = session.init_app(app, db.session, engine)
    # Everything in a test happens in one transaction, on one connection.
    alone = settings.app_env == "test"
    probe = engine if alone else create_engine(url, **options | _only_for_probes(options))
    app.extensions["probe"] = probe
    seconds = limits.get("statement_timeout", 0) / 1000
    limit = seconds + pool.SERVER_IS_LATE_SECONDS if seconds else None
    for each in {engine, probe}:
        _start_embedded_on_first_use(each, settings)
        patience = limit if each is engine else PROBE_SECONDS
        pool.init_engine(each, _connector(settings, limits, patience))
    if not (alone or settings.database_pooled):
        pool.read_in_autocommit(engine, reading)


def probe() -> Engine:
    """An engine with one connection, for /readyz: a pool that is exhausted does not concern it."""
    engine: Engine = current_app.extensions["probe"]
    return engine


def _only_for_probes(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "pool_size": 1,
        "max_overflow": 0,
        "pool_timeout": PROBE_SECONDS,
        "connect_args": options["connect_args"] | {"connect_timeout": PROBE_SECONDS},
    }


def _limits(settings: Settings) -> dict[str, int]:
    """Milliseconds for each of the server's timeouts; a command or a script may take its time."""
    if not os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
        return {}
    return {
        "statement_timeout": settings.database_statement_timeout_ms,
        "lock_timeout": settings.database_lock_timeout_ms,
        "idle_in_transaction_session_timeout": settings.database_idle_timeout_ms,
    }


def database_url(settings: Settings) -> URL:
    """DATABASE_URL, or the embedded PostgreSQL of development and tests."""
    return settings.database_url or embedded.url()


def direct_engine(settings: Settings, *options: str, setting: str | None = None) -> Engine:
    """An engine without pool for migrations: DATABASE_URL_MIGRATIONS, else DATABASE_URL.

    `options` are server settings of each connection, for example `lock_timeout=500`; `setting` is
    what people are told to correct, if the URL comes from somewhere else.
    """
    if settings.database_pooled and settings.database_url_migrations is None:
        raise InvalidSettings(
            "DATABASE_POOLED is true and DATABASE_URL_MIGRATIONS is not set. Migrations need the "
            "direct URL: a pooler loses their lock and their schema; see docs/deploying.md."
        )
    url = settings.database_url_migrations or database_url(settings)
    options = _search_path(settings), *options
    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args=_connect_args(url, *options),
        execution_options={"setting": setting or _setting_of_migrations(settings)},
    )
    _start_embedded_on_first_use(engine, settings)

    @event.listens_for(engine, "do_connect")
    def connect(_d: Any, _r: Any, words: Any, parameters: Any) -> psycopg.Connection[Any]:
        connection = _connect(psycopg.Connection[Any], *words, **parameters)
        return _with_its_options(connection, *options)

    return engine


def _setting_of_migrations(settings: Settings) -> str:
    return "DATABASE_URL_MIGRATIONS" if settings.database_url_migrations else "DATABASE_URL"


def connect_directly(
    settings: Settings,
    *options: str,
    wait_seconds: float | None = None,
    setting: str | None = None,
) -> Connection:
    """A connection of `direct_engine`, waited for DATABASE_WAIT_SECONDS unless said otherwise."""
    seconds = settings.database_wait_seconds if wait_seconds is None else wait_seconds
    return connect_when_ready(direct_engine(settings, *options, setting=setting), seconds)


def connect_when_ready(engine: Engine, seconds: float) -> Connection:
    """The first connection that succeeds; `DatabaseUnavailable` when there is none in time.

    What waiting cannot change, a wrong password for example, ends it at once.
    """
    setting = engine.get_execution_options().get("setting", "DATABASE_URL")
    hosts = addresses(engine.url)
    where = "/".join(filter(None, [",".join(hosts), engine.url.database]))
    report = at_most_every(REPORT_EVERY_SECONDS, log.info)
    for waited in tries(seconds, pause=0.3):
        try:
            return engine.connect()
        except DBAPIError as error:
            refusal = refusals.explain(error, setting, len(set(hosts)))
            is_over = refusal.is_final or (refusal.is_doubtful and waited >= NAME_SECONDS)
            if is_over or not isinstance(error, OperationalError):
                raise DatabaseUnavailable(
                    f"No login at {where}: {refusal.words}\n{refusal.advice}"
                ) from None
        if waited < seconds:
            report(f"waiting for the database at {where}, {waited:.0f} s: {refusal.words}")
    raise DatabaseUnavailable(
        f"No login at {where}, after {waited:.0f} s (DATABASE_WAIT_SECONDS={seconds:g}): "
        f"{refusal.words}\n{refusal.advice}"
    )


def addresses(url: URL) -> list[str]:
    """Each `host:port` that a connection tries, or the folder of a socket; never a password."""
    _, given = url.get_dialect()().create_connect_args(url)
    service = given.get("service") or os.environ.get("PGSERVICE")
    if service and not given.get("host"):
        return [f"service {service}"]

    def listed(name: str, default: str) -> list[str]:
        return str(given.get(name) or os.environ.get(f"PG{name.upper()}") or default).split(",")

    hosts = listed("hostaddr", "") if not given.get("host") else str(given["host"]).split(",")
    hosts = hosts if any(hosts) else listed("host", "socket")
    ports = listed("port", "5432")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    named = (f"[{host}]" if ":" in host else host for host in hosts)
    return [f"{host}:{port or 5432}" for host, port in zip(named, ports, strict=True)]


def _engine_options(settings: Settings, url: URL, limits: Mapping[str, int]) -> dict[str, Any]:
    # A pooler in transaction mode refuses start-up options and loses prepared statements.
    pooled = _connect_args(url) | {"prepare_threshold": None}
    return {
        # Exceptions are logged, and the values in a statement may be personal.
        "hide_parameters": settings.production,
        "pool_size": settings.database_pool_size,
        "max_overflow": settings.database_pool_overflow,
        "pool_recycle": settings.database_pool_recycle,
        "pool_timeout": settings.database_pool_timeout,
        "connect_args": pooled
        if settings.database_pooled
        else _connect_args(url, _search_path(settings), *_assignments(limits)),
    }


def _connect_args(url: URL, *options: str) -> dict[str, Any]:
    """psycopg's arguments, in which a URL's own connect_timeout, options … keep their say."""
    args: dict[str, Any] = {"application_name": PROJECT["name"], **NETWORK}
    args["connect_timeout"] = CONNECT_TIMEOUT_SECONDS
    for name in args.keys() & url.query.keys():
        del args[name]
    given = url.query.get("options") or (os.environ.get("PGOPTIONS", "") if options else "")
    own = [given] if isinstance(given, str) else given
    # What comes last counts. Always written down, because libpq would add PGOPTIONS by itself.
    args["options"] = " ".join([*own, *(f"-c {option}" for option in options)]).strip()
    return args


def _connector(
    settings: Settings, limits: Mapping[str, int], patience: float | None
) -> Callable[..., ServiceConnection]:
    """What connects for the service: to a pooler, or to the server itself."""
    path = f"search_path={extensions.search_path(quote(settings.schema_name))}"
    beginning = "".join(f"; SET LOCAL {each}" for each in (path, *_assignments(limits)))

    def connect(*words: Any, **parameters: Any) -> ServiceConnection:
        connection = _connect(ServiceConnection, *words, **parameters)
        connection.limit = patience
        return _with_its_options(connection, _search_path(settings))

    def connect_to_pooler(*words: Any, **parameters: Any) -> ServiceConnection:
        connection = _connect(PooledConnection, *words, **parameters)
        connection.limit = patience
        connection.beginning = beginning.encode()
        return connection

    return connect_to_pooler if settings.database_pooled else connect


def _connect(kind: type[AnyConnection], *words: Any, **parameters: Any) -> AnyConnection:
    try:
        return kind.connect(*words, **parameters)
    except UnicodeError as error:  # Python cannot even ask for `a..b`
        raise psycopg.ProgrammingError(f"no name of a host: {error}") from None


def _search_path(settings: Settings) -> str:
    return f"search_path={extensions.search_path(settings.schema_name)}"


def _assignments(limits: Mapping[str, int]) -> list[str]:
    return [f"{name}={value}" for name, value in limits.items()]


def _with_its_options(connection: AnyConnection, *options: str) -> AnyConnection:
    """The connection, unless a pooler dropped its options: every table would be another one."""
    *_, wanted = (each for each in options if each.startswith("search_path="))
    path = connection.info.parameter_status("search_path")  # PostgreSQL 18 tells it unasked
    if path is None:
        connection.autocommit = True
        (path,) = connection.execute("SHOW search_path").fetchone() or (None,)
        connection.autocommit = False
    if wanted != f"search_path={path}":
        connection.close()
        raise refusals.NoOptions(f"{refusals.DROPPED}: {wanted} is {path}")
    return connection


def _start_embedded_on_first_use(engine: Engine, settings: Settings) -> None:
    if settings.database_url is None:
        event.listen(engine, "do_connect", lambda *_: embedded.start())
