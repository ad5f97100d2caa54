"""Operations besides Alembic's, each with its way back, and how a revision file spells them."""

import re
from collections.abc import Sequence
from typing import Any

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op
from alembic.migration import MigrationContext
from alembic.operations.ops import (
    AlterColumnOp,
    CreateCheckConstraintOp,
    CreateIndexOp,
    CreateTableOp,
    DropTableOp,
    ExecuteSQLOp,
    MigrateOperation,
)
from sqlalchemy import CheckConstraint, DefaultClause, TextClause, literal_column

# What text() may take for the name of a parameter, or for the escape of one.
PARAMETER = re.compile(r"(?<![:\w]):\w|\\:")


class InOrder(MigrateOperation):
    """Operations one after the other, and those that undo them."""

    def __init__(self, ups: Sequence[MigrateOperation], downs: Sequence[MigrateOperation]) -> None:
        self.ups, self.downs = ups, downs

    def reverse(self) -> MigrateOperation:
        """The way back."""
        return type(self)(self.downs, self.ups)


class OutsideTransaction(InOrder):
    """Operations in an autocommit_block(), written so that they can be run again."""


class ReversibleSQL(ExecuteSQLOp):
    """A statement, and how to undo it; None where there is nothing to undo."""

    def __init__(self, statement: str, opposite: str | None = None) -> None:
        super().__init__(statement)
        self.opposite = opposite

    def reverse(self) -> MigrateOperation:
        """The way back."""
        assert self.opposite is not None
        return ReversibleSQL(self.opposite)


class AlterWithCast(MigrateOperation):
    """A change of a column's type that says how an old value becomes a new one."""

    def __init__(self, alter: AlterColumnOp, using: str) -> None:
        self.alter, self.using = alter, using


class Look(MigrateOperation):
    """A call of `refuse_if_rows`; it changes nothing, so that there is nothing to undo."""

    def __init__(self, table: str, where: str, **words: Any) -> None:
        self.table, self.where = table, where
        self.words = {name: value for name, value in words.items() if value}


def undone(operations: list[Any]) -> list[Any]:
    """The way back, in the opposite order."""
    return [
        _reverse(each)
        for each in reversed(operations)
        if not isinstance(each, Look)
        and not (isinstance(each, ReversibleSQL) and each.opposite is None)
    ]


def _reverse(operation: Any) -> Any:
    if isinstance(operation, CreateTableOp):
        # Alembic would build the table twice for the sake of its name.
        return DropTableOp(operation.table_name, schema=operation.schema)
    return operation.reverse()


def source(migration: MigrationContext, operation: Any) -> str:
    """The operation as the revision file will have it, with what it imports."""
    rendering = AutogenContext(migration, autogenerate=False)
    lines = [line for line in render_op(rendering, operation) if line]
    return "\n".join([*sorted(rendering.imports), *lines])


def spell_sql_for_files(migration: MigrationContext) -> None:
    """Let Alembic write SQL for text() in a file: with single %, and with : escaped."""
    migration.dialect.identifier_preparer._double_percents = False
    spelled = migration.impl.render_ddl_sql_expr

    def escaped(expression: Any, *, is_index: bool = False, **options: Any) -> str:
        sql = spelled(expression, is_index=is_index, **options)
        return sql if is_index else without_parameters(sql)

    migration.impl.render_ddl_sql_expr = escaped  # type: ignore


def without_parameters(sql: str) -> str:
    """SQL for text(), which would take `:name` for a parameter."""
    return sql.replace(":", r"\:") if PARAMETER.search(sql) else sql


def take_literally(operation: Any) -> None:
    """Let what comes back be what the database has, colons and all, and no text() with parameters.

    A server default that was read says so itself: `render_item`.
    """
    back = getattr(operation, "_reverse", None)
    if isinstance(back, CreateCheckConstraintOp):
        back.condition = _literal(back.condition)
    elif isinstance(back, CreateIndexOp):
        back.columns = [_literal(each) for each in back.columns]
        if back.kw.get("postgresql_where") is not None:
            back.kw["postgresql_where"] = _literal(back.kw["postgresql_where"])
    elif isinstance(back, CreateTableOp):
        for each in back.columns:
            if isinstance(each, CheckConstraint):
                each.sqltext = _literal(each.sqltext)


def render_item(kind: str, item: Any, context: AutogenContext) -> Any:
    """What Alembic does not spell as it is: the import of a type of the team's own, and defaults.

    Of a default that is a string it would cut quotes at its ends.
    """
    if kind == "type" and type(item).__module__.split(".")[0] not in ("sqlalchemy", "alembic"):
        context.imports.add(f"import {type(item).__module__}")
        return False
    if kind != "server_default" or not isinstance(item, DefaultClause):
        return False
    if isinstance(item.arg, str):
        return repr(item.arg)  # Alembic cuts a quote at its ends
    if item.reflected and isinstance(item.arg, TextClause):
        return f"sa.text({without_parameters(item.arg.text)!r})"
    return False


def _literal(expression: Any) -> Any:
    return literal_column(expression.text) if isinstance(expression, TextClause) else expression


@renderers.dispatch_for(InOrder)
def _render_in_order(context: AutogenContext, several: InOrder) -> list[str]:
    return [line for each in several.ups for line in render_op(context, each)]


@renderers.dispatch_for(OutsideTransaction)
def _render_outside_transaction(context: AutogenContext, block: OutsideTransaction) -> str:
    lines = [line for each in block.ups for line in render_op(context, each)]
    body = "\n".join(lines).replace("\n", "\n    ")
    return f"with op.get_context().autocommit_block():\n    {body}"


@renderers.dispatch_for(AlterWithCast)
def _render_cast(context: AutogenContext, change: AlterWithCast) -> str:
    call = "\n".join(render_op(context, change.alter))
    using = change.using.replace("%", "%%")  # Alembic hands it to the driver as it is
    return f"{call.removesuffix(')')},\n               postgresql_using={using!r})"


@renderers.dispatch_for(ReversibleSQL)
def _render_sql(_context: AutogenContext, statement: ReversibleSQL) -> str:
    return f"op.execute({without_parameters(str(statement.sqltext))!r})"


@renderers.dispatch_for(Look)
def _render_look(context: AutogenContext, look: Look) -> str:
    context.imports.add("from app.core.rows import refuse_if_rows")
    words = [repr(look.table), repr(look.where)]
    words += [f"{name}={value!r}" for name, value in look.words.items()]
    return "refuse_if_rows(\n    " + ",\n    ".join(words) + ",\n)"
