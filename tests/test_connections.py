"""Every form of a connection, on a PostgreSQL with TLS: what works, and what can never succeed."""

import json
import re
import socketserver
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest
from conftest import PATIENCE, TEMPLATE, Project, clean_environment, copy_project, free_port
from production import SECRET
from real_servers import Postgres, pooler, postgres

WORKER = TEMPLATE / "tests/connections_worker.py"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        for statement in (
            "CREATE ROLE app LOGIN PASSWORD 'p@ss/w:rd'",
            "CREATE ROLE sleeper PASSWORD 'p'",
            "CREATE ROLE outsider LOGIN PASSWORD 'p'",
            "REVOKE CONNECT ON DATABASE tls FROM PUBLIC",
            "GRANT CONNECT ON DATABASE tls TO app",
            "CREATE SCHEMA orders",
            "GRANT USAGE ON SCHEMA orders TO app",
        ):
            server.sql(statement)
        yield server


@pytest.fixture(scope="module")
def base(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(generated, tmp_path_factory.mktemp("connections") / "book-service")


Attempt = Callable[..., dict]


@pytest.fixture(scope="module")
def attempt(base: Project) -> Iterator[Attempt]:
    """Logs in, in one process for all tests, because it takes long to start."""
    process = subprocess.Popen(
        [base.python, WORKER],
        cwd=base.path,
        env=clean_environment(PYTHONPATH=str(base.path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def ask(url: str, seconds: float = 60, **environment: str) -> dict:
        assert process.stdin
        assert process.stdout
        case = {"url": url, "schema": "orders", "environment": environment, "seconds": seconds}
        process.stdin.write(f"{json.dumps(case)}\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        yield ask
    finally:
        process.communicate(timeout=PATIENCE)


def forms(server: Postgres) -> dict[str, tuple[str, dict[str, str]]]:
    """By name: a URL and the variables beside it, that log in."""
    port, folder = server.port, server.folder
    dead = free_port()
    app = f"app:p%40ss%2Fw%3Ard@localhost:{port}/tls"
    socket = quote(str(folder), safe="")
    service = folder / "service.conf"
    service.write_text(
        f"[tls]\nhost=localhost\nport={port}\ndbname=tls\nuser=postgres\nsslmode=require\n"
    )
    passwords = folder / "pgpass"
    passwords.write_text(f"localhost:{port}:tls:app:p@ss/w\\:rd\n")
    passwords.chmod(0o600)
    ca = f"{folder}/ca.crt"
    full = "sslmode=verify-full"
    return {
        "no TLS": (server.url("plain") + "?sslmode=disable", {}),
        "TLS if there is": (server.url(), {}),
        "password": (f"postgres://{app}?sslmode=require", {}),
        "psycopg2": (f"postgresql+psycopg2://{app}", {}),
        "require": (server.url() + "?sslmode=require", {}),
        "file": (server.url() + f"?{full}&sslrootcert={ca}", {}),
        "bundle": (server.url() + f"?{full}&sslrootcert={folder}/bundle.crt", {}),
        "system": (server.url() + f"?{full}&sslrootcert=system", {"SSL_CERT_FILE": ca}),
        "verify-ca by another name": (
            f"postgresql://postgres@elsewhere/tls?hostaddr=127.0.0.1&port={port}"
            f"&sslmode=verify-ca&sslrootcert={ca}",
            {},
        ),
        "IPv4": (server.url(host="127.0.0.1") + f"?{full}&sslrootcert={ca}", {}),
        "IPv6": (server.url(host="[::1]") + f"?{full}&sslrootcert={ca}", {}),
        "socket": (f"postgresql://postgres@/tls?host={folder}&port={port}", {}),
        "socket, percent-encoded": (f"postgresql://postgres@{socket}:{port}/tls", {}),
        "hosts, as libpq writes them": (
            f"postgresql://postgres@127.0.0.1:{dead},localhost:{port}/tls"
            "?target_session_attrs=read-write",
            {},
        ),
        "hosts, as SQLAlchemy writes them": (
            f"postgresql://postgres@/tls?host=127.0.0.1:{dead}&host=[::1]:{port}",
            {},
        ),
        "hosts, lists": (
            f"postgresql://postgres@/tls?host=nowhere.invalid,localhost&port={dead},{port}",
            {},
        ),
        "everything in variables": (
            "postgresql://",
            {
                "PGHOST": "localhost",
                "PGPORT": str(port),
                "PGUSER": "app",
                "PGPASSWORD": "p@ss/w:rd",
                "PGDATABASE": "tls",
                "PGSSLMODE": "verify-full",
                "PGSSLROOTCERT": ca,
            },
        ),
        "password file": (
            f"postgresql://app@localhost:{port}/tls",
            {"PGPASSFILE": str(passwords)},
        ),
        "service": ("postgresql://", {"PGSERVICE": "tls", "PGSERVICEFILE": str(service)}),
        "service in the URL": ("postgresql://?service=tls", {"PGSERVICEFILE": str(service)}),
        "options": (
            server.url() + "?options=-csearch_path%3Dpublic%20-cstatement_timeout%3D4s",
            {},
        ),
        "two options": (
            server.url() + "?options=-csearch_path%3Dpublic&options=-c%20statement_timeout%3D4s",
            {},
        ),
        "PGOPTIONS": (
            server.url(),
            {"PGOPTIONS": "-c search_path=public -c statement_timeout=4s"},
        ),
    }


WITHOUT_TLS = {"no TLS", "socket", "socket, percent-encoded"}


def test_what_works(server: Postgres, attempt: Attempt):
    for name, (url, environment) in forms(server).items():
        answer = attempt(url, **environment)
        assert "seen" in answer, f"{name}: {answer}"
        tls, schema, limit = answer["seen"]
        assert tls == (name not in WITHOUT_TLS), name
        assert schema == (None if name == "no TLS" else "orders"), name  # nothing is in `plain`
        assert limit == ("4s" if "ptions" in name.lower() else "0"), name


HOPELESS = {
    "password": ("app:hunter2@{host}/tls", "password of role app"),
    "no password": ("app@{host}/tls", "asks for a password of role app"),
    "role": ("nobody1@{host}/tls?sslmode=require", "password of role nobody1"),
    "role on a socket": ("nobody1@/tls?host={folder}&port={port}", "CREATE ROLE nobody1 LOGIN"),
    "no login": ("sleeper:p@{host}/tls", "ALTER ROLE sleeper LOGIN;"),
    "database": ("postgres@/nope?host={folder}&port={port}", "CREATE DATABASE nope OWNER postgres"),
    "CONNECT": ("outsider:p@{host}/tls", "GRANT CONNECT ON DATABASE tls TO outsider;"),
    "no entry": ("app:hunter2@{host}/plain", "pg_hba.conf of the server does not let"),
    "needs TLS": ("postgres@{host}/tls?sslmode=disable", "set sslmode=require in DATABASE_URL"),
    "has no TLS": ("postgres@127.0.0.1:{plain}/x?sslmode=require", "The server speaks no TLS"),
    "CA": ("{verified}{folder}/other.crt", "not from an authority that this service trusts"),
    "system CA": ("{verified}system", "not from an authority that this service trusts"),
    "CA file": ("{verified}{folder}/none.crt", "in a container it must be mounted"),
    "host name": (
        "postgres@wrong/tls?hostaddr=127.0.0.1&port={port}&sslmode=verify-full"
        "&sslrootcert={folder}/ca.crt",
        "is not the one in the certificate",
    ),
    "client's certificate": (
        "holder@{host}/tls?sslmode=require",
        "Let sslcert and sslkey in DATABASE_URL name",
    ),
    "certificate of somebody else": (
        "holder@{host}/tls?sslmode=require&sslcert={folder}/server.crt&sslkey={folder}/client.key",
        "Let sslcert and sslkey in DATABASE_URL name",
    ),
    "peer": ("app@/peered?host={folder}&port={port}", "asks for the user of the operating system"),
    "unknown setting": ("postgres@{host}/tls?options=-cnope%3D1", "Correct the options"),
    "wrong setting": ("postgres@{host}/tls?options=-cwork_mem%3Dx", "Correct the options"),
    "ssl=true": ("postgres@{host}/tls?ssl=true", "write sslmode=require instead"),
    "unknown option": ("postgres@{host}/tls?pgbouncer=true", "take it out of DATABASE_URL"),
    "sslmode": ("postgres@{host}/tls?sslmode=required", "Correct this in DATABASE_URL"),
    "service": ("?service=nope", "Correct this in DATABASE_URL"),
    "TLS version": (
        "postgres@{host}/tls?sslmode=require&ssl_min_protocol_version=TLSv1.9",
        "Correct this in DATABASE_URL",
    ),
    "TLS versions": (
        "postgres@{host}/tls?sslmode=require&ssl_max_protocol_version=TLSv1.1",
        "Correct this in DATABASE_URL",
    ),
    "no TLS version": (
        "postgres@{host}/tls?ssl_min_protocol_version=TLSv1&ssl_max_protocol_version=TLSv1.1"
        "&sslmode=require",
        "none of the TLS versions",
    ),
    "protocol version": (
        "postgres@{host}/tls?min_protocol_version=3.2",
        "Take min_protocol_version and max_protocol_version out of DATABASE_URL",
    ),
    "protocol version of a pooler": (
        "postgres@127.0.0.1:{plain}/tls?max_protocol_version=latest",
        "Take min_protocol_version and max_protocol_version out of DATABASE_URL",
    ),
    "no TLS at once": (
        "postgres@127.0.0.1:{plain}/tls?sslmode=require&sslnegotiation=direct",
        "sslnegotiation=direct, which needs PostgreSQL 17",
    ),
    "GSSAPI": ("postgres@{host}/tls?gssencmode=require", "Take gssencmode=require out"),
    "GSSAPI on a socket": (
        "postgres@/tls?host={folder}&port={port}&gssencmode=require",
        "Take gssencmode=require out",
    ),
    "not PostgreSQL": ("postgres@127.0.0.1:{web}/tls", "This is not PostgreSQL: check host and"),
    "not PostgreSQL, without TLS": (
        "postgres@127.0.0.1:{web}/tls?sslmode=disable",
        "This is not PostgreSQL: check host and port",
    ),
    "no client certificate asked for": (
        "postgres@{host}/tls?sslmode=require&sslcertmode=require",
        "Correct this in DATABASE_URL",
    ),
    "key of SCRAM": ("app@{host}/tls?scram_client_key=x", "Correct this in DATABASE_URL"),
    "other method": ("app:p@{host}/tls?require_auth=md5", "Correct this in DATABASE_URL"),
    "methods": ("app:p@{host}/tls?require_auth=md5,!none", "Correct this in DATABASE_URL"),
    "no channel": (
        "postgres@{host}/tls?channel_binding=require",
        "Correct this in DATABASE_URL",
    ),
    "user of the server": (
        "postgres@/tls?host={folder}&port={port}&requirepeer=nobody1",
        "Correct this in DATABASE_URL",
    ),
    "address": ("postgres@{host}/tls?hostaddr=300.1.1.1", "Correct this in DATABASE_URL"),
    "addresses of hosts": (
        "postgres@/tls?host=localhost,127.0.0.1&port={port},{port}&hostaddr=127.0.0.1",
        "Correct this in DATABASE_URL",
    ),
    "timeout": ("postgres@{host}/tls?connect_timeout=abc", "Correct this in DATABASE_URL"),
    "no name of a host": ("postgres@a..b/tls", "Correct this in DATABASE_URL"),
    "range": ("postgres@{host}/tls?options=-cwork_mem%3D1", "Correct the options"),
    "Boolean": ("postgres@{host}/tls?options=-cgeqo%3Dx", "Correct the options"),
    "role among options": (
        "app:p%40ss%2Fw%3Ard@{host}/tls?options=-crole%3Dpostgres",
        "Correct the options",
    ),
    "half dropped": (
        "postgres@/broken?host={folder}&port={port}",
        "DROP DATABASE broken; CREATE DATABASE broken OWNER postgres;",
    ),
    "every host": ("app:hunter2@127.0.0.1:{port},[::1]:{port}/tls", "password of role app"),
}


@contextmanager
def web_server() -> Iterator[int]:
    """The port of something that is not PostgreSQL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as web:
        Thread(target=web.serve_forever).start()
        try:
            yield web.server_address[1]
        finally:
            web.shutdown()


def test_what_can_never_succeed(server: Postgres, attempt: Attempt):
    """It ends at once, with an instruction and without a password: nothing is waited for."""
    fields = {
        "host": f"localhost:{server.port}",
        "port": server.port,
        "folder": server.folder,
        "verified": f"postgres@localhost:{server.port}/tls?sslmode=verify-full&sslrootcert=",
    }
    key = server.folder / "client.key"
    key.write_bytes((server.folder / "server.key").read_bytes())
    key.chmod(0o600)
    server.sql("CREATE DATABASE broken")
    server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'broken'")
    with pooler(server.folder, "127.0.0.1", server.port) as without_tls, web_server() as web:
        fields["plain"], fields["web"] = without_tls.port, web
        answers = {
            name: attempt(f"postgresql://{url.format(**fields)}").get("words", "")
            for name, (url, _) in HOPELESS.items()
        }
    wrong = {
        name: words
        for name, words in answers.items()
        if HOPELESS[name][1] not in words
        or not words.startswith("No login at ")
        or "DATABASE_WAIT_SECONDS" in words
        or "hunter2" in words
    }
    assert not wrong
    # Nor do the variables beside the URL heal: each is named.
    readable = server.folder / "readable"
    readable.write_text("*:*:*:*:p@ss/w\\:rd\n")
    readable.chmod(0o644)
    for user, words, variables in (
        ("app", "run chmod 600", {"PGPASSFILE": str(readable)}),
        ("postgres", "PGTZ", {"PGTZ": "Nowhere/Land"}),
        ("postgres", "PGCLIENTENCODING", {"PGCLIENTENCODING": "bogus"}),
        ("postgres", "PGDATESTYLE", {"PGDATESTYLE": "bogus"}),
        ("postgres", "PGGEQO", {"PGGEQO": "bogus"}),
        ("postgres", "PG…", {"PGHOST": "localhost", "PGPORT": "x"}),
    ):
        url = "postgresql:///tls" if "PGPORT" in variables else server.url(user=user)
        answer = attempt(url, **variables)["words"]
        assert words in answer, answer
        assert "DATABASE_WAIT_SECONDS" not in answer, answer


def test_what_may_heal(server: Postgres, attempt: Attempt):
    """It is waited for, for as long as is allowed, and said in words."""
    dead = free_port()
    server.sql("CREATE DATABASE closed ALLOW_CONNECTIONS false")
    for url, words in {
        f"postgresql://app:p@127.0.0.1:{dead}/tls": "Is the database running, and is DATABASE_URL",
        "postgresql://app:p@db.invalid/tls": "No name server knows this host, or not yet",
        # Another host may let us in, when it answers.
        f"postgresql://app:p@127.0.0.1:{dead},localhost:{server.port}/tls": "refuses the password",
        f"postgresql://app:p@db.invalid,localhost:{server.port}/tls": "refuses the password",
        f"postgresql://postgres@localhost:{server.port}/tls?target_session_attrs=standby": (
            "what its target_session_attrs demands"
        ),
        server.url("closed"): "ALTER DATABASE closed ALLOW_CONNECTIONS true;",
        # As a proxy does whose database is not there yet.
        server.url() + "?sslmode=require&sslnegotiation=direct": "needs PostgreSQL 17: take it out",
    }.items():
        answer = attempt(url, seconds=0.1)["words"]
        assert "(DATABASE_WAIT_SECONDS=0.1)" in answer, answer
        assert words in answer, answer
    # A name has a few seconds to appear.
    answer = attempt("postgresql://app:p@db.invalid/tls", seconds=600)["words"]
    assert "No name server knows this host" in answer
    assert "DATABASE_WAIT_SECONDS" not in answer
    server.sql("ALTER ROLE app CONNECTION LIMIT 0")
    try:
        answer = attempt(server.url(user="app:p%40ss%2Fw%3Ard"), seconds=0.1)["words"]
    finally:
        server.sql("ALTER ROLE app CONNECTION LIMIT -1")
    assert "DATABASE_WAIT_SECONDS" in answer, answer
    assert "Too many connections" in answer, answer


def production(url: str) -> dict[str, str]:
    return {"APP_ENV": "production", "SECRET_KEY": SECRET, "DATABASE_URL": url}


def test_every_command_gives_the_instruction(server: Postgres, base: Project):
    url = server.url(user="app:hunter2")
    for command in (
        ["./init.sh"],
        [base.python, "-m", "flask", "db", "current"],
        [base.python, "-m", "flask", "seed", "all"],
        [base.python, "-m", "flask", "doctor"],
    ):
        started = time.monotonic()
        port = str(free_port())
        result = base.run(*command, **production(url), PORT=port, DATABASE_WAIT_SECONDS="600")
        assert result.returncode == 1, result.stdout
        assert "refuses the password of role app" in result.stdout, result.stdout
        assert "hunter2" not in result.stdout
        assert "Traceback" not in result.stdout
        assert time.monotonic() - started < 500


def test_gunicorn_alone_gets_well(server: Postgres, base: Project):
    """It serves without a database, says why it is not ready, and needs no restart after that."""
    url = server.url("late") + "?sslmode=require"
    gunicorn = [str(base.python), "-m", "gunicorn"]
    settings = production(url) | {"WEB_CONCURRENCY": "1", "DRAIN_SECONDS": "0"}
    with base.serving(*gunicorn, until="/healthz", **settings) as service:
        answer = service.get("/readyz")
        assert answer.status_code == 503
        assert "CREATE DATABASE late" in answer.json()["reason"], answer.text
        assert "CREATE DATABASE late" in service.log.read_text()
        assert service.get("/api/books").status_code == 503
        server.sql("CREATE DATABASE late", "postgres")
        upgraded = base.flask("db", "upgrade", **settings)
        assert upgraded.returncode == 0, upgraded.stdout
        assert service.get("/readyz").status_code == 200
        assert service.get("/api/books").status_code == 200

    # pg_dump is as old as the server, and older than psycopg's libpq. Extensions are everybody's.
    for statement in (
        "CREATE EXTENSION pg_trgm",
        "CREATE SCHEMA other CREATE TABLE words (word text)",
        "CREATE INDEX by_word ON other.words USING gin (word gin_trgm_ops)",
    ):
        server.sql(statement, "late")
    verified = f"{server.url('late')}?sslmode=verify-full&sslrootcert={server.certificate}"
    for words in (["create"], ["restore", "latest", "--replace", "--yes-in-production"]):
        result = base.flask("backup", *words, **settings | {"DATABASE_URL": verified})
        assert result.returncode == 0, result.stdout
    assert server.sql("SELECT to_regclass('other.by_word') IS NOT NULL", "late") == [(True,)]

    def doctor(*words: str, **changes: str):
        return base.flask("doctor", *words, **settings | changes)

    # What it says can be pasted.
    assert doctor().returncode == 0
    asked = doctor("--replicas", "3", WEB_CONCURRENCY="2").stdout
    assert "3 replicas x 2 workers x (8 + 7 + 1 for /readyz) = 96 of" in asked
    assert "raise max_connections to" in asked
    changes = dict(re.findall(r"(DATABASE_POOL_[A-Z]+)=(\d+)", asked))
    assert changes.keys() == {"DATABASE_POOL_SIZE", "DATABASE_POOL_OVERFLOW"}
    fits = doctor("--replicas", "3", WEB_CONCURRENCY="2", **changes)
    assert fits.returncode == 0, fits.stdout
    server.sql("ALTER ROLE postgres CONNECTION LIMIT 20")
    try:
        answer = doctor("--replicas", "2")
    finally:
        server.sql("ALTER ROLE postgres CONNECTION LIMIT -1")
    assert answer.returncode == 1
    assert "= 32 of 20 (CONNECTION LIMIT of the role 20" in answer.stdout, answer.stdout
    assert "DATABASE_STATEMENT_TIMEOUT_MS 12000" in answer.stdout, answer.stdout
