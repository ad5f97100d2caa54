"""100,000 seeded rows beside COPY of the same rows, in one run: `make bench`.

`flask seed all` also compares keys, marks the rows and finds wrong values. Aim: planting at least
half as fast as a bare COPY from Python into the same table, both with their commit.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import Project, generate

MEASURE = """
import statistics, time
from app import create_app
from app.core.seeding import Seed
from app.core.seeding.planting import plant
from app.core.seeding.removal import remove
from app.models import Author, db

rows = [{"name": f"Author {n}", "born": 1900 + n % 100} for n in range(100_000)]
seed = Seed(Author, key="name", rows=rows)

def copy(session):
    with session.connection().connection.cursor() as cursor:
        with cursor.copy("COPY authors (name, born) FROM STDIN") as stream:
            for row in rows:
                stream.write_row((row["name"], row["born"]))

def seconds(work):
    started = time.monotonic()
    with db.session.begin():
        work(db.session())
    return time.monotonic() - started

def empty():
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("TRUNCATE authors, books")
        connection.exec_driver_sql("CHECKPOINT")

with create_app().app_context():
    pairs = []
    for _ in range(7):
        empty()
        floor = seconds(copy)
        empty()
        pairs.append((floor, seconds(lambda session: plant(session, [seed]))))
    ratio = statistics.median(floor / ours for floor, ours in pairs)
    print(f"COPY / seeds: {ratio:.2f} ", [f"{floor:.2f}/{ours:.2f}" for floor, ours in pairs])
    print(f"planted again: {seconds(lambda session: plant(session, [seed])):.2f} s")
    print(f"removed: {seconds(lambda session: remove(session, [seed])):.2f} s")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        project = Project(Path(folder, "book-service"))
        project.flask("db", "upgrade")
        result = project.run(project.python, "-c", MEASURE)
        print("\n".join(line for line in result.stdout.splitlines() if "rows read" not in line))


if __name__ == "__main__":
    main()
