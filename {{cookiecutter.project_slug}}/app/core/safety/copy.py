"""A copy of a schema's structure, without rows: what a dry run works on instead of the real thing.

The server spells every object itself, to somebody whose search_path is the source: there the names
of the schema's own objects need no schema. The same words, said to somebody whose search_path is
the target, make the copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.core.database import quote
from app.core.database_errors import reason

# What the schema holds, without what belongs to an extension: that is there already.
OURS = """
    WITH namespace AS (SELECT oid, nspname FROM pg_namespace WHERE nspname = :schema),
    members AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e'),
    relations AS (SELECT * FROM pg_class WHERE relnamespace = (SELECT oid FROM namespace)
        AND NOT ('pg_class'::regclass, oid) IN (SELECT classid, objid FROM members)),
    types AS (SELECT * FROM pg_type WHERE typnamespace = (SELECT oid FROM namespace)
        AND NOT ('pg_type'::regclass, oid) IN (SELECT classid, objid FROM members)),
    routines AS (SELECT * FROM pg_proc WHERE pronamespace = (SELECT oid FROM namespace)
        AND NOT ('pg_proc'::regclass, oid) IN (SELECT classid, objid FROM members))
"""

# Kinds that a copy would lack.
UNKNOWN = r"""
    SELECT 'foreign table ' || relname FROM relations WHERE relkind = 'f'
    UNION ALL SELECT 'typed table ' || relname FROM relations WHERE reloftype <> 0
    UNION ALL SELECT 'row level security of ' || relname FROM relations WHERE relrowsecurity
    UNION ALL SELECT 'policy ' || polname FROM pg_policy JOIN relations c ON c.oid = polrelid
    UNION ALL SELECT 'rule ' || rulename FROM pg_rewrite JOIN relations c ON c.oid = ev_class
        WHERE rulename <> '_RETURN'
    UNION ALL SELECT 'aggregate ' || proname FROM routines WHERE prokind = 'a'
    UNION ALL SELECT format('function %s that names the schema', proname) FROM routines, namespace
        WHERE concat(prosrc, array_to_string(proconfig, ' '))
        ~ format('(\m%1$s"?\.|search_path=.*\m%1$s\M)', nspname)
    UNION ALL SELECT 'type ' || t.typname FROM types t WHERE t.typtype = 'r'
        OR t.typtype = 'b' AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
    UNION ALL SELECT objects.kind || ' ' || objects.name FROM (
        SELECT 'pg_operator'::regclass, oid, oprnamespace, 'operator', oprname FROM pg_operator
        UNION ALL SELECT 'pg_opclass'::regclass, oid, opcnamespace, 'operator class', opcname
            FROM pg_opclass
        UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace, 'collation', collname
            FROM pg_collation
        UNION ALL SELECT 'pg_conversion'::regclass, oid, connamespace, 'conversion', conname
            FROM pg_conversion
        UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace, 'text search', cfgname
            FROM pg_ts_config
        UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace, 'text search', dictname
            FROM pg_ts_dict
        ) objects (catalog, oid, namespace, kind, name)
        WHERE namespace = (SELECT oid FROM namespace)
        AND NOT (catalog, oid) IN (SELECT classid, objid FROM members)
    UNION ALL SELECT format('table %s, which needs a table of another schema (%s)', c.relname,
        other.oid::regclass) FROM relations c
        JOIN (SELECT conrelid, confrelid FROM pg_constraint WHERE contype = 'f'
            UNION ALL SELECT inhrelid, inhparent FROM pg_inherits
            UNION ALL SELECT r.ev_class, d.refobjid FROM pg_rewrite r JOIN pg_depend d
                ON (d.classid, d.objid) = ('pg_rewrite'::regclass, r.oid)
                AND d.refclassid = 'pg_class'::regclass
        ) needs (one, another) ON needs.one = c.oid
        JOIN pg_class other ON other.oid = needs.another
        JOIN pg_namespace n ON n.oid = other.relnamespace
        WHERE other.relnamespace <> c.relnamespace
        AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        AND NOT ('pg_class'::regclass, other.oid) IN (SELECT classid, objid FROM members)
