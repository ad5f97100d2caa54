"""What an error of the database means."""

import re

from psycopg import errors
from sqlalchemy.exc import DBAPIError


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
