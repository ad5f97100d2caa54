"""/api/books"""

from typing import Annotated

from apiflask import APIBlueprint, abort
from flask import url_for
from flask_sqlalchemy.pagination import Pagination
from pydantic import Field, StringConstraints
from sqlalchemy import select

from app.core.api import OMITTED, In, Number, Out, Page, PageQuery, Year
from app.models import Author, Book, Genre, db

books = APIBlueprint("books", __name__, url_prefix="/api/books")

Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Isbn = Annotated[str, Field(pattern=r"^[0-9]{13}$", examples=["9781400033416"])]


class BookIn(In):
    """A new book."""

    isbn: Isbn
    title: Title = Field(examples=["Beloved"])
    genre: Genre
    published: Year | None = None
    author_id: Number


class BookChange(In):
    """The fields of a book to change; those left out stay as they are."""

    isbn: Isbn = OMITTED
    title: Title = OMITTED
    genre: Genre = OMITTED
    published: Year | None = None
    author_id: Number = OMITTED


class BookOut(Out):
    """A book."""

    isbn: str
    title: str
    genre: Genre
    published: int | None
    author_id: int


class BookPage(Page):
    """One page of books."""

    items: list[BookOut]


@books.get("")
@books.input(PageQuery, location="query")
@books.output(BookPage)
def list_books(query_data: PageQuery) -> Pagination:
    """List books."""
    return db.paginate(select(Book).order_by(Book.id), **query_data.model_dump(), error_out=False)


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
    _author_or_422(json_data.author_id)
    book = Book(**json_data.model_dump())
    db.session.add(book)
    db.session.commit()
    return book, 201, {"Location": url_for("books.get_book", book_id=book.id)}


@books.patch("/<int:book_id>")
@books.input(BookChange)
@books.output(BookOut)
def change_book(book_id: int, json_data: BookChange) -> Book:
    """Change some fields of a book."""
    book = _book_or_404(book_id)
    changes = json_data.model_dump(exclude_unset=True)
    if "author_id" in changes:
        _author_or_422(changes["author_id"])
    for name, value in changes.items():
        setattr(book, name, value)
    db.session.commit()
    return book


@books.delete("/<int:book_id>")
@books.output({}, status_code=204)
def delete_book(book_id: int) -> str:
    """Delete a book."""
    db.session.delete(_book_or_404(book_id))
    db.session.commit()
    return ""


def _book_or_404(book_id: int) -> Book:
    missing = f"There is no book {book_id}."
    book: Book = db.get_or_404(Book, book_id, description=missing)
    return book


def _author_or_422(author_id: int) -> None:
    if db.session.get(Author, author_id) is None:
        fault = {"json": {"author_id": [f"There is no author {author_id}."]}}
        abort(422, "Validation error", detail=fault)
