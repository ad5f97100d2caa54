"""A new backup: pg_dump, streamed through this process to where it is kept."""

import hashlib
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from threading import Thread
from typing import IO, Any

import structlog
from psycopg.conninfo import make_conninfo

from app.config import PROJECT, Settings
from app.core import words
from app.core.backups import clients, snapshot
from app.core.backups.clients import Clients
from app.core.backups.errors import BackupError
from app.core.backups.manifest import Manifest
from app.core.backups.snapshot import LOCK_SECONDS, Snapshot
from app.core.backups.store import Store, Writer

PIECE = 256 * 1024
# What libpq fills in although nobody asked for it, and what means nothing to the second connection:
# the host is known, and a service is its other parameters.
FILLED_IN = {"sslcertmode": "allow"}
LEFT_OUT = ("target_session_attrs", "load_balance_hosts", "options", "service", "servicefile")
SECRETS = ("sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
# The client that knows a parameter, where not all do.
SINCE = {"sslcertmode": 16, "require_auth": 16, "gssdelegation": 16, "sslnegotiation": 17}
SINCE |= {"min_protocol_version": 18, "max_protocol_version": 18, "sslkeylogfile": 18}
SINCE |= {"oauth_issuer": 18, "oauth_client_id": 18, "oauth_scope": 18}
NOW_DUMPS = re.compile(r"dumping contents of table \"?(.+?)\"?$")

log = structlog.get_logger("backup")


def create(
    settings: Settings,
    store: Store,
    name: str | None,
    tell: Callable[[str], None],
    before_migration: bool = False,
) -> tuple[str, Manifest]:
    """Back up the service's schema into the store; the name that it has there, and its manifest.

    Raises `BackupError`, and then has left nothing in the store.
    """
    started = datetime.now(UTC)
    with snapshot.taken(settings) as seen:
        login, secrets = _login(seen)
        programs = _programs(seen, login)
        if seen.large_objects:
            log.warning(
                f"{seen.large_objects} large objects of this database belong to no schema and are "
                "not in the backup; see docs/backups.md, What is in it"
            )
        chosen = name or _default_name(settings, started, seen.revisions)
        with store.writing(chosen, or_another=name is None) as output:
            rows = seen.rows(tell)
            command = [programs.program("pg_dump"), f"--dbname={make_conninfo('', **login)}"]
            environment = programs.environment(**secrets)
            size, digest = _dump(command, environment, seen, output, tell)
            manifest = Manifest(
                service=PROJECT["name"],
                schema_name=seen.schema,
                revisions=seen.revisions,
                rows=rows,
                extensions=seen.extensions,
                server_version=seen.server_version,
                client_version=programs.version,
                created=started.replace(microsecond=0),
                size=size,
                sha256=digest,
                before_migration=before_migration,
            )
            output.publish(manifest)
    return output.name, manifest


def _default_name(settings: Settings, moment: datetime, revisions: list[str]) -> str:
    at = "+".join(revisions) or "none"
    return f"{PROJECT['name']}-{settings.schema_name}-{moment:%Y%m%dT%H%M%SZ}-{at}.dump"


def _dump(
    command: list[str],
    environment: dict[str, str],
    seen: Snapshot,
    output: Writer,
    tell: Callable[[str], None],
) -> tuple[int, str]:
    """Size and SHA-256 of what was written."""
    process = subprocess.Popen(
        [
            *command,
            "--format=custom",
            f"--schema={seen.schema}",
            f"--snapshot={seen.id}",
            f"--lock-wait-timeout={LOCK_SECONDS}s",
            "--no-password",
            "--no-publications",
            "--no-subscriptions",
            "--verbose",
            # A row's partition by hash may be another one in the copy. pg_dump sees it for an enum,
            # but not for what has one in it.
            *(["--load-via-partition-root"] if seen.has_hashed else []),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said = _Said(process.stderr, len(seen.tables))
    said.start()
    digest, size = hashlib.sha256(), 0
    try:
        while piece := process.stdout.read(PIECE):
            output.write(piece)
            digest.update(piece)
            size += len(piece)
            tell(f"writing: {words.size(size)}{said.where}")
        if process.wait():
            said.join()
            raise BackupError(_why(said.last, process.returncode))
    finally:
        process.kill()
        process.wait()
        said.join()
        process.stdout.close()
        process.stderr.close()
    return size, digest.hexdigest()


def _programs(seen: Snapshot, login: dict[str, Any]) -> Clients:
    """Those that fit the server, and know how to connect to it as this process has."""
    since = {name: SINCE[name] for name in login if name in SINCE}
    if login.get("sslrootcert") == "system":
        since["sslrootcert=system"] = 16
    newest = max(since, key=lambda name: since[name], default=None)
    if newest is None or since[newest] <= seen.server_major:
        return clients.find(seen.server_major, tls=seen.uses_tls)
    why = f"The database's URL has {newest}, which is new in PostgreSQL"
    return clients.find(since[newest], tls=seen.uses_tls, why=why)


def _login(seen: Snapshot) -> tuple[dict[str, Any], dict[str, str]]:
    """How pg_dump connects: to the same server in the same way; what is secret goes apart."""
    info = seen.connection.info
    # Everybody on this machine can see the arguments of a process, but not its environment.
    parameters: dict[str, Any] = info.get_parameters()
    if secret := next((name for name in SECRETS if parameters.get(name)), None):
        raise BackupError(
            f"The database's URL has {secret}, which cannot be handed to pg_dump unseen. Use a "
            "password, or a key file without one that only this user may read."
        )
    # Of several hosts, the one that has the snapshot.
    parameters |= {"host": info.host, "port": info.port, "application_name": "pg_dump"}
    parameters = {
        name: it
        for name, it in parameters.items()
        if name not in LEFT_OUT and FILLED_IN.get(name) != it
    }
    if "," in str(parameters.get("hostaddr", "")):
        parameters["hostaddr"] = info.hostaddr
    if not seen.uses_tls:
        # Programs without TLS refuse to hear of it, also where it would not be used.
        parameters = {name: it for name, it in parameters.items() if not name.startswith("ssl")}
    secrets = {"PGPASSWORD": info.password} if info.password else {}
    return parameters, secrets


def _why(last: str, code: int) -> str:
    if code < 0:
        return f"pg_dump was ended by signal {-code}. Nothing was left behind; run it again."
    if "row-level security" in last:
        last += " The role needs BYPASSRLS, or to own the table (without FORCE)."
    return f"pg_dump failed: {last or f'exit code {code}'}"


class _Said(Thread):
    """What pg_dump says: at which table it is, and what was last, which is why it failed."""

    def __init__(self, stream: IO[bytes], tables: int) -> None:
        super().__init__(daemon=True)
        self.stream, self.tables = stream, tables
        self.table = 0
        self.where = ""
        self.errors: list[str] = []

    @property
    def last(self) -> str:
        return " ".join(self.errors)

    def run(self) -> None:
        with suppress(ValueError):
            for line in self.stream:
                said = line.decode("utf-8", "replace").strip().removeprefix("pg_dump: ")
                if found := NOW_DUMPS.search(said):
                    self.table += 1
                    name = found[1].rpartition(".")[2]
                    self.where = f", table {name} ({self.table} of {self.tables})"
                elif said.startswith(("error:", "detail:", "hint:")) or self.errors:
                    self.errors.append(said.removeprefix("error: "))
