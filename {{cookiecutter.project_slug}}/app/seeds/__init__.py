"""The seeds of `flask seed`."""

from app.core.seeding import Seed
from app.seeds.authors import AUTHORS
from app.seeds.books import BOOKS

SEEDS: list[Seed] = [AUTHORS, BOOKS]
