"""Seeded authors."""

from app.core.seeding import Seed
from app.models import Author

AUTHORS = Seed(
    Author,
    key="name",
    rows=[
        {"name": "Chinua Achebe", "born": 1930},
        {"name": "Octavia E. Butler", "born": 1947},
        {"name": "Rachel Carson", "born": 1907},
        {"name": "Ursula K. Le Guin", "born": 1929},
    ],
)
