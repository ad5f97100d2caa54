"""`flask db migrate` on existing tables: writes the safe form, or refuses and writes nothing."""

import re
from pathlib import Path

import pytest
from conftest import Project, copy_project

SHELVES = '''"""Shelves."""

import enum
import uuid
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON, BigInteger, CheckConstraint, Computed, DateTime, Enum, ForeignKey, Identity, Index,
    Integer, Numeric, String, Text, func, text,
)
from sqlalchemy.dialects.postgresql import JSONB, ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class Kind(enum.StrEnum):
    WALL = "wall"
    FREE = "free"


class Shelf(Base):
    __tablename__ = "shelves"
    __table_args__ = (
        CheckConstraint("room > 0", name="room_positive"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    room: Mapped[int] = mapped_column(Integer)
    floor: Mapped[int | None]
    kind: Mapped[Kind]
    code: Mapped[str | None] = mapped_column(String(20))
    note: Mapped[str | None] = mapped_column(Text)
    price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    moment: Mapped[datetime | None] = mapped_column(DateTime)
    data: Mapped[Any | None] = mapped_column(JSONB)
    author_id: Mapped[int | None]
    count: Mapped[int] = mapped_column(server_default="0")
    old: Mapped[str | None]


class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str]
'''
LAST = "    old: Mapped[str | None]\n"
DROP = "column-drop:shelves.old=nobody reads it"
KINDS = '    FREE = "free"\n'
TAG = SHELVES[SHELVES.index("class Tag") :]
CODE = "    code: Mapped[str | None] = mapped_column(String(20))\n"
PRICE = "    price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))\n"
MOMENT = "    moment: Mapped[datetime | None] = mapped_column(DateTime)\n"
ARGS = '        CheckConstraint("room > 0", name="room_positive"),\n'

# What changes in the model, and the hazards that must be named.
REFUSED = {
    "required": (LAST, LAST + "    new: Mapped[int]\n", {"required-column:shelves.new"}),
    "volatile default": (
        LAST,
        LAST
        + "    new: Mapped[uuid.UUID] = mapped_column(server_default=func.gen_random_uuid())\n",
        {"volatile-default:shelves.new"},
    ),
    "identity": (
        LAST,
        LAST + "    new: Mapped[int] = mapped_column(Identity())\n",
        {"identity-column:shelves.new"},
    ),
    "generated": (
        LAST,
        LAST + '    new: Mapped[int] = mapped_column(Computed("room * 2", persisted=True))\n',
        {"generated-column:shelves.new"},
    ),
    "int to bigint": ("mapped_column(Integer)", "mapped_column()", {"type-change:shelves.room"}),
    "shorter": (CODE, CODE.replace("20", "10"), {"type-change:shelves.code"}),
    "other scale": (PRICE, PRICE.replace("2)", "3)"), {"type-change:shelves.price"}),
    "with time zone": (
        MOMENT,
        MOMENT.replace("(DateTime)", "()"),
        {"type-change:shelves.moment"},
    ),
    "no cast": (
        CODE,
        "    code: Mapped[int | None] = mapped_column(Integer)\n",
        {"type-change:shelves.code"},
    ),
    "json": (
        LAST,
        LAST + "    new: Mapped[Any | None] = mapped_column(JSON)\n",
        {"json-column:shelves.new"},
    ),
    "column drop": (LAST, "", {"column-drop:shelves.old"}),
    "column rename": (LAST, LAST.replace("old", "older"), {"column-drop:shelves.old"}),
    "table drop": (TAG, "", {"table-drop:tags"}),
    "table rename": ('"tags"', '"labels"', {"table-drop:tags"}),
    "primary key": (
        "    word: Mapped[str]\n",
        "    word: Mapped[str] = mapped_column(primary_key=True)\n",
        {"primary-key:tags"},
    ),
    "exclusion": (
        ARGS,
        ARGS + '        ExcludeConstraint((text("int8range(id, id + 1)"), "&&"), name="ex"),\n',
        {"exclusion-constraint:shelves.ex"},
    ),
    "enum value removed": (KINDS, "", {"enum-value-removed:shelves.kind"}),
    "native enum": (
        LAST,
        LAST + '    new: Mapped[str | None] = mapped_column(Enum("a", "b", name="ab"))\n',
        {"native-enum:shelves.new"},
    ),
    "all at once": (
        LAST,
        "    new: Mapped[int]\n    n2: Mapped[int] = mapped_column(Identity())\n",
        {"required-column:shelves.new", "identity-column:shelves.n2", "column-drop:shelves.old"},
    ),
}

