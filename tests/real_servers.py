"""A PostgreSQL with TLS and a PgBouncer, both Debian's: the development wheel has neither."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from conftest import PATIENCE, free_port, run, wait_until

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
# Both refuse to run as root.
AS_POSTGRES = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

HBA = """
local peered all peer
local all all trust
hostssl all holder all cert
hostssl all postgres all trust
host plain postgres all trust
hostssl tls all all scram-sha-256
"""


@contextlib.contextmanager
def folder_of_postgres() -> Iterator[Path]:
    """A folder with a short path, because sockets are in it, that is removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="real-"))
    try:
        folder.chmod(0o755)
        _give(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give(file: Path) -> None:
    if AS_POSTGRES:
        shutil.chown(file, "postgres")


def command(*words: str | Path) -> str:
    """Run it to its end, as a user whom the servers accept."""
    result = run(*AS_POSTGRES, *words, cwd=Path("/"))
    assert result.returncode == 0, result.stdout
    return result.stdout


@dataclass
class Postgres:
    """Databases `tls` and `plain`; the second one takes connections without TLS."""

    folder: Path
    port: int

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def url(self, database: str = "tls", host: str = "localhost", user: str = "postgres") -> str:
        return f"postgresql://{user}@{host}:{self.port}/{database}"

    def sql(self, statement: str, database: str = "tls") -> list[tuple]:
        """Run it as superuser; the rows."""
        where = f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"
        with psycopg.connect(where, autocommit=True) as connection:
            result = connection.execute(statement)
            return result.fetchall() if result.description else []

    def control(self, *words: str) -> None:
        """`pg_ctl`, and it waits."""
        options = f"-h 127.0.0.1,::1 -p {self.port} -k {self.folder} -c max_connections=60"
        options += f" -c fsync=off -c ssl=on -c ssl_ca_file={self.folder}/ca.crt"
        options += f" -c ssl_cert_file={self.folder}/server.crt"
        options += f" -c ssl_key_file={self.folder}/server.key"
        log = ["-l", self.folder / "log", "-o", options] if words[-1] != "stop" else []
        command(POSTGRES[0] / "pg_ctl", "-w", "-D", self.folder / "data", *log, *words)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A server at localhost (IPv4, IPv6 and a socket) until the block ends."""
    with folder_of_postgres() as folder:
        server = Postgres(folder, free_port())
        _make_certificates(folder)
        initdb = ["-D", folder / "data", "-U", "postgres", "--auth=trust", "-E", "UTF8", "-N"]
        command(POSTGRES[0] / "initdb", *initdb, "--locale=C.UTF-8")
        (folder / "data/pg_hba.conf").write_text(HBA)
        try:
            server.control("start")
            for database in ("tls", "plain"):
                server.sql(f"CREATE DATABASE {database}", "postgres")
            yield server
        finally:
            server.control("-m", "immediate", "stop")


def _make_certificates(folder: Path) -> None:
    new_key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]

    def openssl(*words: str) -> None:
        result = run("openssl", *words, cwd=folder)
        assert result.returncode == 0, result.stdout

    for name in ("ca", "other"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
        openssl("req", "-x509", *new_key, *files)
    request = ["-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost"]
    openssl("req", *new_key[:-2], *request)
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1")
    signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", "-days", "2", *signed)
    bundle = (folder / "other.crt").read_text() + (folder / "ca.crt").read_text()
    (folder / "bundle.crt").write_text(bundle)
    (folder / "server.key").chmod(0o600)
    _give(folder / "server.key")


@dataclass
class Pooler:
    """A PgBouncer in transaction mode before a server's databases."""

    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        """At once, as if it had crashed."""
        if self.process:
            self.process.kill()
            self.process.wait(PATIENCE)


@contextlib.contextmanager
def pooler(folder: Path, host: str, port: int, **settings: object) -> Iterator[Pooler]:
    """PgBouncer until the block ends; it can be stopped and started with `start_pooler`."""
    found = Pooler(free_port())
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": found.port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": 4,
        "logfile": folder / f"pgbouncer-{found.port}.log",
        **settings,
    }
    text = f"[databases]\n* = host={host} port={port} user=postgres\n[pgbouncer]\n"
    text += "".join(f"{name} = {value}\n" for name, value in lines.items())
    (folder / f"{found.port}.ini").write_text(text)
    try:
        start_pooler(found, folder)
        yield found
    finally:
        found.stop()


def start_pooler(pooler: Pooler, folder: Path) -> None:
    """Start it again, with what it was started with."""
    assert PGBOUNCER, "apt-get install pgbouncer"
    # Not by runuser, which could not pass SIGKILL on.
    pooler.process = subprocess.Popen(
        [PGBOUNCER, "--quiet", str(folder / f"{pooler.port}.ini")],
        cwd="/",
        user="postgres" if AS_POSTGRES else None,
        stdin=subprocess.DEVNULL,
    )

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", pooler.port)) == 0

    wait_until(listens, "PgBouncer listens")
