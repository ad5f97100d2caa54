"""What the API's resources share: the shapes of what comes in and what goes out, and pages."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
# The default of a field that may be left out but, unlike one with the default None, not be null.
OMITTED: Any = None

Number = Annotated[int, Field(strict=True)]
Year = Annotated[Number, Field(ge=-3000, le=3000, examples=[1974])]


class In(BaseModel):
    """What a client sends. An unknown field is an error, so that nothing is silently lost."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Out(BaseModel):
    """What a client gets, read from a model with the same attributes."""

    model_config = ConfigDict(from_attributes=True, hide_input_in_errors=True)

    id: int
    created_at: datetime
    updated_at: datetime


class PageQuery(BaseModel):
    """Which page, counting from 1, and how many items per page."""

    page: int = Field(1, ge=1, le=1_000_000)
    per_page: int = Field(20, ge=1, le=100)


class Page(BaseModel):
    """One page of a list, and the total number of items and pages."""

    model_config = ConfigDict(from_attributes=True, hide_input_in_errors=True)

    page: int
    per_page: int
    total: int
    pages: int
