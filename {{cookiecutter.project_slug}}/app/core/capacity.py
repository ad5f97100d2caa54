"""How many connections the replicas may open, and how many the server has for them."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from app.config import PROJECT, Settings

# Of the server, of the database and of the role that the service logs in as: the limit as it is
# set (-1 is none), what the server keeps for itself, and what others use now.
LIMITS = text(
    "WITH others AS (SELECT datname, usename FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND application_name IS DISTINCT FROM :service)"
    " SELECT 'max_connections', current_setting('max_connections')::int,"
    " current_setting('superuser_reserved_connections')::int"
    " + coalesce(current_setting('reserved_connections', true), '0')::int,"
    " (SELECT count(*) FROM others)"
    " UNION ALL SELECT 'CONNECTION LIMIT of the database', datconnlimit, 0,"
    " (SELECT count(*) FROM others WHERE others.datname = pg_database.datname)"
    " FROM pg_database WHERE datname = current_database()"
    " UNION ALL SELECT 'CONNECTION LIMIT of the role', rolconnlimit, 0,"
    " (SELECT count(*) FROM others WHERE usename = rolname)"
    " FROM pg_roles WHERE rolname = coalesce(:role, current_user)"
)


@dataclass(frozen=True)
class Limit:
    """One that PostgreSQL has set, and how much of it is not ours."""

    name: str
    setting: int
    reserved: int
    others: int

    @property
    def free(self) -> int:
        """What is left for the service."""
        return max(self.setting - self.reserved - self.others, 0)


@dataclass(frozen=True)
class Capacity:
    """What `replicas` open at most, and the limit that they meet first."""

    settings: Settings
    replicas: int
    limit: Limit

    @property
    def of_a_worker(self) -> int:
        """Those of requests, and one for /readyz."""
        return self.settings.connections_of_a_worker + 1

    @property
    def of_a_replica(self) -> int:
        """Those of all its workers."""
        return self.settings.web_concurrency * self.of_a_worker

    @property
    def total(self) -> int:
        """Those of all replicas."""
        return self.replicas * self.of_a_replica

    @property
    def fits(self) -> bool:
        """Whether each replica gets all that it may open."""
        return self.total <= self.limit.free

    def __str__(self) -> str:
        """The sum, and what to change if it is too much."""
        settings, limit = self.settings, self.limit
        words = (
            f"{_counted(self.replicas, 'replica')} x {_counted(settings.web_concurrency, 'worker')}"
            f" x ({settings.database_pool_size} + {settings.database_pool_overflow} + 1 for "
            f"/readyz) = {self.total}"
        )
        if settings.database_pooled:
            return f"{words} connections to the pooler: its max_client_conn must be more"
        words += (
            f" of {limit.free} ({limit.name} {limit.setting}, {limit.reserved} reserved, "
            f"{limit.others} used by others)"
        )
        if not self.fits:
            return f"{words}. Too many: {', or '.join(self._changes())}"
        fitting = _counted(limit.free // self.of_a_replica, "replica")
        return f"{words}; {fitting} fit, old ones that a rollout replaces included"

    def _changes(self) -> list[str]:
        """Each of them alone is enough; the numbers are the largest that fit."""
        limit, found = self.limit, []
        share = limit.free // (self.replicas * self.settings.web_concurrency) - 1
        if share >= 1:
            size = (share + 1) // 2
            found.append(f"set DATABASE_POOL_SIZE={size} DATABASE_POOL_OVERFLOW={share - size}")
        if workers := limit.free // (self.replicas * self.of_a_worker):
            found.append(f"set WEB_CONCURRENCY={workers}")
        if fewer := limit.free // self.of_a_replica:
            found.append(f"run {_counted(fewer, 'replica')}")
        found.append(f"raise {limit.name} to {limit.setting + self.total - limit.free}")
        found.append("put a pooler in between")
        return found


def of(connection: Connection, settings: Settings, replicas: int) -> Capacity:
    """Ask the server that `connection` leads to."""
    role = settings.database_url.username if settings.database_url else None
    rows = connection.execute(LIMITS, {"role": role, "service": PROJECT["name"]})
    limits = [Limit(*row) for row in rows if row[1] >= 0]
    return Capacity(settings, replicas, min(limits, key=lambda limit: limit.free))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
