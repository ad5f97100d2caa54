"""What the server would say to a statement that runs in no transaction, as a dry run is one."""

import re
from typing import Any

from psycopg import Cursor, errors

from app.core.safety.statements import ALONE, CONCURRENTLY, TRANSACTION, Statement
from app.core.sql import NAME, named, split

WORD = re.compile(r"\bconcurrently\b", re.IGNORECASE)
BUILD = re.compile(
    rf"\bcreate\s+(?:unique\s+)?index\s+concurrently\b.*?\bon\s+(?:only\s+)?{NAME}",
    re.IGNORECASE | re.DOTALL,
)
INDEX = re.compile(
    r'\bconcurrently\s+(?:if\s+not\s+exists\s+)?("[^"]+"|(?!on\b)\w+)', re.IGNORECASE
)
DROP = re.compile(
    rf"\bdrop\s+index\s+concurrently\s+(?:if\s+exists\s+)?{NAME}\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
DETACH = re.compile(
    rf"\balter\s+table\s+(?:if\s+exists\s+)?{NAME}\s+detach\s+partition\b", re.IGNORECASE
)
VACUUM = re.compile(
    rf"\s*vacuum\b\s*(?:\([^)]*\))?(?:\s*\b(?:full|freeze|verbose|analyze)\b)*\s*{NAME}",
    re.IGNORECASE,
)
NEEDS_TRANSACTION = re.compile(
    r"\s*(savepoint|release|rollback\s+to|lock|declare\b(?!.*\bwith\s+hold))\b",
    re.IGNORECASE | re.DOTALL,
)
KIND = "SELECT relkind FROM pg_class WHERE oid = to_regclass(%s)"
HAS_DEFAULT_PARTITION = (
    "SELECT 1 FROM pg_partitioned_table WHERE partrelid = to_regclass(%s) AND partdefid <> 0"
)


def in_a_transaction(server: Cursor[Any], statement: str) -> Any:
    """The statement without what would end a transaction, and without what runs in none."""
    commands = split(statement)
    if not any(
        TRANSACTION.match(each) or ALONE.match(each) or CONCURRENTLY.search(each)
        for each in commands
    ):
        return statement
    runnable = []
    for each in commands:
        if TRANSACTION.match(each):
            continue
        if ALONE.match(each):
            runnable += _checked_instead(each)
        elif CONCURRENTLY.search(each) and not Statement(each, False).is_block:
            _refuse_what_the_server_refuses(server, each)
            runnable.append(WORD.sub("", each))
        else:
            runnable.append(each)
    return "; ".join(runnable) or "SELECT 1"


def _refuse_what_the_server_refuses(server: Cursor[Any], command: str) -> None:
    """Raise its error for a CONCURRENTLY that it takes only without that word."""
    if (found := BUILD.search(command)) and _answer(server, KIND, found) == "p":
        raise errors.FeatureNotSupported(
            f'cannot create index on partitioned table "{named(found)}" concurrently'
        )
    if found := DROP.search(command):
        if _answer(server, KIND, found) == "I":
            raise errors.FeatureNotSupported(
                f'cannot drop partitioned index "{named(found)}" concurrently'
            )
        if found["rest"].startswith(","):
            raise errors.FeatureNotSupported(
                "DROP INDEX CONCURRENTLY does not support dropping multiple objects"
            )
        if re.search(r"(?i)\bcascade\b", found["rest"]):
            raise errors.FeatureNotSupported("DROP INDEX CONCURRENTLY does not support CASCADE")
    if (found := DETACH.search(command)) and _answer(server, HAS_DEFAULT_PARTITION, found):
        raise errors.ObjectNotInPrerequisiteState(
            "cannot detach partitions concurrently when a default partition exists"
        )


def refuse_outside_of_a_transaction(commands: list[str]) -> None:
    """Raise the server's error for what it takes only in a transaction, as a dry run is one."""
    if len(commands) == 1 and (found := NEEDS_TRANSACTION.match(commands[0])):
        raise errors.NoActiveSqlTransaction(
            f"{found[1].upper()} can only be used in transaction blocks"
        )


def _checked_instead(command: str) -> list[str]:
    """What a transaction can run to see that the things exist which VACUUM names."""
    found = VACUUM.match(command)
    return [] if found is None else [f"SELECT '{_full_name(found)}'::regclass"]


def _answer(server: Cursor[Any], query: str, found: re.Match[str]) -> Any:
    row = server.execute(query, [_full_name(found)]).fetchone()
    return row[0] if row else None


def _full_name(found: re.Match[str]) -> str:
    return ".".join(filter(None, found.groups()[:2]))