# All of these in one change, one plain revision.
SAFE = [
    (
        LAST,
        LAST + "    new: Mapped[str | None]\n"
        '    constant: Mapped[int] = mapped_column(server_default="0")\n'
        "    since: Mapped[datetime] = mapped_column(server_default=func.now())\n",
    ),
    (CODE, CODE.replace("20", "200")),
    (PRICE, PRICE.replace("10, 2", "14, 2")),
    ("mapped_column(Text)", "mapped_column(String)"),
    ('server_default="0")\n    old', 'server_default="7")\n    old'),
    (KINDS, KINDS + '    CORNER = "corner"\n'),
    (
        "class Tag(Base)",
        """class Box(Base):
    __tablename__ = "boxes"
    __table_args__ = (Index("ix_boxes", "size", "token"), CheckConstraint("size > 0", name="s"))

    id: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(unique=True)
    token: Mapped[uuid.UUID] = mapped_column(server_default=func.gen_random_uuid())
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves.id"), index=True)
    anything: Mapped[Any] = mapped_column(JSON)


class Tag(Base)""",
    ),
]

# All of these in one change: three revisions.
REWRITTEN = [
    (
        ARGS,
        """        CheckConstraint("room > 0", name="room_positive"),
        CheckConstraint("floor >= 0", name="floor_positive"),
        Index("ix_shelves_data", "data", postgresql_using="gin"),
        Index("ix_shelves_free", "code", postgresql_where=text("floor IS NOT NULL")),
        Index("ix_shelves_lower", text("lower(code)"), unique=True),
""",
    ),
    ("(String(20))", "(String(20), unique=True)"),
    (
        "    author_id: Mapped[int | None]\n",
        '    author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"), index=True)\n',
    ),
    ("    note: Mapped[str | None]", "    note: Mapped[str]"),
]

STRUCTURE = """
SELECT array_agg(line ORDER BY line) FROM (
  SELECT concat(table_name, column_name, data_type, is_nullable, column_default) AS line
  FROM information_schema.columns WHERE table_schema = 'public'
  UNION ALL SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint
  WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
  UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public') AS everything
"""


