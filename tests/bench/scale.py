"""What migrations cost as schema and history grow, beside plain Flask-Migrate: `make bench`.

Each command runs in turns in a generated project and in an application that has the same models
and nothing but Flask-SQLAlchemy and Flask-Migrate, on one server. `lint`, which plain Flask-Migrate
does not have, stands beside its `upgrade` through the same revisions.

1. 25 to 200 models of 15 columns, with foreign keys and indexes. Aim: at 200 models at most 3 times
   plain Flask-Migrate for the first migrate, the first upgrade in development, check and lint, at
   most 2 times for a new column (migrate + upgrade); and no more than in proportion to the models.
2. A history of 549 revisions. Aim: lint of one more behind them in at most 4 s on two cores.
"""

import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import Project, generate

MODELS = (25, 50, 100, 200)
REVISIONS = 549
RUNS = 3

PLAIN_APP = '''"""An application with Flask-SQLAlchemy and Flask-Migrate, and nothing else."""

import os

from flask import Flask
from flask_migrate import Migrate

from app.models import db

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
db.init_app(app)
Migrate(app, db)
'''
IMPORTS = '''"""Many models."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric, String
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base
'''
# With created_at and updated_at of Base: 15 columns.
MODEL = """

class Model{n}(Base):
    __tablename__ = "models_{n}"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    name: Mapped[str] = mapped_column(String(200), index=True)
    note: Mapped[str | None]
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    number: Mapped[int] = mapped_column(server_default="0")
    seen: Mapped[datetime | None] = mapped_column(index=True)
    done: Mapped[bool] = mapped_column(server_default="false")
    a: Mapped[str | None]
    b: Mapped[int | None]
    c: Mapped[float | None]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("models_{parent}.id"), index=True)
    author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
"""
NEW_COLUMN = "    added: Mapped[str | None]\n"

REVISION = '''"""Revision {n}."""

import sqlalchemy as sa
from alembic import op

revision = "{n:04}"
down_revision = {before!r}


def upgrade() -> None:
    {up}


def downgrade() -> None:
    {down}
'''
# What the revisions of a history do in turns, to the table that the first of them makes.
TURNS = [
    (
        'op.create_table("t_{t}", sa.Column("id", sa.Integer(), primary_key=True),'
        ' *[sa.Column(f"c_{{i}}", sa.String(80)) for i in range(8)])',
        'op.drop_table("t_{t}")',
    ),
    ('op.create_index("ix_t_{t}", "t_{t}", ["c_1"])', 'op.drop_index("ix_t_{t}")'),
    (
        'op.add_column("t_{t}", sa.Column("before_id", sa.Integer()))',
        'op.drop_column("t_{t}", "before_id")',
    ),
    (
        'op.create_foreign_key("fk_t_{t}", "t_{t}", "t_0", ["before_id"], ["id"])',
        'op.drop_constraint("fk_t_{t}", "t_{t}")',
    ),
    (
        'op.add_column("t_{t}", sa.Column("kind", sa.String(20), server_default="a"))',
        'op.drop_column("t_{t}", "kind")',
    ),
    ("op.execute(\"UPDATE t_{t} SET kind = 'b' WHERE id = 1\")", "pass"),
    (
        'op.alter_column("t_{t}", "c_2", type_=sa.String(200))',
        'op.alter_column("t_{t}", "c_2", type_=sa.String(80))',
    ),
]

# Keeps the server of the project running, and says where.
SERVER = """
from app.core import embedded

embedded.start()
print(embedded.url().query["host"], flush=True)
input()
"""


