"""What a role may do in the schema, and the statements that give it what is missing.

The service's role (DATABASE_URL) reads and writes rows. The role of migrations, the same one
unless DATABASE_URL_MIGRATIONS says otherwise, owns the tables. docs/deploying.md, Two roles.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.core.database import quote
from app.core.database_errors import is_behind_the_models, is_without_privilege, reason
from app.models import db

ROWS = ("SELECT", "INSERT", "UPDATE", "DELETE")
VERSION_TABLE = "alembic_version"
ALWAYS_NEEDED = {"SCHEMA": ["USAGE"], "SEQUENCE": ["USAGE"], "FUNCTION": ["EXECUTE"]}

# Asked of the catalog, which everybody may read: without USAGE on a schema, a role cannot find its
# tables by name. `uses`: which table has a sequence or a function in a default or a check.
OBJECTS = text("""
WITH who AS (
    SELECT oid, quote_ident(rolname) AS role FROM pg_roles
    WHERE rolname = coalesce(CAST(:role AS name), current_user)
), home AS (
    SELECT * FROM pg_namespace WHERE nspname = :schema
), uses AS (
    SELECT refobjid AS used, relname
    FROM pg_depend JOIN (
        SELECT 'pg_attrdef'::regclass AS classid, oid AS objid, adrelid AS relation FROM pg_attrdef
        UNION ALL
        SELECT 'pg_constraint'::regclass, oid, conrelid FROM pg_constraint
    ) AS part USING (classid, objid)
    JOIN pg_class AS c ON c.oid = relation JOIN home ON home.oid = relnamespace
    WHERE refclassid IN ('pg_class'::regclass, 'pg_proc'::regclass)
), objects AS (
    SELECT 'SCHEMA' AS kind, home.oid, nspname AS name, quote_ident(nspname) AS path,
        nspowner AS owner,
        ARRAY(
            SELECT each FROM unnest(ARRAY['USAGE', 'CREATE']) AS each
            WHERE NOT has_schema_privilege(who.oid, home.oid, each)
        ) AS lacks
    FROM home, who
    UNION ALL
    SELECT CASE WHEN relkind IN ('v', 'm') THEN 'VIEW' ELSE 'TABLE' END,
        c.oid, relname, format('%I.%I', nspname, relname), relowner,
        ARRAY(
            SELECT each FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS each
            WHERE NOT has_table_privilege(who.oid, c.oid, each) AND (
                :whole_tables OR each = 'DELETE'
                OR NOT has_any_column_privilege(who.oid, c.oid, each)
            )
        )
    FROM pg_class AS c JOIN home ON home.oid = relnamespace, who
    WHERE relkind IN ('r', 'p', 'f', 'v', 'm')
    UNION ALL
    SELECT 'SEQUENCE', c.oid, relname, format('%I.%I', nspname, relname), relowner,
        ARRAY(
            SELECT each FROM unnest(ARRAY['USAGE', 'SELECT']) AS each
            WHERE NOT has_sequence_privilege(who.oid, c.oid, each)
        )
    FROM pg_class AS c JOIN home ON home.oid = relnamespace, who
    WHERE relkind = 'S'
    UNION ALL
    SELECT 'FUNCTION', p.oid, proname,
        format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(p.oid)), proowner,
        ARRAY['EXECUTE']
    FROM pg_proc AS p JOIN home ON home.oid = pronamespace, who
    WHERE prokind = 'f' AND NOT has_function_privilege(who.oid, p.oid, 'EXECUTE')
)
SELECT role, kind, name, path,
    CASE
        WHEN kind IN ('TABLE', 'VIEW') THEN ARRAY[name]
        WHEN lacks <> '{}' THEN ARRAY(SELECT relname FROM uses WHERE used = objects.oid)
        ELSE '{}'
    END AS used_by,
    quote_ident(pg_get_userbyid(
        CASE owner WHEN 'pg_database_owner'::regrole THEN datdba ELSE owner END
    )) AS owner,
    pg_has_role(owner, 'USAGE') AS is_ours,
    lacks || CASE WHEN pg_has_role(who.oid, owner, 'USAGE') THEN '{}' ELSE '{OWNERSHIP}'::text[] END
