"""Seeded books; each finds its author by the author's natural key."""

from typing import Any

from sqlalchemy import select

from app.core.seeding import Seed
from app.models import Author, Book, Genre


def _book(isbn: str, title: str, genre: Genre, published: int, author: str) -> dict[str, Any]:
    author_id = select(Author.id).where(Author.name == author).scalar_subquery()
    return {
        "isbn": isbn,
        "title": title,
        "genre": genre,
        "published": published,
        "author_id": author_id,
    }


BOOKS = Seed(
    Book,
    key="isbn",
    rows=[
        _book("9780385474542", "Things Fall Apart", Genre.FICTION, 1958, "Chinua Achebe"),
        _book("9780618249060", "Silent Spring", Genre.NONFICTION, 1962, "Rachel Carson"),
        _book("9780807083697", "Kindred", Genre.SCIENCE_FICTION, 1979, "Octavia E. Butler"),
        _book("9780547773742", "A Wizard of Earthsea", Genre.FICTION, 1968, "Ursula K. Le Guin"),
    ],
)
