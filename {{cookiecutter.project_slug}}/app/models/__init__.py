"""All models. Import a new one here, so that migrations see it."""

from app.models.authors import Author
from app.models.base import Base, db
from app.models.books import Book, Genre

__all__ = ["Author", "Base", "Book", "Genre", "db"]