FROM objects, who, pg_database WHERE datname = current_database()
ORDER BY array_position('{SCHEMA,TABLE,VIEW,SEQUENCE,FUNCTION}', kind), path
""")

log = structlog.get_logger("privileges")


class Object(NamedTuple):
    """A schema, table, view, sequence or function, and what a role lacks on it.

    `role`, `path` and `owner` are as SQL spells them. `used_by`: the tables that cannot do
    without it, looked up if something lacks. `is_ours`: this connection may grant what it likes.
    """

    role: str
    kind: str
    name: str
    path: str
    used_by: list[str]
    owner: str
    is_ours: bool
    lacks: list[str]


@dataclass(frozen=True)
class Shortage:
    """What a role lacks: objects by kind and privileges. Its text says how to give it."""

    missing: dict[tuple[str, tuple[str, ...]], list[Object]]

    def __str__(self) -> str:
        objects = [each for group in self.missing.values() for each in group]
        owners = " and ".join(sorted({each.owner for each in objects}))
        lacks = "; ".join(
            f"{', '.join(privileges)} on {kind.lower()} {_paths(group)}"
            for (kind, privileges), group in self.missing.items()
        )
        return (
            f"Role {objects[0].role} lacks {lacks}. "
            f"Run as {owners}, or as a superuser: {' '.join(self.statements())}"
        )

    def hides_the_revision(self) -> bool:
        """Whether the role cannot read which revision the schema is at."""
        return any(
            each.name == VERSION_TABLE and "SELECT" in each.lacks
            for group in self.missing.values()
            for each in group
        )

    def statements(self) -> list[str]:
        """What gives it, ready to paste."""
        found = []
        for (kind, privileges), group in self.missing.items():
            role, what = group[0].role, kind.replace("VIEW", "TABLE")
            if privileges == ("OWNERSHIP",):
                found += [f"ALTER {what} {each.path} OWNER TO {role};" for each in group]
            else:
                given = ", ".join(privileges)
                found.append(f"GRANT {given} ON {what} {_paths(group)} TO {role};")
        return found


def of_service(connection: Connection, schema: str) -> Shortage | None:
    """What this connection's role lacks to work with the models.

    A privilege on some columns of a table is enough: somebody chose them.
    """
    objects = filter(_is_of_the_models, _objects(connection, schema))
    return _shortage(objects, _needed_to_serve)


def of_failed_statement(error: DBAPIError) -> Shortage | None:
    """What the service's role lacks on the objects that the error names; ends the transaction."""
    # Without USAGE on the schema, its tables look as if they were not there.
    if not is_without_privilege(error) and not is_behind_the_models(error):
        return None
    db.session.rollback()
    schema = current_app.config["SETTINGS"].schema_name
    words = reason(error)
    objects = _objects(db.session.connection(), schema, whole_tables=True)
    named = [each for each in objects if each.kind == "SCHEMA" or each.name in words]
    return _shortage(named, _needed_to_serve)


def of_migrations(connection: Connection, schema: str) -> Shortage | None:
    """What this connection's role lacks to create tables, and to change those of the models."""
    objects = filter(_is_of_the_models, _objects(connection, schema))
    return _shortage(objects, _needed_to_migrate)


def check_role(connection: Connection, role: str) -> None:
    """Raise `CommandError` unless the server has the role that SERVICE_ROLE names."""
    query = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)")
    with connection.begin():
        if connection.scalar(query, {"role": role}):
            return
    raise CommandError(
        f"SERVICE_ROLE is {role}, and the server has no such role. Nothing was changed. Create it "
        f"(CREATE ROLE {quote(role)} LOGIN PASSWORD '…';), or correct SERVICE_ROLE."
    )