class Side:
    """One of the two applications, on a database of its own."""

    def __init__(self, project: Project, name: str, server: Project, socket: str) -> None:
        self.project, self.name, self.server = project, name, server
        self.versions = project.path / "migrations" / "versions"
        self.url = f"postgresql://postgres@/{name}?host={socket}"
        with (project.path / "app" / "models" / "__init__.py").open("a") as file:
            file.write("\nimport app.models.many\n")
        self.write_models(0)
        if not self.versions.exists():
            project.flask("db", "init", DATABASE_URL=self.url)

    def seconds(self, *words: str) -> float:
        """How long `flask db …` takes."""
        started = time.monotonic()
        result = self.project.flask("db", *words, DATABASE_URL=self.url)
        seconds = time.monotonic() - started
        assert result.returncode == 0 or words[0] == "lint", result.stdout
        return seconds

    def start_anew(self) -> None:
        """Forget all revisions, and the database."""
        for file in self.versions.glob("*.py"):
            file.unlink()
        name = self.name
        self.server.sql(f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}")

    def write_models(self, count: int, end_of_the_last: str = "") -> None:
        models = [MODEL.format(n=n, parent=max(n - 1, 0)) for n in range(count)]
        text = IMPORTS + "".join(models) + end_of_the_last
        (self.project.path / "app" / "models" / "many.py").write_text(text)

    def write_revisions(self, first: int, last: int) -> None:
        for n in range(first, last):
            up, down = (words.format(t=n // len(TURNS)) for words in TURNS[n % len(TURNS)])
            before = f"{n - 1:04}" if n else None
            words = REVISION.format(n=n, before=before, up=up, down=down)
            (self.versions / f"{n:04}.py").write_text(words)


def models(ours: Side, plain: Side, count: int) -> dict[str, tuple[float, float]]:
    """Seconds of each command, ours and plain Flask-Migrate's."""
    for side in (ours, plain):
        side.start_anew()
        side.write_models(count)
    found = {"first migrate": in_turns(ours, plain, "migrate")}
    lint = ours.seconds("lint")
    found["first upgrade"] = in_turns(ours, plain, "upgrade")
    found["lint / upgrade"] = lint, found["first upgrade"][1]
    found["check"] = in_turns(ours, plain, "check")
    for side in (ours, plain):
        side.write_models(count, NEW_COLUMN)
    migrate = in_turns(ours, plain, "migrate", "-m", "add a column")
    upgrade = in_turns(ours, plain, "upgrade")
    found["a new column"] = migrate[0] + upgrade[0], migrate[1] + upgrade[1]
    return found


def history(ours: Side, plain: Side) -> None:
    for side in (ours, plain):
        side.start_anew()
        side.write_models(0)
        side.write_revisions(0, REVISIONS)
    show(f"first upgrade of {REVISIONS} revisions", [in_turns(ours, plain, "upgrade")])
    ours.write_revisions(REVISIONS, REVISIONS + 1)
    lints = [ours.seconds("lint") for _ in range(RUNS)]
    print(f"lint of one more revision: {statistics.median(lints):.1f} s")


def in_turns(ours: Side, plain: Side, *words: str) -> tuple[float, float]:
    return ours.seconds(*words), plain.seconds(*words)


def show(what: str, pairs: list[tuple[float, float]]) -> None:
    one, other = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"{what}: {one:.1f} s, plain {other:.1f} s, ratio {ratio:.1f}", flush=True)


@contextlib.contextmanager
def two_sides(folder: Path) -> Iterator[tuple[Side, Side]]:
    """A generated project and a plain application in the same environment, on one server."""
    generate(folder)
    project = Project(folder / "book-service")
    plain = Project(folder / "plain")
    shutil.copytree(project.path / "app" / "models", plain.path / "app" / "models")
    (plain.path / "app" / "__init__.py").write_text(PLAIN_APP)
    (plain.path / ".venv").symlink_to(project.path / ".venv")
    with project.popen(project.python, "-c", SERVER) as server:
        assert server.stdout is not None
        socket = server.stdout.readline().strip()
        yield Side(project, "ours", project, socket), Side(plain, "plain", project, socket)
        server.communicate()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, two_sides(Path(folder)) as (ours, plain):
        for count in MODELS:
            runs = [models(ours, plain, count) for _ in range(RUNS)]
            for what in runs[0]:
                show(f"{count} models, {what}", [run[what] for run in runs])
        history(ours, plain)


if __name__ == "__main__":
    main()
