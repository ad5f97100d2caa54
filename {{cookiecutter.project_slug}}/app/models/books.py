"""Books."""

import enum

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.authors import Author
from app.models.base import Base, Seeded


class Genre(enum.StrEnum):
    """The kind of book; the database stores the value as text."""

    FICTION = "fiction"
    SCIENCE_FICTION = "science_fiction"
    NONFICTION = "nonfiction"


class Book(Seeded, Base):
    """A book by one author; the ISBN is the natural key."""

    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    isbn: Mapped[str] = mapped_column(String(13), unique=True)
    title: Mapped[str] = mapped_column(String(300))
    genre: Mapped[Genre]
    published: Mapped[int | None]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"), index=True)

    # Read when asked for. A query that shows the authors says so: options(joinedload(Book.author)).
    author: Mapped[Author] = relationship(back_populates="books")
