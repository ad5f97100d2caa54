"""What an error of the database means."""

import re

import psycopg
from psycopg import errors
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# What may be over in a moment, and what the client is told; docs/operating.md has what to do.
# The first that fits counts.
PASSING: list[tuple[type[BaseException] | tuple[type[BaseException], ...], str]] = [
    (PoolTimeout, "The service has no free database connection."),
    (errors.LockNotAvailable, "Another transaction holds what this request needs."),
    (
        (errors.DeadlockDetected, errors.SerializationFailure),
        "Another transaction stood in the way.",
    ),
    (errors.QueryCanceled, "The database took too long."),
    (
        (errors.DiskFull, errors.OutOfMemory, errors.TooManyConnections),
        "The database has no room for more.",
    ),
]
READ_ONLY = "The database is read-only."
UNAVAILABLE = "The database is not available."
# psycopg calls these operational too: a limit of PostgreSQL's, an object in the wrong state.
NOT_PASSING = ("54", "55")
# A value that PostgreSQL cannot store: nobody but the client can help.
WRONG_VALUES: list[tuple[type[BaseException], str]] = [
    (errors.StringDataRightTruncation, "A text is too long."),
    (errors.ProgramLimitExceeded, "A value is too large."),
    (errors.NumericValueOutOfRange, "A number is too large."),
    (errors.InvalidTextRepresentation, "A value has the wrong form."),
    (errors.InvalidDatetimeFormat, "A date or time has the wrong form."),
    (errors.DatetimeFieldOverflow, "A date or time does not exist."),
    (errors.CharacterNotInRepertoire, "A text has a character that cannot be stored."),
    (errors.UntranslatableCharacter, "A text has a character that cannot be stored."),
]


def passing(error: BaseException) -> str | None:
    """What to tell a client who may try again, or None if trying again would not help."""
    if isinstance(error, PendingRollbackError):
        # The connection was lost, and the code went on; any other cause is a mistake of the code.
        return UNAVAILABLE if error.code == "8s2b" else None
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, errors.ReadOnlySqlTransaction):
        return READ_ONLY
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return UNAVAILABLE
    for kinds, words in PASSING:
        if isinstance(cause, kinds):
            return words
    if not isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
        return None
    return None if (cause.sqlstate or "").startswith(NOT_PASSING) else UNAVAILABLE


def wrong_value(error: DBAPIError) -> str | None:
    """What is wrong with a value that the client sent, or None if it is a mistake of the code."""
    if isinstance(error.orig, psycopg.DataError) and error.orig.sqlstate is None:
        return reason(error)  # found by psycopg before it was sent
    return next((words for kind, words in WRONG_VALUES if isinstance(error.orig, kind)), None)


def reason(error: BaseException) -> str:
    """The first line of what the server, or else the error itself, says."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def explained(error: BaseException) -> str:
    """All that the server says: which value, which view, what it suggests."""
    diagnosis = getattr(getattr(error, "orig", None), "diag", None)
    more = ((name, getattr(diagnosis, f"message_{name}", None)) for name in ("detail", "hint"))
    lines = [f"{name.upper()}: {words}" for name, words in more if words]
    return "\n  ".join([reason(error), *lines])


def conflicting_columns(error: DBAPIError) -> list[str]:
    """The columns whose values a unique constraint or a foreign key refused."""
    if not isinstance(error.orig, errors.UniqueViolation | errors.ForeignKeyViolation):
        return []
    # "Key (isbn)=(9780385474542) already exists.", in the language of the server.
    key = re.search(r"\((.+?)\)=\(", error.orig.diag.message_detail or "")
    return key[1].split(", ") if key else []


def is_in_use(error: DBAPIError) -> bool:
    """True when others held what a statement needed: the same statement may succeed later."""
    return isinstance(error.orig, errors.LockNotAvailable | errors.DeadlockDetected)


def is_behind_the_models(error: DBAPIError) -> bool:
    """True when a statement failed because a table, a column or the schema is not there."""
    missing = errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName
    return isinstance(error.orig, missing)


def is_without_privilege(error: DBAPIError) -> bool:
    """True when the role may not do what it tried."""
    return isinstance(error.orig, errors.InsufficientPrivilege)
