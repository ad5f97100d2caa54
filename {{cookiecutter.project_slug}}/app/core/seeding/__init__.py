"""The engine of `flask seed`; the rows are in app/seeds.

Read it in this order: seed (what a file says), values and stage (its rows, checked and brought to
the database), planting, removal, cli (the commands).
"""

from app.core.seeding.cli import init_app, plant_at_start
from app.core.seeding.seed import Seed

__all__ = ["Seed", "init_app", "plant_at_start"]
