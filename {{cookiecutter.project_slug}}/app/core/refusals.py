"""Why the database lets nobody in: what heals by itself, and what somebody has to change.

Before a login a server sends no number of its error, only words. Those that nobody here knows, or
in another language than English, count as what heals, and are shown as they are.
"""

import re
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError

# A name as SQL spells it: quoted where it must be. Named parameters: with others it doubles a %.
quote = PGDialect(paramstyle="named").identifier_preparer.quote  # type: ignore[no-untyped-call]

# Of several hosts or addresses, psycopg lists how each one failed.
ATTEMPT = re.compile(r"^- host: (.+?), port: (.+?), hostaddr: (?:'[^']*'|None): ", re.MULTILINE)
DROPPED = "the server ignored the start-up options"

NOT_LET_IN = (
    "pg_hba.conf of the server does not let this machine in. Add a line there, then run "
    "SELECT pg_reload_conf(): hostssl {database} {role} ADDRESS/MASK scram-sha-256"
)
PASSWORD_FILE = "the file that PGPASSFILE names, which is ignored until you run chmod 600 on it"
CORRECT_IT = "Correct this in {setting}, or in the variable PG… or the service file that has it."

# What the words contain, and what to do. The first that fits counts.
FINAL = {
    r"password authentication failed|SASL authentication failed|wrong password": (
        "The server refuses the password of role {role}. Write the right one into {setting}, with "
        f"special characters percent-encoded (@ is %40, / is %2F), or into PGPASSWORD or "
        f"{PASSWORD_FILE}."
    ),
    r"(Peer|Ident) authentication failed": (
        "pg_hba.conf of the server asks for the user of the operating system, not for a password. "
        "Write the server's name into {setting} instead of its socket, or change that line: "
        "METHOD scram-sha-256, then SELECT pg_reload_conf();"
    ),
    r"no password supplied|empty password": (
        "The server asks for a password of role {role}. Write it into {setting}, into PGPASSWORD "
        f"or into {PASSWORD_FILE}."
    ),
    r'role ".*" does not exist|no such user': (
        "Write the right role into {setting}, or run as a superuser: "
        "CREATE ROLE {role} LOGIN PASSWORD '…';"
    ),
    r"is not permitted to log in": "Run as a superuser: ALTER ROLE {role} LOGIN;",
    r'database ".*" does not exist|no such database': (
        "Write the right database into {setting}, or create it as a superuser: "
        "CREATE DATABASE {database} OWNER {role};"
    ),
    r"cannot connect to invalid database": (
        "A DROP DATABASE was interrupted, and nobody can use the rest. Run as a superuser, then "
        "restore a backup: DROP DATABASE {database}; CREATE DATABASE {database} OWNER {role};"
    ),
    r"permission denied for database": (
        "Role {role} lacks CONNECT on database {database}. Run as its owner, or as a superuser: "
        "GRANT CONNECT ON DATABASE {database} TO {role};"
    ),
    r"(SSL|GSS) encryption|pg_hba\.conf rejects": NOT_LET_IN,
    r"no encryption": (
        "The server accepts no connection without TLS from here: set sslmode=require in {setting}."
    ),
    r"no pg_hba\.conf entry": NOT_LET_IN,
    r"certificate verify failed": (
        "The certificate of the server is not from an authority that this service trusts, or has "
        "expired. Let sslrootcert in {setting} name the file with the provider's CA certificates, "
        "or write sslrootcert=system if a public authority signed it; sslcrl and sslcrldir, if "
        "set, must hold a valid list of this authority."
    ),
    r"does not match host name|server certificate for": (
        "The host in {setting} is not the one in the certificate. Connect by the name that the "
        "certificate has, or give the server a certificate for this one."
    ),
    r"root certificate (file|store)|root\.crt": (
        "Let sslrootcert in {setting}, or PGSSLROOTCERT, name a file that is there and has the CA "
        "certificates of the server; in a container it must be mounted."
    ),
    r"does not support SSL|SSL was required": (
        "The server speaks no TLS, and sslmode in {setting} demands it. Turn TLS on in the server "
        "(ssl=on) or, on a network that nobody else can read, write sslmode=prefer."
    ),
    # A byte that is no answer of PostgreSQL; a proxy whose database is down says nothing at all.
    r"invalid response to SSL negotiation|expected authentication request|no application protocol"
    r"|ALPN": (
        "This is not PostgreSQL: check host and port in {setting}, or in PGHOST and PGPORT."
    ),
    r"wrong version number|unsupported protocol|alert protocol version|no protocols available": (
        "The server speaks none of the TLS versions that ssl_min_protocol_version and "
        "ssl_max_protocol_version in {setting} allow, or no TLS at once: take these out, and "
        "sslnegotiation=direct, which needs PostgreSQL 17. Else check host and port."
    ),
    r"only supports protocol version|unsupported frontend protocol|bad packet header": (
        "Take min_protocol_version and max_protocol_version out of {setting}: the server only "
        "knows an older protocol."
    ),
    # A ticket may come later, but then a restart finds it: this is far more often a mistake.
    r"GSSAPI encryption|GSSAPI support": (
        "Take gssencmode=require out of {setting}, or PGGSSENCMODE: Kerberos encryption needs a "
        "ticket here and a server that is set up for it. sslmode=require encrypts as well."
    ),
    r"client certificate|certificate authentication failed|certificate file|private key"
    r"|alert (unknown ca|certificate|bad cert)": (
        "Let sslcert and sslkey in {setting} name the certificate of this client and its key, "
        "which only the user of the service may read (chmod 600), or leave both out."
    ),
    rf"unsupported startup parameter|command-line options|{DROPPED}": (
        "{setting} leads to a pooler, and the schema and the limits of the service need options "
        "that it does not pass on. {pooler_advice}; see docs/deploying.md, Behind a pooler."
    ),
    r'invalid connection option "(ssl|sslmode_.*)"': (
        "psycopg has no such option: write sslmode=require instead in {setting}."
    ),
    r"invalid connection option|invalid URI query parameter": (
        "psycopg has no such option: take it out of {setting}."
    ),
    r"unrecognized configuration parameter|invalid value for parameter|cannot be changed"
    r"|permission denied to set (parameter|role|session)|invalid command-line argument"
    r"|requires a( \w+)? value|outside the valid range": (
        "Correct the options in {setting} (?options=-c…), or the variable that has them: "
        "PGOPTIONS, PGTZ, PGDATESTYLE, PGCLIENTENCODING or PGGEQO."
    ),
    r"channel binding|authentication method requirement|require_auth method|weak sslmode"
    r'|invalid "?\w+"? value|value ".*" invalid when|invalid SSL protocol version'
    r"|invalid SCRAM (client|server) key|without a valid SSL certificate"
    r"|did not request an SSL certificate|requirepeer specifies|could not parse network address"
    r"|bad value for|no name of a host|Servname not supported|Unrecognized service"
    r"|invalid port|invalid integer|could not match|service file|definition of service"
    r"|socket path .* is too long|local user with ID": CORRECT_IT,
}
# What may be so only for a moment, in words that help if it is not.
HEALS = {
    r"failed to resolve host|could not translate host name": (
        "No name server knows this host, or not yet: is it spelt right in {setting}?"
    ),
    r"session is (read-only|not read-only)|hot standby": (
        "No host of {setting} is what its target_session_attrs demands: has a failover ended?"
    ),
    r"not currently accepting connections": (
        "Somebody closed this database, for maintenance perhaps. To open it, run as a superuser "
        "in another one: ALTER DATABASE {database} ALLOW_CONNECTIONS true;"
    ),
    r"SSL error: unexpected eof|SSL SYSCALL error": (
        "The server hung up before TLS began. sslnegotiation=direct needs PostgreSQL 17: take it "
        "out of {setting} if it is there. Else it may be a proxy whose database is not running."
    ),
    r"timeout expired|server closed the connection": (
        "Nothing at host and port of {setting} answers as PostgreSQL does. Are they right, does a "
        "firewall let this machine through, is a database running behind the proxy?"
    ),
    r"too many (clients|connections)|connection slots|no more connections": (
        "The server has no connection left: see docs/recovery.md, Too many connections."
    ),
}
# What a name server says of a name that is not there, or not yet: a container may have to start.
UNKNOWN_NAME = re.compile(r"Name or service not known|Name does not resolve|nodename nor servname")
NEXT_STEP = "Is the database running, and is {setting} right?"


