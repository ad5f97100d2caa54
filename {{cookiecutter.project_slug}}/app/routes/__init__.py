"""All routes. Add a new blueprint to the list."""

from app.routes.authors import authors
from app.routes.books import books
from app.routes.health import health
from app.routes.home import home

BLUEPRINTS = [home, health, authors, books]
