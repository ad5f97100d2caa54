"""The longest stall that a steady load sees while a large table changes: `make bench`.

2 million rows, and four connections that constantly read and write single rows. Each change is made
twice in the same run: plain, as Alembic would write it, and as `flask db migrate` and `flask db
upgrade` of a generated project make it. Aim: ours under 150 ms where plain takes seconds.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import Project, generate

ROWS = 2_000_000
MODEL = '''"""A large table."""

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class Parcel(Base):
    __tablename__ = "parcels"
    __table_args__ = ({args})

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str | None] = mapped_column(String(40){code})
    weight: Mapped[int{weight}] = mapped_column(server_default="1")
    author_id: Mapped[int | None]{author}
'''
PLAIN_MODEL = {"args": "", "code": "", "weight": " | None", "author": ""}
LOAD = """
import json, random, sys, threading, time
from sqlalchemy import text
from app import create_app
from app.models import db

app, worst, ended = create_app(), [0.0], threading.Event()

def work():
    with app.app_context(), db.engine.connect() as connection:
        while not ended.is_set():
            key = {"id": random.randrange(1, int(sys.argv[1]))}
            for query in (
                "UPDATE parcels SET weight = 2 WHERE id = :id",
                "SELECT code FROM parcels WHERE id = :id",
            ):
                started = time.monotonic()
                connection.execute(text(query), key)
                connection.commit()
                worst[0] = max(worst[0], time.monotonic() - started)
            time.sleep(0.002)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
time.sleep(1)
worst[0] = 0.0
print("loaded", flush=True)
sys.stdin.readline()
ended.set()
for thread in threads:
    thread.join()
print(json.dumps(worst[0] * 1000))
"""

# name: what changes in the model, the plain statement, and how to undo it
CHANGES = {
    "no change": ({}, "SELECT 1", "SELECT 1"),
    "index": (
        {"code": ", index=True"},
        "CREATE INDEX ix_parcels_code ON parcels (code)",
        "DROP INDEX ix_parcels_code",
    ),
    "unique constraint": (
        {"code": ", unique=True"},
        "ALTER TABLE parcels ADD CONSTRAINT uq_parcels_code UNIQUE (code)",
        "ALTER TABLE parcels DROP CONSTRAINT uq_parcels_code",
    ),
    "foreign key": (
        {"author": ' = mapped_column(ForeignKey("authors.id"))'},
        "ALTER TABLE parcels ADD CONSTRAINT fk_parcels_author_id_authors"
        " FOREIGN KEY (author_id) REFERENCES authors",
        "ALTER TABLE parcels DROP CONSTRAINT fk_parcels_author_id_authors",
    ),
    "check": (
        {"args": 'CheckConstraint("weight > 0", name="heavy"),'},
        "ALTER TABLE parcels ADD CONSTRAINT ck_parcels_heavy CHECK (weight > 0)",
        "ALTER TABLE parcels DROP CONSTRAINT ck_parcels_heavy",
    ),
    "not null": (
        {"weight": ""},
        "ALTER TABLE parcels ALTER weight SET NOT NULL",
        "ALTER TABLE parcels ALTER weight DROP NOT NULL",
    ),
}


def put(project: Project, **changes: str) -> None:
    (project.path / "app/models/parcels.py").write_text(MODEL.format(**PLAIN_MODEL | changes))


def flask(project: Project, *words: str) -> None:
    result = project.flask("db", *words)
    assert result.returncode == 0, result.stdout


def worst_while(project: Project, work) -> float:
    """The slowest statement of the load while `work` runs, in milliseconds."""
    command = [str(project.python), "-c", LOAD, str(ROWS)]
    load = project.popen(*command)
    assert load.stdout is not None
    assert any("loaded" in line for line in load.stdout)
    work()
    output, _ = load.communicate("stop\n")
    return float(json.loads(re.findall(r"[\d.]+", output)[-1]))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        project = Project(Path(folder, "book-service"))
        models = project.path / "app/models/__init__.py"
        models.write_text(models.read_text() + "\nfrom app.models.parcels import Parcel  # noqa\n")
        put(project)
        flask(project, "migrate", "-m", "parcels")
        # Keeps the embedded server up throughout.
        with project.popen(
            project.python, "-c", "from app.core import embedded; embedded.start(); input()"
        ) as holder:
            flask(project, "upgrade")
            base = max(file.name for file in (project.path / "migrations/versions").glob("*.py"))
            project.sql(
                "INSERT INTO parcels (code) SELECT md5(n::text)"
                f" FROM generate_series(1, {ROWS}) AS n"
            )
            print(f"{'longest statement in ms':24}{'plain':>10}{'ours':>10}")
            for name, (change, plain, undo) in CHANGES.items():
                before = worst_while(project, lambda plain=plain: project.sql(plain))
                project.sql(undo)
                put(project, **change)
                if change:
                    flask(project, "migrate", "-m", name)
                ours = worst_while(project, lambda: flask(project, "upgrade"))
                print(f"{name:24}{before:10.0f}{ours:10.0f}", flush=True)
                flask(project, "downgrade", base.split("_")[0])
                put(project)
                for file in (project.path / "migrations/versions").glob("*.py"):
                    if file.name > base:
                        file.unlink()
            holder.kill()


if __name__ == "__main__":
    main()