@dataclass(frozen=True)
class Refusal:
    """Why there is no login: `advice` says what to change, `is_final` that waiting is no use.

    `is_doubtful`: it is final unless a name that nobody knows now is known a moment later.
    """

    words: str
    advice: str
    is_final: bool
    is_doubtful: bool


class NoOptions(psycopg.OperationalError):
    """A pooler took the start-up options, and dropped them."""


def explain(
    error: DBAPIError, setting: str = "DATABASE_URL", addresses: int | None = None
) -> Refusal:
    """What a failed login means, of the URL in `setting`.

    Of several `addresses`, each must be hopeless: one that is not even known yet may let us in.
    Lists that do not fit each other lead to none of them.
    """
    words = str(error.orig)
    hosts = _words_by_host(words)
    enough = addresses is None or len(hosts) >= addresses or "could not match" in words
    is_final = enough and all(any(map(_advice_if_final, failures)) for failures in hosts.values())
    is_doubtful = enough and all(any(map(_is_hopeless, failures)) for failures in hosts.values())
    advice = _advice_if_final(words)
    if not is_final or advice is None:
        found = (advice for known, advice in HEALS.items() if re.search(known, words))
        advice = next(found, advice or NEXT_STEP)
    advice = advice.format(**_names(error.orig, setting))
    return Refusal(" ".join(words.split()), advice, is_final, is_doubtful)


