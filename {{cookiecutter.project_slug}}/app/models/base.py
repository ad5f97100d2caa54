"""`Base`, the parent of every model, and `db`, through which you reach the session.

Models never name a schema: it belongs to the connection (app/core/database.py), so that the same
models and migrations work in any SCHEMA.
"""

import enum
from datetime import datetime
from typing import Any

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Constraint,
    DateTime,
    Enum,
    MetaData,
    Table,
    TypeDecorator,
    event,
    false,
    func,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry
from sqlalchemy.types import TypeEngine

from app.core.session import Session


def _name_of_check(check: Constraint, table: Table) -> str:
    """The name that a CHECK has in its model; no other kind needs one there."""
    if isinstance(check.name, str):
        return check.name
    words = str(getattr(check, "sqltext", "…"))
    raise SystemExit(
        f"Table {table.name} has a CHECK without a name: {words}. Give it one that says what it is "
        f'for: CheckConstraint({words!r}, name="…"). The database will call it ck_{table.name}_…'
    )


# Every constraint needs a name, or no migration could drop it. Alembic's documentation recommends
# these names: "The Importance of Naming Constraints".
NAMING_CONVENTION: dict[str, Any] = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "constraint_name": _name_of_check,
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

TYPES: dict[Any, TypeEngine[Any]] = {
    # A table may outgrow `integer`, and changing the type later rewrites the whole table.
    int: BigInteger(),
    datetime: DateTime(timezone=True),
    # Stored as text: Alembic does not notice new values of a native enum, and such a type survives
    # a downgrade and belongs to one schema.
    enum.Enum: Enum(
        enum.Enum,
        native_enum=False,
        length=64,
        validate_strings=True,
        values_callable=lambda members: [member.value for member in members],
    ),
}


class Timestamps:
    """When a row was created and last changed; the database fills in both, even for raw INSERTs."""

    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), sort_order=100)
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.now(), onupdate=func.now(), sort_order=101
    )


class Seeded:
    """For models with seeds: marks the rows that belong to `flask seed`."""

    seeded: Mapped[bool] = mapped_column(server_default=false(), sort_order=102)


class Base(Timestamps, DeclarativeBase):
    """Parent of all models: `class Book(Base)` with typed `Mapped[]` columns."""

    # On the registry, because a type_annotation_map on the class breaks Flask-SQLAlchemy 3.1.1
    # (its issue 1361).
    registry = registry(
        metadata=MetaData(naming_convention=NAMING_CONVENTION), type_annotation_map=TYPES
    )
    # What the database fills in comes back with the INSERT or UPDATE itself, and a commit forgets
    # nothing: so no answer has to read after its COMMIT, when the row or the server may be gone.
    __mapper_args__ = {"eager_defaults": True}


@event.listens_for(Table, "after_parent_attach")
def _refuse_unknown_values(table: Table, metadata: MetaData) -> None:
    """Make enum columns refuse text that is not in their enum: no row with it could be read."""
    for column in table.columns if metadata is Base.metadata else ():
        kind = column.type
        kind = kind.item_type if isinstance(kind, ARRAY) else kind
        kind = kind.impl_instance if isinstance(kind, TypeDecorator) else kind
        if isinstance(kind, Enum):
            kind.validate_strings = True


db = SQLAlchemy(model_class=Base, session_options={"class_": Session, "expire_on_commit": False})