def grant(connection: Connection, schema: str, role: str) -> None:
    """Give the service's role what it lacks, and by default the same on what is created later.

    What belongs to others is left to them; a warning says so if a model needs it.
    """
    with connection.begin():
        if role == connection.scalar(text("SELECT current_user")):
            return
        objects = _objects(connection, schema, role)
        ours = _shortage([each for each in objects if each.is_ours], _needed_of_all)
        others = _shortage(
            [each for each in objects if not each.is_ours and _is_of_the_models(each)],
            _needed_to_serve,
        )
        statements = [*by_default(schema, role), *_revocations(objects)]
        statements += ours.statements() if ours else []
        for statement in statements:
            connection.exec_driver_sql(statement)
    if ours:
        log.info(f"for SERVICE_ROLE: {' '.join(ours.statements())}")
    if others:
        log.warning(f"SERVICE_ROLE: only others may give what is missing. {others}")


def recipe(schema: str, role: str) -> list[str]:
    """The statements of `flask db upgrade --sql`, which cannot look into the database."""
    home, to = quote(schema), quote(role)
    return [
        f"GRANT USAGE ON SCHEMA {home} TO {to}",
        f"GRANT {', '.join(ROWS)} ON ALL TABLES IN SCHEMA {home} TO {to}",
        f"REVOKE INSERT, UPDATE, DELETE ON {home}.{VERSION_TABLE} FROM {to}",
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {home} TO {to}",
        *by_default(schema, role),
    ]


def by_default(schema: str, role: str) -> list[str]:
    """What gives a role its privileges on all that this connection's role creates later."""
    home, to = quote(schema), quote(role)
    return [
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {home} GRANT {given} TO {to}"
        for given in (f"{', '.join(ROWS)} ON TABLES", "USAGE, SELECT ON SEQUENCES")
    ]


def _objects(
    connection: Connection, schema: str, role: str | None = None, whole_tables: bool = False
) -> list[Object]:
    values = {"schema": schema, "role": role, "whole_tables": whole_tables}
    return [Object(*row) for row in connection.execute(OBJECTS, values)]


def _is_of_the_models(each: Object) -> bool:
    models = {*db.metadata.tables, VERSION_TABLE}
    return each.kind == "SCHEMA" or not models.isdisjoint(each.used_by)


def _needed_to_serve(each: Object) -> Collection[str]:
    if each.kind in ALWAYS_NEEDED:
        return ALWAYS_NEEDED[each.kind]
    if (stated := _stated(each.name)) is not None:
        return stated
    return ["SELECT"] if each.kind == "VIEW" else ROWS


def _needed_of_all(each: Object) -> Collection[str]:
    if each.kind == "FUNCTION" and not each.used_by:
        return []  # Everybody may call a function unless somebody chose otherwise.
    return ["USAGE", "SELECT"] if each.kind == "SEQUENCE" else _needed_to_serve(each)


def _needed_to_migrate(each: Object) -> Collection[str]:
    if each.kind == "SCHEMA":
        return ["USAGE", "CREATE"]
    if each.name == VERSION_TABLE:
        return ROWS
    return ["OWNERSHIP"] if each.kind in ("TABLE", "VIEW") else []


def _stated(table: str) -> Collection[str] | None:
    """What a model says that the service needs: `{"info": {"privileges": ["SELECT"]}}`."""
    if table == VERSION_TABLE:
        return ["SELECT"]
    model = db.metadata.tables.get(table)
    return None if model is None else model.info.get("privileges")


def _revocations(objects: Iterable[Object]) -> list[str]:
    """What takes away the privileges that a table got by default, and a model does not want."""
    found = []
    for each in objects:
        stated = _stated(each.name)
        if stated is None or each.kind != "TABLE" or not each.is_ours or each.owner == each.role:
            continue
        excess = [name for name in ROWS if name not in stated and name not in each.lacks]
        if excess:
            found.append(f"REVOKE {', '.join(excess)} ON {each.path} FROM {each.role}")
    return found


def _shortage(
    objects: Iterable[Object], needed: Callable[[Object], Collection[str]]
) -> Shortage | None:
    missing: dict[tuple[str, tuple[str, ...]], list[Object]] = {}
    for each in objects:
        if privileges := tuple(name for name in needed(each) if name in each.lacks):
            missing.setdefault((each.kind, privileges), []).append(each)
    return Shortage(missing) if missing else None


def _paths(objects: Iterable[Object]) -> str:
    return ", ".join(each.path for each in objects)
