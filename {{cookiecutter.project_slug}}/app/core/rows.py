"""A look at the rows before a revision changes anything: are there some that it would refuse?

`flask db migrate` writes the call. Applied revisions import it for ever, so its name and its
parameters stay as they are.
"""

from collections.abc import Sequence
from typing import Any

from alembic import op
from alembic.util import CommandError
from sqlalchemy import Connection

from app.core.database import quote

SHOWN = 3
PRIMARY_KEY = (
    "SELECT a.attname FROM pg_index i JOIN pg_attribute a"
    " ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)"
    " WHERE i.indisprimary AND i.indrelid = CAST(%s AS regclass) ORDER BY a.attnum"
)


def refuse_if_rows(
    table: str,
    where: str,
    *,
    breaks: str,
    show: Sequence[str] = (),
    fill: str = "",
    find: str = "",
) -> None:
    """Stop `flask db upgrade`, with nothing changed, when rows of `table` match `where`.

    `breaks` names the constraint, `show` adds columns to the keys in the message. `fill` is the
    backfill that fixes the rows, `find` a query that shows them all.
    """
    migration = op.get_context()
    if migration.as_sql:
        return
    found = violation(op.get_bind(), table, where, breaks=breaks, show=show, fill=fill, find=find)
    if found:
        raise CommandError(f"{found}\nNothing was changed.")


def violation(
    connection: Connection,
    table: str,
    where: str,
    *,
    breaks: str,
    show: Sequence[str] = (),
    fill: str = "",
    find: str = "",
) -> str | None:
    """What is to be said of the rows that match; None without such a row."""
    matching = f"FROM {quote(table)} WHERE {where}"
    count = _rows(connection, f"SELECT count(*) {matching}")[0][0]
    if not count:
        return None
    key = [quote(name) for (name,) in connection.exec_driver_sql(PRIMARY_KEY, (quote(table),))]
    columns = [*key, *(each for each in show if each not in key)]
    rows = "1 row breaks" if count == 1 else f"{count} rows break"
    lines = [f"{table}: {rows} {breaks}."]
    if columns:
        order = f" ORDER BY {', '.join([*show, *key])}"
        sample = _rows(connection, f"SELECT {', '.join(columns)} {matching}{order} LIMIT {SHOWN}")
        more = ", …" if count > SHOWN else ""
        lines[0] += f" {'; '.join(_named(columns, row) for row in sample)}{more}"
    if find:
        lines.append(f"  All of them: {find}")
    if fill:
        lines.append(f"  Fill them first, in a revision of its own before this one: {fill}")
    lines.append("  See docs/migrations.md, Rows that stand in the way.")
    return "\n".join(lines)


def _rows(connection: Connection, query: str) -> list[Any]:
    # As it is: neither : nor % means anything to SQLAlchemy or the driver.
    return [*connection.exec_driver_sql(query, execution_options={"no_parameters": True})]


def _named(columns: Sequence[str], row: Sequence[Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(columns, row, strict=True))
