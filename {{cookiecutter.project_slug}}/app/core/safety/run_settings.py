"""The settings of a connection on which every migration relies: the server is asked for them."""

import re
from typing import Any

from psycopg import Cursor

from app.core.database import RESET_SESSION
from app.core.safety.statements import Statement

SETTINGS = (
    "lock_timeout",
    "statement_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
    "search_path",
    "role",
    "session_authorization",
    "session_replication_role",
)
# The bulk of all statements; the server need not be asked whether they changed one.
KEEPS_SETTINGS = re.compile(
    r"\s*((create|alter|drop)\s+(unlogged\s+|unique\s+)?(table|index)|comment)\b"
    r"(?!.*\b(select|execute|values)\b)",
    re.IGNORECASE | re.DOTALL,
)
READ_SETTINGS = "SELECT " + ", ".join(f"current_setting('{name}', true)" for name in SETTINGS)
# What ALTER ROLE … SET and ALTER DATABASE … SET leave behind.
READ_DEFAULTS = (
    "SELECT coalesce(rolname, 'all roles'), unnest(setconfig)"
    " FROM pg_db_role_setting LEFT JOIN pg_roles r ON r.oid = setrole"
)


class RunSettings:
    """What a revision changes of them, by SET, set_config() or whatever."""

    def __init__(self, server: Cursor[Any]) -> None:
        self.server = server
        # The name of each that was changed, with a word about it.
        self._changes: dict[str, str] = {}
        self._before: tuple[Any, ...] = ()
        self._defaults = self._read_defaults()

    def start(self) -> None:
        """A revision begins."""
        self._changes = {}

    def before_statement(self, commands: list[str]) -> None:
        """These commands are about to run."""
        harmless = all(KEEPS_SETTINGS.match(each) for each in commands)
        self._before = () if harmless else self._read()

    def after_statement(self) -> None:
        """They have ended well."""
        if not self._before:
            return
        for name, old, new in zip(SETTINGS, self._before, self._read(), strict=True):
            if old != new:
                change = f" from {old or 'nothing'} to {new or 'nothing'}"
                self._changes.setdefault(name, change)

    def end(self, statements: list[Statement]) -> dict[str, str]:
        """A revision has sent these; what it changed, by the names of the settings."""
        if not all(KEEPS_SETTINGS.match(each.text) for each in statements):
            before, self._defaults = self._defaults, self._read_defaults()
            for role, setting in self._defaults - before:
                name = setting.split("=")[0]
                if name in SETTINGS:
                    self._changes[name] = f" for {role}, for good"
            self.reset()
        return self._changes

    def reset(self) -> None:
        """All is as in the beginning, as `flask db upgrade` makes it after a revision, too."""
        self.server.execute(RESET_SESSION)

    def _read(self) -> tuple[Any, ...]:
        return self.server.execute(READ_SETTINGS).fetchone() or ()

    def _read_defaults(self) -> set[tuple[str, str]]:
        return {*self.server.execute(READ_DEFAULTS).fetchall()}