"""

# A dependency is one of parts: a view's is its rule's, a default's its table's.
WHOLES = """
    SELECT oid AS part, oid AS whole FROM relations
    UNION ALL SELECT oid, oid FROM routines
    UNION ALL SELECT t.oid, coalesce(nullif(coalesce(e.typrelid, t.typrelid), 0), e.oid, t.oid)
        FROM types t LEFT JOIN pg_type e ON e.typarray = t.oid
    UNION ALL SELECT k.oid, CASE contypid WHEN 0 THEN k.oid ELSE contypid END
        FROM pg_constraint k WHERE contypid <> 0 OR contype IN ('p', 'u', 'x')
    UNION ALL SELECT d.oid, d.adrelid FROM pg_attrdef d
    UNION ALL SELECT r.oid, r.ev_class FROM pg_rewrite r
"""
DEPENDENCIES = f"""
    SELECT DISTINCT one.whole, other.whole FROM pg_depend d
    JOIN ({WHOLES}) one ON one.part = d.objid
    JOIN ({WHOLES}) other ON other.part = d.refobjid
    WHERE one.whole <> other.whole
"""

COUNTING = """
    format('INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s%s', q.seqincrement,
        q.seqmin, q.seqmax, q.seqstart, q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' END)
"""
SEQUENCES = f"""
    SELECT format('CREATE SEQUENCE %I AS %s %s', c.relname, format_type(q.seqtypid, NULL),
        {COUNTING})
    FROM relations c JOIN pg_sequence q ON q.seqrelid = c.oid
    WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'i'
        AND (d.classid, d.objid) = ('pg_class'::regclass, c.oid))
"""

# Of the relation c. What a child inherits comes with its parents; a partition has all of its own.
COLUMNS = f"""
    SELECT string_agg(format('%I %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
        (SELECT format(' COLLATE %s', a.attcollation::regcollation) FROM pg_type t
            WHERE t.oid = a.atttypid AND t.typcollation <> a.attcollation),
        CASE
            WHEN a.attgenerated = 's' THEN format(' GENERATED ALWAYS AS (%s) STORED', d.said)
            WHEN a.attgenerated = 'v' THEN format(' GENERATED ALWAYS AS (%s) VIRTUAL', d.said)
            WHEN d.said IS NOT NULL THEN ' DEFAULT ' || d.said
            WHEN i.said IS NOT NULL THEN format(' GENERATED %s AS IDENTITY (%s)',
                CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, i.said)
        END,
        CASE WHEN a.attnotnull AND coalesce(n.convalidated, true) THEN format('%s NOT NULL%s',
            ' CONSTRAINT ' || quote_ident(n.conname),
            CASE WHEN n.connoinherit THEN ' NO INHERIT' END) END
        ), ', ' ORDER BY a.attnum)
    FROM pg_attribute a
    LEFT JOIN LATERAL (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
        WHERE (adrelid, adnum) = (a.attrelid, a.attnum)) d (said) ON true
    LEFT JOIN LATERAL (SELECT format('SEQUENCE NAME %I %s', s.relname, {COUNTING})
        FROM pg_depend o JOIN pg_class s ON s.oid = o.objid JOIN pg_sequence q ON q.seqrelid = s.oid
        WHERE (o.refclassid, o.refobjid, o.refobjsubid, o.classid, o.deptype)
        = ('pg_class'::regclass, a.attrelid, a.attnum, 'pg_class'::regclass, 'i')) i (said) ON true
    LEFT JOIN pg_constraint n
        ON (n.conrelid, n.contype, n.conkey) = (a.attrelid, 'n', ARRAY[a.attnum])
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    AND (a.attislocal OR c.relispartition)
"""
PARENTS = """
    SELECT string_agg(h.inhparent::regclass::text, ', ' ORDER BY h.inhseqno) FROM pg_inherits h
    WHERE h.inhrelid = c.oid