@pytest.fixture(scope="module")
def shop(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with two more tables, whose database is at the head."""
    path = tmp_path_factory.mktemp("hazards") / "book-service"
    project = copy_project(generated, path)
    models = path / "app/models/__init__.py"
    models.write_text(models.read_text() + "\nfrom app.models.shelves import Shelf, Tag  # noqa\n")
    put(project)
    for command in (["upgrade"], ["migrate", "-m", "shelves"], ["upgrade"], ["check"]):
        result = project.flask("db", *command)
        assert result.returncode == 0, result.stdout
    project.sql(
        "INSERT INTO shelves (room, kind, note) SELECT 1, 'wall', '' FROM generate_series(1, 9)"
    )
    return project


@pytest.fixture
def fresh(shop: Project):
    """The project as it was, also after the test."""
    versions = shop.path / "migrations/versions"
    before = set(versions.iterdir())
    put(shop)
    yield shop
    put(shop)
    for file in set(versions.iterdir()) - before:
        if file.suffix == ".py":
            file.unlink()


def put(project: Project, *changes: tuple[str, str]) -> None:
    text = SHELVES
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    if "Tag" not in text:
        text += "\n\nTag = None\n"
    (project.path / "app/models/shelves.py").write_text(text)


def revisions(project: Project) -> list[Path]:
    return sorted((project.path / "migrations/versions").glob("*.py"))


def flask(project: Project, *words: str) -> str:
    result = project.flask("db", *words)
    assert result.returncode == 0, result.stdout
    return result.stdout


def drop_without_a_reason(project: Project) -> Path:
    """Write a revision that drops a column, and take the acknowledgement out of its file."""
    put(project, (LAST, ""))
    flask(project, "migrate", "-m", "drop", "--acknowledge", DROP)
    file = revisions(project)[-1]
    file.write_text(file.read_text().replace("acknowledged", "other"))
    return file


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_all_hazards_and_no_file(fresh: Project, name: str):
    old, new, expected = REFUSED[name]
    before = revisions(fresh)
    put(fresh, (old, new))
    result = fresh.flask("db", "migrate", "-m", "no")
    assert result.returncode == 1
    assert revisions(fresh) == before
    assert set(re.findall(r"^  ([a-z-]+:[\w.]+)$", result.stdout, re.MULTILINE)) == expected
    assert "Safe: " in result.stdout
    assert "Traceback" not in result.stdout
    if "rename" in name:
        assert "under another name" in result.stdout
    assert f'--acknowledge "{min(expected)}=' in result.stdout


def test_no_wolf_is_cried(fresh: Project):
    before = revisions(fresh)
    put(fresh, *SAFE)
    flask(fresh, "migrate", "-m", "safe")
    assert len(revisions(fresh)) == len(before) + 1
    assert "clean" in flask(fresh, "lint")
    assert "lint says" not in flask(fresh, "upgrade")
    flask(fresh, "check")
    flask(fresh, "downgrade")


def test_the_safe_forms(fresh: Project):
    before, structure = revisions(fresh), fresh.sql(STRUCTURE)
    put(fresh, *REWRITTEN)
    flask(fresh, "migrate", "-m", "grow")
    change, indexes, validate = revisions(fresh)[len(before) :]
    assert change.name.endswith("_grow.py")
    assert change.read_text().count("postgresql_not_valid=True") == 3
    assert indexes.read_text().count("op.create_index(") == 5
    assert indexes.read_text().count("postgresql_concurrently=True") == 15
    assert "autocommit_block" in indexes.read_text()
    assert validate.read_text().count("VALIDATE CONSTRAINT") == 3
    assert "USING INDEX" in validate.read_text()
    assert flask(fresh, "lint").count("clean") == 3
    script = flask(fresh, "upgrade", "--sql", "0001:head")
    assert script.count("SET lock_timeout = 0;") == 10
    assert "SET statement_timeout = 0;" in script
    for _ in range(2):
        flask(fresh, "upgrade")
        flask(fresh, "check")
        for _ in range(3):
            flask(fresh, "downgrade")
        assert fresh.sql(STRUCTURE) == structure


def test_not_null_that_a_check_covers_is_plain(fresh: Project):
    proof = ARGS + '        CheckConstraint("note IS NOT NULL", name="noted"),\n'
    before = revisions(fresh)
    put(fresh, (ARGS, proof))
    flask(fresh, "migrate", "-m", "prove")
    flask(fresh, "upgrade")
    count = len(revisions(fresh))
    put(fresh, (ARGS, proof), ("    note: Mapped[str | None]", "    note: Mapped[str]"))
    flask(fresh, "migrate", "-m", "require")
    assert len(revisions(fresh)) == count + 1
    flask(fresh, "lint")
    flask(fresh, "upgrade")
    flask(fresh, "downgrade", before[-1].name.split("_")[0])


def test_an_acknowledgement_needs_a_hazard_and_a_reason(fresh: Project):
    put(fresh, (LAST, ""))
    for words in ("column-drop:shelves.old", "column-drop:shelves.old= ", "table-drop=because"):
        refused = fresh.flask("db", "migrate", "-m", "drop", "--acknowledge", words)
        assert refused.returncode == 1
        assert "--acknowledge" in refused.stdout
    before = revisions(fresh)
    flask(fresh, "migrate", "-m", "drop", "--acknowledge", DROP)
    (file,) = revisions(fresh)[len(before) :]
    assert "{'column-drop:shelves.old': 'nobody reads it'}" in file.read_text()
    assert "nobody reads it" in flask(fresh, "lint")
    flask(fresh, "upgrade")
    flask(fresh, "check")
    flask(fresh, "downgrade")


def test_lint_starts_where_an_adopted_history_ends(fresh: Project):
    file = drop_without_a_reason(fresh)
    assert fresh.flask("db", "lint", "base:head").returncode == 1
    head = file.name.split("_")[0]
    exempt = fresh.flask("db", "lint", "base:head", MIGRATION_LINT_START_AFTER=head)
    assert exempt.returncode == 0
    wrong = fresh.flask("db", "lint", MIGRATION_LINT_START_AFTER="nowhere")
    assert wrong.returncode == 2


def test_development_is_warned_and_production_is_not(fresh: Project):
    drop_without_a_reason(fresh)
    assert "column-drop:shelves.old" in flask(fresh, "upgrade")
    flask(fresh, "downgrade")
    result = fresh.flask("db", "upgrade", APP_ENV="test")
    assert "column-drop" not in result.stdout
    flask(fresh, "downgrade")
