"""/api/books: books, each by one author."""

from typing import Annotated, Any

from apiflask import APIBlueprint
from flask import url_for
from pydantic import Field, StringConstraints
from sqlalchemy import select

from app.core.api import (
    LOCKED,
    OMITTED,
    Id,
    In,
    KeysetPage,
    KeysetQuery,
    Line,
    Out,
    Year,
    keyset_page,
)
from app.core.etags import refuse_if_changed
from app.models import Book, Genre, db

books = APIBlueprint("books", __name__, url_prefix="/api/books")

Title = Annotated[Line, StringConstraints(max_length=300)]
Isbn = Annotated[str, Field(pattern=r"^[0-9]{13}$", examples=["9781400033416"])]


class BookIn(In):
    """A new book."""

    isbn: Isbn
    title: Title = Field(examples=["Beloved"])
    genre: Genre
    published: Year | None = None
    author_id: Id


class BookChange(In):
    """The fields of a book to change; those left out stay as they are."""

    isbn: Isbn = OMITTED
    title: Title = OMITTED
    genre: Genre = OMITTED
    published: Year | None = None
    author_id: Id = OMITTED


class BookOut(Out):
    """A book."""

    isbn: str = Field(examples=["9781400033416"])
    title: str = Field(examples=["Beloved"])
    genre: Genre
    published: int | None = Field(examples=[1987])
    author_id: int = Field(examples=[1])


class BookPage(KeysetPage):
    """Some books."""

    items: list[BookOut]


@books.get("")
@books.input(KeysetQuery, location="query")
@books.output(BookPage)
def list_books(query_data: KeysetQuery) -> dict[str, Any]:
    """List books."""
    return keyset_page(select(Book), Book.id, query_data)


@books.get("/<int:book_id>")
@books.output(BookOut)
def get_book(book_id: int) -> Book:
    """Get one book."""
    return _book_or_404(book_id)


@books.post("")
@books.input(BookIn)
@books.output(BookOut, status_code=201)
def create_book(json_data: BookIn) -> tuple[Book, int, dict[str, str]]:
    """Create a book."""
    book = Book(**json_data.model_dump())
    db.session.add(book)
    db.session.commit()
    return book, 201, {"Location": url_for("books.get_book", book_id=book.id)}


@books.patch("/<int:book_id>")
@books.input(BookChange)
@books.output(BookOut)
@books.doc(responses=[412])
def change_book(book_id: int, json_data: BookChange) -> Book:
    """Change some fields of a book."""
    book = _book_or_404(book_id, **LOCKED)
    refuse_if_changed(book, BookOut)
    for name, value in json_data.model_dump(exclude_unset=True).items():
        setattr(book, name, value)
    db.session.commit()
    return book


@books.delete("/<int:book_id>")
@books.output({}, status_code=204)
@books.doc(responses=[412])
def delete_book(book_id: int) -> str:
    """Delete a book."""
    book = _book_or_404(book_id, **LOCKED)
    refuse_if_changed(book, BookOut)
    db.session.delete(book)
    db.session.commit()
    return ""


def _book_or_404(book_id: int, **options: Any) -> Book:
    missing = f"There is no book {book_id}."
    book: Book = db.get_or_404(Book, book_id, description=missing, **options)
    return book
