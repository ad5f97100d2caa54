"""Authors."""

from typing import TYPE_CHECKING

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import Base, Seeded

if TYPE_CHECKING:
    from app.models.books import Book


class Author(Seeded, Base):
    """A person who writes books; the name is the natural key."""

    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    born: Mapped[int | None]

    books: Mapped[list["Book"]] = relationship(back_populates="author", passive_deletes="all")
