"""What to look for in the rows before a constraint meets them; app/core/rows.py looks."""

from collections.abc import Sequence
from typing import Any

from alembic.operations import ops
from sqlalchemy.dialects import postgresql

from app.core.database import quote
from app.core.migrations.reversible import Look


def not_null(table: str, column: str) -> Look:
    """Rows without a value."""
    where = f"{quote(column)} IS NULL"
    fill = f"backfill({table!r}, {quote(column) + ' = …'!r}, where={where!r})"
    return Look(table, where, breaks=f"NOT NULL of {column}", fill=fill)


def check(create: ops.CreateCheckConstraintOp) -> Look:
    """Rows for which the condition is false; one that is unknown passes."""
    table = create.table_name
    where = f"NOT ({spelled(create.condition)})"
    fill = f"backfill({table!r}, '… = …', where={where!r})"
    return Look(table, where, breaks=str(create.constraint_name), fill=fill)


def foreign_key(create: ops.CreateForeignKeyOp, *, referred_is_new: bool) -> Look:
    """Rows that refer to nothing; where this change creates what they refer to, all that refer."""
    table = create.source_table
    pairs = [*zip(create.local_cols, create.remote_cols, strict=True)]
    given = " AND ".join(f"{quote(table)}.{quote(ours)} IS NOT NULL" for ours, _ in pairs)
    same = " AND ".join(
        f"referred.{quote(theirs)} = {quote(table)}.{quote(ours)}" for ours, theirs in pairs
    )
    referred = f"SELECT FROM {quote(create.referent_table)} AS referred WHERE {same}"
    where = given if referred_is_new else f"{given} AND NOT EXISTS ({referred})"
    return Look(
        table,
        where,
        breaks=str(create.constraint_name),
        show=[quote(ours) for ours, _ in pairs],
        find=f"SELECT * FROM {quote(table)} WHERE {where}",
    )


def unique(
    name: str, table: str, columns: Sequence[Any], *, where: Any = None, nulls_differ: bool = True
) -> Look:
    """Rows that have the same values as another one; `columns` may be expressions."""
    values = [quote(each) if isinstance(each, str) else spelled(each) for each in columns]
    listed = ", ".join(values)
    conditions = [] if where is None else [f"({spelled(where)})"]
    # NULLs differ from each other: IN does not find them, and the query is not to show them.
    known = [f"{each} IS NOT NULL" for each in values] if nulls_differ else []
    wheres = [*conditions, *known]
    among = f" WHERE {' AND '.join(wheres)}" if wheres else ""
    repeated = f"FROM {quote(table)}{among} GROUP BY {listed} HAVING count(*) > 1"
    if nulls_differ:
        found = f"({listed}) IN (SELECT {listed} {repeated})"
    else:
        same = " AND ".join(f"repeated.v{n} IS NOT DISTINCT FROM {v}" for n, v in enumerate(values))
        named = ", ".join(f"{value} AS v{number}" for number, value in enumerate(values))
        found = f"EXISTS (SELECT FROM (SELECT {named} {repeated}) AS repeated WHERE {same})"
    return Look(
        table,
        " AND ".join([*conditions, found]),
        breaks=name,
        show=values,
        find=f"SELECT {listed}, count(*) {repeated}",
    )


def spelled(expression: Any) -> str:
    """An expression of a model as SQL of PostgreSQL, for text that no driver looks at."""
    if isinstance(expression, str):
        return expression
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    options = {"literal_binds": True, "include_table": False}
    return str(expression.compile(dialect=dialect, compile_kwargs=options))
