"""Which database, and how to connect: URL, schema, pool, waiting."""

import os
from collections.abc import Mapping
from typing import Any

import psycopg
import structlog
from flask import Flask, current_app
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError, OperationalError

from app.config import PROJECT, InvalidSettings, Settings
from app.core import embedded, extensions, pool, session
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
NEXT_STEP = "Is the database running, and is DATABASE_URL right?"

# Back to what the connection began with; locks of the session stay.
RESET_SESSION = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL"

log = structlog.get_logger("database")

# A name as SQL spells it: quoted where it must be. Named parameters: with others it doubles a %.
quote = PGDialect(paramstyle="named").identifier_preparer.quote  # type: ignore[no-untyped-call]


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
        pool.init_engine(each, limit if each is engine else PROBE_SECONDS)
        if settings.database_pooled:
            _set_schema_per_transaction(each, settings.schema_name)
    if not (alone or settings.database_pooled):
        pool.read_in_autocommit(engine, reading)


def probe() -> Engine:
    """An engine with one connection, for /readyz: a pool that is exhausted does not concern it."""
    engine: Engine = current_app.extensions["probe"]
    return engine


def _only_for_probes(options: dict[str, Any]) -> dict[str, Any]:
    if "poolclass" in options:
        return {}
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


def direct_engine(settings: Settings, *options: str) -> Engine:
    """An engine without pool for migrations: DATABASE_URL_MIGRATIONS, else DATABASE_URL.

    `options` are server settings of each connection, for example `lock_timeout=500`.
    """
    if settings.database_pooled and settings.database_url_migrations is None:
        raise InvalidSettings(
            "DATABASE_POOLED is true and DATABASE_URL_MIGRATIONS is not set. Migrations need the "
            "direct URL: a pooler loses their lock and their schema; see docs/deploying.md."
        )
    url = settings.database_url_migrations or database_url(settings)
    search_path = f"search_path={extensions.search_path(settings.schema_name)}"
    connect_args = _connect_args(url, search_path, *options)
    engine = create_engine(url, poolclass=NullPool, connect_args=connect_args)
    _start_embedded_on_first_use(engine, settings)
    return engine


def connect_directly(
    settings: Settings, *options: str, wait_seconds: float | None = None
) -> Connection:
    """A connection of `direct_engine`, waited for DATABASE_WAIT_SECONDS unless said otherwise."""
    seconds = settings.database_wait_seconds if wait_seconds is None else wait_seconds
    return connect_when_ready(direct_engine(settings, *options), seconds)


def connect_when_ready(engine: Engine, seconds: float) -> Connection:
    """The first connection that succeeds; `DatabaseUnavailable` when there is none in time."""
    where = f"{engine.url.host or 'socket'}:{engine.url.port or 5432}/{engine.url.database}"
    report = at_most_every(REPORT_EVERY_SECONDS, log.info)
    for waited in tries(seconds, pause=0.3):
        try:
            return engine.connect()
        except DBAPIError as error:
            why = " ".join(str(error.orig).split())
            next_step = missing_connect(error) or NEXT_STEP
            if not isinstance(error, OperationalError):
                break
        if waited < seconds:
            report(f"waiting for the database at {where}, {waited:.0f} s: {why}")
    raise DatabaseUnavailable(
        f"No login at {where}, after {waited:.0f} s (DATABASE_WAIT_SECONDS={seconds:g}): "
        f"{why}\n{next_step}"
    )


def missing_connect(error: DBAPIError) -> str | None:
    """Who may not connect to which database, and the statement that lets the role in."""
    refusal = error.orig
    if not isinstance(refusal, psycopg.OperationalError) or refusal.pgconn is None:
        return None
    # Before a login the server sends no number of the error, only its words.
    if "permission denied for database" not in str(refusal):
        return None
    role, database = (quote(name.decode()) for name in (refusal.pgconn.user, refusal.pgconn.db))
    return (
        f"Role {role} lacks CONNECT on database {database}. Run as its owner, or as a superuser: "
        f"GRANT CONNECT ON DATABASE {database} TO {role};"
    )


def _engine_options(settings: Settings, url: URL, limits: Mapping[str, int]) -> dict[str, Any]:
    # Exceptions are logged, and the values in a statement may be personal.
    common = {"hide_parameters": settings.production}
    if settings.database_pooled:
        # A pooler in transaction mode refuses start-up options and loses prepared statements.
        return common | {
            "poolclass": NullPool,
            "connect_args": _connect_args(url) | {"prepare_threshold": None},
        }
    return common | {
        "pool_size": settings.database_pool_size,
        "max_overflow": settings.database_pool_overflow,
        "pool_recycle": settings.database_pool_recycle,
        "pool_timeout": settings.database_pool_timeout,
        "connect_args": _connect_args(
            url,
            f"search_path={extensions.search_path(settings.schema_name)}",
            *(f"{name}={value}" for name, value in limits.items()),
        ),
    }


def _connect_args(url: URL, *options: str) -> dict[str, Any]:
    """psycopg's arguments, in which a URL's own connect_timeout, options … keep their say."""
    args: dict[str, Any] = {"application_name": PROJECT["name"], **NETWORK}
    args["connect_timeout"] = CONNECT_TIMEOUT_SECONDS
    for name in args.keys() & url.query.keys():
        del args[name]
    if options:
        own = url.query.get("options", "")
        args["options"] = " ".join([str(own), *(f"-c {option}" for option in options)]).strip()
    return args


def _start_embedded_on_first_use(engine: Engine, settings: Settings) -> None:
    if settings.database_url is None:
        event.listen(engine, "do_connect", lambda *_: embedded.start())


def _set_schema_per_transaction(engine: Engine, schema: str) -> None:
    statement = text(f"SET LOCAL search_path = {extensions.search_path(quote(schema))}")

    @event.listens_for(engine, "begin")
    def set_search_path(connection: Any) -> None:
        connection.execute(statement)
