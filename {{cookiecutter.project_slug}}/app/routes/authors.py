"""/api/authors: the people who write books."""

from typing import Any

from apiflask import APIBlueprint
from flask import url_for
from pydantic import Field
from sqlalchemy import select

from app.core.api import LOCKED, OMITTED, In, KeysetPage, KeysetQuery, Name, Out, Year, keyset_page
from app.core.etags import refuse_if_changed
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

    name: str = Field(examples=["Toni Morrison"])
    born: int | None = Field(examples=[1931])


class AuthorPage(KeysetPage):
    """Some authors."""

    items: list[AuthorOut]


@authors.get("")
@authors.input(KeysetQuery, location="query")
@authors.output(AuthorPage)
def list_authors(query_data: KeysetQuery) -> dict[str, Any]:
    """List authors."""
    return keyset_page(select(Author), Author.id, query_data)


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
@authors.doc(responses=[412])
def change_author(author_id: int, json_data: AuthorChange) -> Author:
    """Change some fields of an author."""
    author = _author_or_404(author_id, **LOCKED)
    refuse_if_changed(author, AuthorOut)
    for name, value in json_data.model_dump(exclude_unset=True).items():
        setattr(author, name, value)
    db.session.commit()
    return author


@authors.delete("/<int:author_id>")
@authors.output({}, status_code=204)
@authors.doc(responses=[412])
def delete_author(author_id: int) -> str:
    """Delete an author who has no books."""
    author = _author_or_404(author_id, **LOCKED)
    refuse_if_changed(author, AuthorOut)
    db.session.delete(author)
    db.session.commit()
    return ""


def _author_or_404(author_id: int, **options: Any) -> Author:
    missing = f"There is no author {author_id}."
    author: Author = db.get_or_404(Author, author_id, description=missing, **options)
    return author