"""
# What may need others of its sort to be there before; each by its object id.
SORTED = {
    "enums": """
        SELECT t.oid, format('CREATE TYPE %I AS ENUM (%s)', t.typname,
            (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
            FROM pg_enum e WHERE e.enumtypid = t.oid))
        FROM types t WHERE t.typtype = 'e'
    """,
    "domains": """
        SELECT t.oid, format('CREATE DOMAIN %I AS %s%s%s%s%s', t.typname,
            format_type(t.typbasetype, t.typtypmod),
            (SELECT format(' COLLATE %s', t.typcollation::regcollation) FROM pg_type b
                WHERE b.oid = t.typbasetype AND b.typcollation <> t.typcollation),
            ' DEFAULT ' || pg_get_expr(t.typdefaultbin, 'pg_type'::regclass),
            CASE WHEN t.typnotnull THEN ' NOT NULL' END,
            (SELECT string_agg(format(' CONSTRAINT %I %s', k.conname,
                pg_get_constraintdef(k.oid)), '') FROM pg_constraint k
            WHERE k.contypid = t.oid AND k.contype = 'c' AND k.convalidated))
        FROM types t WHERE t.typtype = 'd'
    """,
    "composite types": f"""
        SELECT c.oid, format('CREATE TYPE %I AS (%s)', c.relname, ({COLUMNS}))
        FROM relations c WHERE c.relkind = 'c'
    """,
    # The server puts the schema in front of the name, whatever the search_path.
    "routines": """
        SELECT p.oid, 'CREATE ' || kind || ' ' || substr(pg_get_functiondef(p.oid),
            length(format('CREATE OR REPLACE %s %I.', kind, (SELECT nspname FROM namespace))) + 1)
        FROM routines p
        CROSS JOIN LATERAL (
            SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END) kinds (kind)
        WHERE p.prokind <> 'a'
    """,
    "tables": f"""
        SELECT c.oid, format('CREATE %sTABLE %I (%s)%s%s%s',
            CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED ' END, c.relname, ({COLUMNS}),
            CASE WHEN NOT c.relispartition THEN ' INHERITS (' || parents.names || ')' END,
            ' PARTITION BY ' || pg_get_partkeydef(c.oid),
            CASE WHEN c.relispartition THEN format('; ALTER TABLE ONLY %s ATTACH PARTITION %I %s',
                parents.names, c.relname, pg_get_expr(c.relpartbound, c.oid)) END)
        FROM relations c CROSS JOIN LATERAL ({PARENTS}) parents (names)
        WHERE c.relkind IN ('r', 'p')
    """,
    # Of each partition alone: under its own name, which is the server's choice otherwise.
    "keys": """
        SELECT k.oid, format('ALTER TABLE ONLY %I ADD CONSTRAINT %I %s',
            c.relname, k.conname, pg_get_constraintdef(k.oid))
        FROM pg_constraint k JOIN relations c ON c.oid = k.conrelid
        WHERE k.contype IN ('p', 'u', 'x')
    """,
    "views": """
        SELECT c.oid, format('CREATE %sVIEW %I%s AS %s%s',
            CASE c.relkind WHEN 'm' THEN 'MATERIALIZED ' END, c.relname,
            ' WITH (' || array_to_string(c.reloptions, ', ') || ')',
            rtrim(pg_get_viewdef(c.oid), ';'),
            CASE WHEN NOT c.relispopulated THEN ' WITH NO DATA' END)
        FROM relations c WHERE c.relkind IN ('v', 'm')
    """,
}

# In this order, when all of that is there.
FINISHING = {
    "inherited columns of their own mind": """
        SELECT format('ALTER TABLE ONLY %I ALTER %I %s', c.relname, a.attname, changes.words)
        FROM relations c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
        LEFT JOIN pg_constraint n
            ON (n.conrelid, n.contype, n.conkey) = (a.attrelid, 'n', ARRAY[a.attnum])
        CROSS JOIN LATERAL (SELECT CASE WHEN d.oid IS NULL THEN 'DROP DEFAULT'
            ELSE 'SET DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) END
            UNION ALL SELECT 'SET NOT NULL' WHERE a.attnotnull
                AND coalesce(n.conislocal, true)) changes (words)
        WHERE NOT a.attislocal AND NOT c.relispartition AND c.relkind IN ('r', 'p')
        AND a.attgenerated = ''
    """,
    "defaults of views": """
        SELECT format('ALTER VIEW %I ALTER %I SET DEFAULT %s', c.relname, a.attname,
            pg_get_expr(d.adbin, d.adrelid))
        FROM relations c JOIN pg_attribute a ON a.attrelid = c.oid
        JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum) WHERE c.relkind = 'v'
    """,
    # Also NOT NULL that is NOT VALID, which CREATE TABLE would make valid.
    "checks": """
        SELECT format('ALTER TABLE %I ADD CONSTRAINT %I %s', c.relname, k.conname,
            pg_get_constraintdef(k.oid))
        FROM pg_constraint k JOIN relations c ON c.oid = k.conrelid
        WHERE (k.contype = 'c' OR k.contype = 'n' AND NOT k.convalidated)
        AND (k.conislocal OR k.coninhcount = 0) ORDER BY k.oid
    """,
    "checks of domains that are not valid": """
        SELECT format('ALTER DOMAIN %I ADD CONSTRAINT %I %s', t.typname, k.conname,
            pg_get_constraintdef(k.oid))
        FROM pg_constraint k JOIN types t ON t.oid = k.contypid WHERE NOT k.convalidated
    """,
    "indexes": """
        SELECT pg_get_indexdef(i.indexrelid, 0, true)
        FROM pg_index i JOIN relations c ON c.oid = i.indexrelid
        WHERE (i.indisvalid OR c.relkind = 'I')
        AND NOT EXISTS (SELECT FROM pg_constraint k
            WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')) ORDER BY c.oid
    """,
    "indexes of partitions": """
        SELECT format('ALTER INDEX %s ATTACH PARTITION %I', h.inhparent::regclass, c.relname)
        FROM pg_inherits h JOIN relations c ON c.oid = h.inhrelid
        JOIN pg_index i ON i.indexrelid = c.oid WHERE i.indisvalid OR c.relkind = 'I'
    """,
    "foreign keys": """
        SELECT format('ALTER TABLE %I ADD CONSTRAINT %I %s', c.relname, k.conname,
            pg_get_constraintdef(k.oid))
        FROM pg_constraint k JOIN relations c ON c.oid = k.conrelid
        WHERE k.contype = 'f' AND k.conparentid = 0 ORDER BY k.oid
    """,
    "triggers": """
        SELECT pg_get_triggerdef(t.oid, true)
        FROM pg_trigger t JOIN relations c ON c.oid = t.tgrelid
        WHERE NOT t.tgisinternal AND t.tgparentid = 0 ORDER BY t.oid
    """,
    "triggers that are not simply on": """
        SELECT format('ALTER TABLE ONLY %I %s TRIGGER %I', c.relname, CASE t.tgenabled
            WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END,
            t.tgname)
        FROM pg_trigger t JOIN relations c ON c.oid = t.tgrelid
        WHERE NOT t.tgisinternal AND t.tgenabled <> 'O'
    """,
    # The schema stands in front of the name here, too.
    "statistics": """
        SELECT format('CREATE STATISTICS %I%s', s.stxname, substr(pg_get_statisticsobjdef(s.oid),
            length(format('CREATE STATISTICS %I.%I', n.nspname, s.stxname)) + 1))
        FROM pg_statistic_ext s JOIN namespace n ON n.oid = s.stxnamespace
    """,
    "owners of sequences": """
        SELECT format('ALTER SEQUENCE %I OWNED BY %s.%I', c.relname, d.refobjid::regclass,
            a.attname)
        FROM relations c JOIN pg_depend d ON (d.classid, d.objid, d.refclassid, d.deptype)
            = ('pg_class'::regclass, c.oid, 'pg_class'::regclass, 'a')
        JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.refobjid, d.refobjsubid)
        WHERE c.relkind = 'S'
    """,
}


EXTENSIONS = "SELECT extname FROM pg_extension JOIN namespace n ON n.oid = extnamespace"
# How much there is that needs something of the source.
NEEDED = """
    SELECT count(*) FROM pg_depend WHERE refobjid IN (SELECT oid FROM relations
        UNION ALL SELECT oid FROM types UNION ALL SELECT oid FROM routines)
