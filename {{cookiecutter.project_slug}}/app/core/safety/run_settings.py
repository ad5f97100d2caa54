"""The settings of a connection on which every migration relies: the server is asked for them."""

from typing import Any

from psycopg import Cursor

from app.core.database import RESET_SESSION

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
        self.changes: dict[str, str] = {}
        self._now: tuple[Any, ...] = ()
        self._defaults: set[tuple[str, str]] = set()

    def start(self) -> None:
        """A revision begins."""
        self.changes = {}
        self._defaults = self._read_defaults()

    def before_statement(self) -> None:
        """A statement begins."""
        self._now = self._read()

    def after_statement(self) -> None:
        """A statement has ended well."""
        for name, old, new in zip(SETTINGS, self._now, self._read(), strict=True):
            if old != new:
                change = f" from {old or 'nothing'} to {new or 'nothing'}"
                self.changes.setdefault(name, change)

    def end(self) -> None:
        """A revision has ended: all is as before, as `flask db upgrade` makes it, too."""
        for role, setting in self._read_defaults() - self._defaults:
            name = setting.split("=")[0]
            if name in SETTINGS:
                self.changes[name] = f" for {role}, for good"
        self.server.execute(RESET_SESSION)

    def _read(self) -> tuple[Any, ...]:
        return self.server.execute(READ_SETTINGS).fetchone() or ()

    def _read_defaults(self) -> set[tuple[str, str]]:
        return {*self.server.execute(READ_DEFAULTS).fetchall()}
