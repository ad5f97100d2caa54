"""What the API's resources share: the shapes of what comes in and what goes out, and pages."""

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from flask import request, url_for
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute

from app.models import db

# The largest `bigint`, which is the type of every integer column.
LARGEST = 2**63 - 1

# Text with something to read in it and without control characters: PostgreSQL cannot store NUL.
Line = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        min_length=1,
        pattern=r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$",
    ),
]
Name = Annotated[Line, StringConstraints(max_length=200)]

# For `get_or_404`: until the commit nobody else changes or deletes the row, while new rows may
# refer to it.
LOCKED: dict[str, Any] = {"with_for_update": {"key_share": True}}

# The default of a field that may be left out but, unlike one with the default None, not be null.
OMITTED: Any = None

Number = Annotated[int, Field(strict=True)]
Id = Annotated[int, Field(strict=True, ge=1, le=LARGEST, examples=[1])]
Year = Annotated[Number, Field(ge=-3000, le=3000, examples=[1974])]


class In(BaseModel):
    """What a client sends. An unknown field is an error, so that nothing is silently lost."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Out(BaseModel):
    """What a client gets, read from a model with the same attributes."""

    model_config = ConfigDict(from_attributes=True, hide_input_in_errors=True)

    id: int = Field(examples=[1])
    created_at: datetime
    updated_at: datetime


class KeysetQuery(BaseModel):
    """The items after which one, and how many."""

    after: int = Field(OMITTED, ge=0, le=LARGEST, description="Only items with a greater id.")
    per_page: int = Field(20, ge=1, le=100, description="How many items at most.")
    total: bool = Field(False, description="Count all items, which takes long if they are many.")


class KeysetPage(BaseModel):
    """Some items of a list. The subclass says which: `items: list[BookOut]`."""

    next: str | None = Field(
        description="The URL of the items that follow; null if there are none.",
        examples=["/api/nouns?after=20&per_page=20"],
    )
    total: int = Field(
        OMITTED,
        exclude_if=lambda total: total is None,
        description="How many items there are, only with `total=true`.",
    )


def keyset_page(
    statement: Select[Any], key: InstrumentedAttribute[Any], query: KeysetQuery
) -> dict[str, Any]:
    """Read a `KeysetPage`: the items of `statement` in the order of `key`, which must be unique.

    The key's index finds the first item at once, so the last page of a large table costs as much as
    the first. A number of a page would make the database read and skip all items before it.
    """
    rest = statement if query.after is None else statement.where(key > query.after)
    found = db.session.scalars(rest.order_by(key).limit(query.per_page + 1)).all()
    items = found[: query.per_page]
    page: dict[str, Any] = {"items": items, "next": None}
    if len(found) > len(items):
        page["next"] = _url_of_items_after(getattr(items[-1], key.key))
    if query.total:
        page["total"] = db.session.scalar(select(func.count()).select_from(statement.subquery()))
    return page


def _url_of_items_after(last: Any) -> str:
    here = url_for(request.endpoint or "", **(request.view_args or {}))
    again = request.args.to_dict(flat=False) | {"after": [last]}
    again.pop("total", None)  # it was asked for once
    return f"{here}?{urlencode(again, doseq=True)}"


class PageQuery(BaseModel):
    """For `db.paginate`: which page, counting from 1. Only for lists that stay small."""

    page: int = Field(1, ge=1, le=1_000_000)
    per_page: int = Field(20, ge=1, le=100)


class Page(BaseModel):
    """One numbered page of a list that stays small: each page counts all items."""

    model_config = ConfigDict(from_attributes=True, hide_input_in_errors=True)

    page: int
    per_page: int
    total: int
    pages: int