"""
SETTINGS = {"search_path": "", "client_min_messages": "warning", "check_function_bodies": "off"}


class CannotCopy(Exception):  # noqa: N818 - a verdict, not a mistake
    """A copy would lack something or get it wrong; the message says what."""


def copy(connection: Connection, source: str, target: str) -> None:
    """Make in the empty schema `target` what `source` holds, without its rows.

    Takes no lock on `source` that its users would notice. Storage parameters, comments, owners and
    privileges are left out, and so are indexes that are not valid. Raises `CannotCopy`; the
    transaction then goes on as if nothing had been tried.
    """
    try:
        with connection.begin_nested(), _settings_of_its_own(connection):
            _copy(connection, source, target)
    except DBAPIError as error:
        raise CannotCopy(f"the copy of schema {source} fails: {reason(error)}") from error


def _copy(connection: Connection, source: str, target: str) -> None:
    _look_in(connection, source)
    for what in _column(connection, source, UNKNOWN):
        raise CannotCopy(f"schema {source} has a thing that is not copied: {what}")
    script = ";\n".join(_statements(connection, source))
    needed = _column(connection, source, NEEDED)
    # The types and operators of an extension are used where they are.
    shared = [source] if _column(connection, source, EXTENSIONS) else []
    _look_in(connection, target, *shared)
    connection.exec_driver_sql(script, execution_options={"no_parameters": True})
    if _column(connection, source, NEEDED) != needed:
        raise CannotCopy(f"a copy of schema {source} would need what is in {source} itself")


def _statements(connection: Connection, source: str) -> Iterator[str]:
    yield from _column(connection, source, SEQUENCES)
    created: dict[int, str] = {}
    for query in SORTED.values():
        created |= dict(_rows(connection, source, query))
    needs: dict[int, set[int]] = {oid: set() for oid in sorted(created)}
    for one, other in _rows(connection, source, DEPENDENCIES):
        if one in needs and other in needs:
            needs[one].add(other)
    try:
        yield from (created[oid] for oid in TopologicalSorter(needs).static_order())
    except CycleError:
        raise CannotCopy(f"schema {source} has things that need each other") from None
    for query in FINISHING.values():
        yield from _column(connection, source, query)


def _rows(connection: Connection, source: str, query: str) -> list[Any]:
    return [*connection.execute(text(f"{OURS}{query}"), {"schema": source})]


def _column(connection: Connection, source: str, query: str) -> list[Any]:
    return [value for (value,) in _rows(connection, source, query)]


def _look_in(connection: Connection, *schemas: str) -> None:
    path = ", ".join(quote(schema) for schema in schemas)
    connection.exec_driver_sql(f"SET LOCAL search_path = {path}")


@contextmanager
def _settings_of_its_own(connection: Connection) -> Iterator[None]:
    """Bodies of functions are not checked, nor does the server talk; then all is as before."""
    read = "SELECT " + ", ".join(f"current_setting('{name}')" for name in SETTINGS)
    before = dict(zip(SETTINGS, connection.exec_driver_sql(read).one(), strict=True))
    _set(connection, SETTINGS)
    yield
    _set(connection, before)


def _set(connection: Connection, settings: dict[str, str]) -> None:
    calls = ", ".join(f"set_config('{name}', :{name}, true)" for name in settings)
    connection.execute(text(f"SELECT {calls}"), settings)
