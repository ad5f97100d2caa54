"""The seeds of `flask seed`, in the order of planting: a table comes after those it refers to."""

from app.core.seeding import Seed
from app.seeds.authors import AUTHORS
from app.seeds.books import BOOKS

SEEDS: list[Seed] = [AUTHORS, BOOKS]