def instruction(error: BaseException) -> str | None:
    """What to change, if that is the only way to a connection."""
    if not isinstance(error, DBAPIError) or not isinstance(error.orig, psycopg.Error):
        return None
    refusal = explain(error) if error.orig.sqlstate is None else None
    return refusal.advice if refusal and refusal.is_final else None


def _words_by_host(words: str) -> dict[tuple[str, str], list[str]]:
    _, *attempts = ATTEMPT.split(words)
    hosts: dict[tuple[str, str], list[str]] = {}
    # A name may stand for several addresses.
    for host, port, failure in zip(attempts[::3], attempts[1::3], attempts[2::3], strict=True):
        hosts.setdefault((host, port), []).append(failure)
    return hosts or {("", ""): [words]}


def _advice_if_final(words: str) -> str | None:
    return next((advice for known, advice in FINAL.items() if re.search(known, words)), None)


def _is_hopeless(words: str) -> bool:
    return bool(UNKNOWN_NAME.search(words) or _advice_if_final(words))


def _names(refusal: BaseException | None, setting: str) -> dict[str, str]:
    connection = getattr(refusal, "pgconn", None)
    role, database = (connection.user, connection.db) if connection else (b"", b"")
    return {
        "setting": setting,
        "role": quote(role.decode()) if role else "of the service",
        "database": quote(database.decode()) if database else "of the service",
        "pooler_advice": _advice_on_pooler(connection, setting),
    }


def _advice_on_pooler(connection: Any, setting: str) -> str:
    if setting == "DATABASE_URL_MIGRATIONS":
        return "Set it to the direct URL of the server"
    # Ours are not sent to what is known to be a pooler.
    if connection and b"search_path=" not in connection.options:
        return "Take the options out of it"
    return "Set DATABASE_POOLED=true, and DATABASE_URL_MIGRATIONS to the direct URL of the server"
