"""/api/authors"""

from apiflask import APIBlueprint
from flask import url_for
from flask_sqlalchemy.pagination import Pagination
from pydantic import Field
from sqlalchemy import select

from app.core.api import OMITTED, In, Name, Out, Page, PageQuery, Year
from app.models import Author, db

authors = APIBlueprint("authors", __name__, url_prefix="/api/authors")


class AuthorIn(In):
    """A new author."""

    name: Name = Field(examples=["Toni Morrison"])
    born: Year | None = None


class AuthorChange(In):
    """The fields of an author to change; those left out stay as they are."""

    name: Name = OMITTED
    born: Year | None = None


class AuthorOut(Out):
    """An author."""

    name: str
    born: int | None


class AuthorPage(Page):
    """One page of authors."""

    items: list[AuthorOut]


@authors.get("")
@authors.input(PageQuery, location="query")
@authors.output(AuthorPage)
def list_authors(query_data: PageQuery) -> Pagination:
    """List authors."""
    return db.paginate(
        select(Author).order_by(Author.id), **query_data.model_dump(), error_out=False
    )


@authors.get("/<int:author_id>")
@authors.output(AuthorOut)
def get_author(author_id: int) -> Author:
    """Get one author."""
    return _author_or_404(author_id)


@authors.post("")
@authors.input(AuthorIn)
@authors.output(AuthorOut, status_code=201)
def create_author(json_data: AuthorIn) -> tuple[Author, int, dict[str, str]]:
    """Create an author."""
    author = Author(**json_data.model_dump())
    db.session.add(author)
    db.session.commit()
    return author, 201, {"Location": url_for("authors.get_author", author_id=author.id)}


@authors.patch("/<int:author_id>")
@authors.input(AuthorChange)
@authors.output(AuthorOut)
def change_author(author_id: int, json_data: AuthorChange) -> Author:
    """Change some fields of an author."""
    author = _author_or_404(author_id)
    for name, value in json_data.model_dump(exclude_unset=True).items():
        setattr(author, name, value)
    db.session.commit()
    return author


@authors.delete("/<int:author_id>")
@authors.output({}, status_code=204)
def delete_author(author_id: int) -> str:
    """Delete an author who has no books."""
    db.session.delete(_author_or_404(author_id))
    db.session.commit()
    return ""


def _author_or_404(author_id: int) -> Author:
    missing = f"There is no author {author_id}."
    author: Author = db.get_or_404(Author, author_id, description=missing)
    return author
