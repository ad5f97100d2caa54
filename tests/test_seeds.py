"""`flask seed …` on every shape of data; the example's own seeds are tested in the project."""

import ast
import shutil
from pathlib import Path

import pytest
from conftest import PATIENCE, Project, copy_project, free_port

MODELS = '''"""One model for each shape of data."""

import enum
import uuid
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON, Boolean, Column, Enum, ForeignKey, Numeric, String, Table, UniqueConstraint, false,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Seeded


class Tag(Seeded, Base):
    """Nothing but its key, in a table whose name needs quotes."""

    __tablename__ = "Tag"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


PLAIN_LINKS = Table(
    "plain_links",
    Base.metadata,
    Column("book_id", ForeignKey("books.id"), primary_key=True),
    Column("tag_id", ForeignKey("Tag.id"), primary_key=True),
)
MARKED_LINKS = Table(
    "marked_links",
    Base.metadata,
    Column("book_id", ForeignKey("books.id"), primary_key=True),
    Column("tag_id", ForeignKey("Tag.id"), primary_key=True),
    Column("note", String(20)),
    Column("seeded", Boolean, nullable=False, server_default=false()),
)


class Profile(Seeded, Base):
    """Its identity is a foreign key."""

    __tablename__ = "profiles"

    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"), primary_key=True)
    bio: Mapped[str]


class Folder(Seeded, Base):
    """Refers to its own table, and its identity is a combination in which NULL is possible."""

    __tablename__ = "folders"
    __table_args__ = (UniqueConstraint("parent_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("folders.id"))
    name: Mapped[str]


class Region(Seeded, Base):
    """The first in a circle of three."""

    __tablename__ = "regions"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    capital_id: Mapped[int | None] = mapped_column(ForeignKey("cities.id", use_alter=True))


class Country(Seeded, Base):
    """The second."""

    __tablename__ = "countries"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    region_id: Mapped[int] = mapped_column(ForeignKey("regions.id"))


class City(Seeded, Base):
    """The third."""

    __tablename__ = "cities"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    country_id: Mapped[int] = mapped_column(ForeignKey("countries.id"))


class Mood(enum.Enum):
    """Stored by name in a native enum."""

    GOOD = 1
    BAD = 2


class Ink(enum.StrEnum):
    """Stored by value as text."""

    BLUE = "blue"


class Pen(Seeded, Base):
    """All types of values."""

    __tablename__ = "pens"

    token: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    code: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)
    number: Mapped[int | None]
    name: Mapped[str | None] = mapped_column(String(5), unique=True)
    made: Mapped[date | None]
    sold: Mapped[datetime | None]
    price: Mapped[Decimal | None] = mapped_column(Numeric(8, 2))
    parts: Mapped[Any | None] = mapped_column(JSONB)
    raw: Mapped[Any | None] = mapped_column(JSON)
    mood: Mapped[Mood | None] = mapped_column(Enum(Mood, native_enum=False))
    ink: Mapped[Ink]


class Shelf(Seeded, Base):
    """Its key is a number that the file gives."""

    __tablename__ = "shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str | None]
'''

SEEDS = '''"""Seeds of all shapes, in an order that is nowhere right."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import select

from app.core.seeding import Seed
from app.models import Author, Book
from app.models.shapes import *


def find(column: Any, **key: str) -> Any:
    return select(column).filter_by(**key).scalar_subquery()


def link(tag: str, **more: str) -> dict[str, Any]:
    book = find(Book.id, isbn="9780807083697")
    return {"book_id": book, "tag_id": find(Tag.id, name=tag), **more}


def pen(**values: Any) -> dict[str, Any]:
    blank = dict.fromkeys(["number", "name", "made", "sold", "price", "parts", "raw", "mood"])
    return {"token": "6B3C1CDE-8E20-4C39-8F0A-2A4B3C1D0E9F", **blank, "ink": "blue", **values}


SHAPES = [
    Seed(PLAIN_LINKS, key=("book_id", "tag_id"), rows=[link("a"), link("b")]),
    Seed(MARKED_LINKS, key=("book_id", "tag_id"), rows=[link("a", note="x")]),
    Seed(Tag, key="name", rows=[{"name": "a"}, {"name": "b"}]),
    Seed(
        Profile,
        key="author_id",
        rows=[{"author_id": find(Author.id, name="Rachel Carson"), "bio": "A biologist"}],
    ),
    Seed(
        Folder,
        key=("parent_id", "name"),
        rows=[
            {"parent_id": find(Folder.id, name="branch"), "name": "leaf"},
            {"parent_id": find(Folder.id, name="root"), "name": "branch"},
            {"parent_id": None, "name": "root"},
        ],
    ),
    Seed(Region, key="name", rows=[{"name": "r", "capital_id": find(City.id, name="c")}]),
    Seed(City, key="name", rows=[{"name": "c", "country_id": find(Country.id, name="k")}]),
    Seed(Country, key="name", rows=[{"name": "k", "region_id": find(Region.id, name="r")}]),
    Seed(
        Pen,
        key="token",
        rows=[
            pen(
                number=1, name="p", made=date(2024, 2, 29), sold=datetime(2024, 3, 1, tzinfo=UTC),
                price=Decimal("1.5"), parts={"b": [1, None], "a": "ü%s"}, raw=[1, 2], mood="BAD",
            ),
            pen(token="00000000-0000-0000-0000-000000000001", made="2024-02-29", mood=Mood.GOOD),
        ],
    ),
    Seed(Shelf, key="id", rows=[{"id": 2, "label": None}, {"id": 1, "label": "low"}]),
]
'''

TAGS = 'rows=[{"name": "a"}, {"name": "b"}]'
COUNTS = {
    "plain_links": 2, "marked_links": 1, "Tag": 2, "profiles": 1, "folders": 3, "regions": 1,
    "countries": 1, "cities": 1, "pens": 2, "shelves": 2, "authors": 4, "books": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def template_of_shapes(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with those models and seeds, migrated; tests take copies of it."""
    project = copy_project(generated, tmp_path_factory.mktemp("shapes") / "book-service")
    (project.path / "app/models/shapes.py").write_text(MODELS)
    (project.path / "app/seeds/shapes.py").write_text(SEEDS)
    models = project.path / "app/models/__init__.py"
    models.write_text(models.read_text() + "\nfrom app.models import shapes  # noqa\n")
    seeds = project.path / "app/seeds/__init__.py"
    seeds.write_text(
        seeds.read_text() + "\nfrom app.seeds.shapes import SHAPES  # noqa\n\nSEEDS[:0] = SHAPES\n"
    )
    for command in (["upgrade"], ["migrate", "-m", "shapes"], ["upgrade"]):
        result = project.flask("db", *command)
        assert result.returncode == 0, result.stdout
    return project


def copy_with_database(project: Project, folder: Path) -> Project:
    copy = copy_project(project.path, folder / "book-service")
    shutil.copytree(project.path / ".postgres", copy.path / ".postgres")
    return copy


@pytest.fixture
def shapes(template_of_shapes: Project, tmp_path: Path) -> Project:
    return copy_with_database(template_of_shapes, tmp_path)


@pytest.fixture(scope="module")
def never_planted(template_of_shapes: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """For tests whose seeds are refused: what they leave behind is nothing."""
    return copy_with_database(template_of_shapes, tmp_path_factory.mktemp("never"))


def seed(project: Project, *words: str) -> str:
    result = project.flask("seed", *words)
    assert result.returncode == 0, result.stdout
    return result.stdout


def edit(project: Project, old: str, new: str) -> None:
    """Change the file of seeds."""
    file = project.path / "app/seeds/shapes.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def contents(project: Project) -> list[str]:
    """The rows of each table as JSON, all from one process: there are many tables."""
    rows = "(SELECT coalesce(json_agg(t ORDER BY t::text), '[]')::text FROM \"{}\" AS t)"
    tables = ", ".join(rows.format(table) for table in COUNTS)
    ((found,),) = ast.literal_eval(project.sql(f"SELECT ARRAY[{tables}]"))
    return found


def test_everything_is_planted_once_and_removed_at_once(shapes: Project):
    first = seed(shapes, "all")
    for noun, count in COUNTS.items():
        assert f"{noun}: {count} added, 0 restored, 0 unchanged\n" in first
    capital = "SELECT c.name FROM regions r JOIN cities c ON c.id = r.capital_id"
    assert shapes.sql(capital) == "[('c',)]"
    planted = contents(shapes)
    second = seed(shapes, "all")
    for noun, count in COUNTS.items():
        assert f"{noun}: 0 added, 0 restored, {count} unchanged\n" in second
    assert contents(shapes) == planted
    undone = seed(shapes, "undo")
    assert "left" not in undone
    assert set(contents(shapes)) == {"[]"}


def test_a_noun_goes_with_its_circle(shapes: Project):
    planted = seed(shapes, "all", "cities")
    assert sorted(line.split(":")[0] for line in planted.splitlines()) == [
        "cities",
        "countries",
        "regions",
    ]
    assert "regions: 1 removed" in seed(shapes, "undo", "countries")
    assert shapes.sql("SELECT FROM cities") == "[]"


def test_rows_of_users_stay_and_keep_what_they_refer_to(shapes: Project):
    seed(shapes, "all")
    shapes.sql(
        """INSERT INTO cities (name, country_id) SELECT 'mine', id FROM countries""",
        """INSERT INTO plain_links SELECT b.id, t.id FROM books b, "Tag" t
           WHERE isbn = '9780618249060' AND t.name = 'a'""",
        'CREATE TABLE "Notes of mine" (id int, tag bigint REFERENCES "Tag" ON DELETE CASCADE)',
        """INSERT INTO "Notes of mine" SELECT 1, id FROM "Tag" WHERE name = 'b'""",
    )
    undone = seed(shapes, "undo")
    assert "Tag: 0 removed; 2 left: other rows refer to it (a, b)" in undone
    assert "books: 3 removed; 1 left: other rows refer to it (9780618249060)" in undone
    # The country because of the user's city, the region because of the country, …
    for circle in ("regions", "countries", "cities"):
        assert f"{circle}: 0 removed; 1 left" in undone
    assert shapes.sql('SELECT count(*) FROM plain_links UNION SELECT id FROM "Notes of mine"') == (
        "[(1,)]"
    )


def test_an_existing_row_with_the_key_is_skipped(shapes: Project):
    shapes.sql("""INSERT INTO "Tag" (name) VALUES ('a')""")
    planted = seed(shapes, "all")
    assert "Tag: 1 added, 0 restored, 0 unchanged; 1 skipped: an existing row has this key (a)" in (
        planted
    )
    # Nothing would tell the seeds' link to that row from one of its owner.
    assert "plain_links: 1 added, 0 restored, 0 unchanged; 1 skipped: it links a row" in planted
    assert "left" not in seed(shapes, "undo")
    assert shapes.sql('SELECT name, seeded FROM "Tag"') == "[('a', False)]"


def test_a_start_in_development_restores_in_place(shapes: Project):
    seed(shapes, "all")
    shapes.sql(
        "CREATE TABLE sessions (pen uuid REFERENCES pens, shelf bigint REFERENCES shelves)",
        "INSERT INTO sessions SELECT token, 1 FROM pens WHERE name = 'p'",
        "UPDATE pens SET made = now(), raw = '{}', number = NULL",
    )
    ids = "SELECT id FROM authors UNION ALL SELECT id FROM books ORDER BY 1"
    kept = shapes.sql(ids)
    edit(
        shapes, '[{"id": 2, "label": None}, {"id": 1, "label": "low"}]', '[{"id": 3, "label": ""}]'
    )
    edit(shapes, '{"name": "b"}', '{"name": "c"}')
    edit(shapes, 'link("a"), link("b")', 'link("a"), link("c")')
    # A link without a mark stays when its line goes.
    shapes.sql("DELETE FROM plain_links")
    started = shapes.flask("prepare", PORT=str(free_port()))
    assert started.returncode == 0, started.stdout
    assert "pens: 0 added, 2 restored, 0 unchanged" in started.stdout
    assert "Tag, rows no longer in app/seeds: 1 removed" in started.stdout
    assert (
        "shelves, rows no longer in app/seeds: 1 removed; 1 left: other rows refer to it (1)"
        in (started.stdout)
    )
    assert shapes.sql(ids) == kept
    assert shapes.sql("SELECT name, shelf FROM sessions JOIN pens ON pen = token") == "[('p', 1)]"
    assert shapes.sql("SELECT id FROM shelves ORDER BY 1") == "[(1,), (3,)]"


def test_a_new_key_takes_over_a_unique_value(shapes: Project):
    """What `flask seed reset` has always done, a start in development does, too."""
    seed(shapes, "all")
    edit(shapes, "6B3C1CDE", "7B3C1CDE")
    started = shapes.flask("prepare", PORT=str(free_port()))
    assert started.returncode == 0, started.stdout
    assert "pens: 1 added" in started.stdout
    assert shapes.sql("SELECT count(*) FROM pens") == "[(2,)]"


def test_the_next_id_is_free(shapes: Project):
    seed(shapes, "all", "shelves")
    assert shapes.sql("INSERT INTO shelves (label) VALUES ('mine') RETURNING id") == "[(3,)]"


def test_many_rows(shapes: Project):
    many = 'rows=[{"name": str(n)} for n in range(100_000)]'
    edit(shapes, TAGS, many.replace("str(n)", "str(n % 99_999)"))
    refused = shapes.flask("seed", "all", "Tag")
    assert "row 100000 of Tag (name=0): two rows have the same key, this one and row 1" in (
        refused.stdout
    )
    edit(shapes, "str(n % 99_999)", "str(n)")
    planted = seed(shapes, "all", "Tag")
    assert "Tag: 75,000 of 100,000 rows read" in planted
    assert "Tag: 100000 added, 0 restored, 0 unchanged" in planted
    assert "Tag: 0 added, 0 restored, 100000 unchanged" in seed(shapes, "all", "Tag")
    assert "Tag: 100000 removed" in seed(shapes, "undo", "Tag")


def test_two_at_once_plant_once(shapes: Project):
    command = [shapes.python, "-m", "flask", "seed", "all"]
    processes = [shapes.popen(*command) for _ in range(3)]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert sum("Tag: 2 added" in output for output in outputs) == 1


MISTAKES = [
    ('"ink": "blue"', '"ink": "blu"', "column ink: 'blu' is not one of blue"),
    ('mood="BAD"', 'mood="WORSE"', "column mood: 'WORSE' is not one of GOOD, BAD"),
    ('made="2024-02-29"', 'made="2023-02-29"', "row 2 of pens (token=00000000"),
    ('made="2024-02-29"', 'made="infinity"', "column made: Python has no such date"),
    ('name="p"', 'name="longer"', "column name: value too long"),
    ('name="p"', 'name=["p"]', "column name: ['p'] is not text"),
    (
        "mood=Mood.GOOD",
        'name="p"',
        "row 2 of pens (token=00000000-0000-0000-0000-000000000001): dup",
    ),
    ("raw=[1, 2]", "raw={1, 2}", "column raw: Object of type set is not JSON"),
    ("number=1", "number=object()", "column number: cannot adapt type 'object'"),
    ('"ink": "blue"', '"ink": None', "column ink: it cannot be NULL"),
    (TAGS, 'rows=[{"name": "a"}, {"x": 1}]', "row 2 of Tag: all rows need the same fields"),
    (
        TAGS,
        'rows=[{"name": "a", "x": 1}]',
        "row 1 of Tag (name=a), column x: the table has no such",
    ),
    (TAGS, 'rows=[{"name": "a"}, {"name": "a"}]', "row 2 of Tag (name=a): two rows have the same"),
    (TAGS, 'rows=[{"id": 1}]', "the rows need the key 'name'"),
    (', "bio": "A biologist"', "", "row 1 of profiles, column bio: it is missing"),
    ('"Rachel Carson"', '"Nobody"', "row 1 of profiles, column author_id: it refers to no row of"),
    ('find(City.id, name="c")', "99", "row 1 of regions (name=r), column capital_id: it refers to"),
    (
        "Seed(Tag,",
        'Seed(Table("loose", Base.metadata, Column("name", String)),',
        "no column `seeded`",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES)
def test_a_mistake_in_a_seed_is_one_line(never_planted: Project, right, wrong, message):
    file = never_planted.path / "app/seeds/shapes.py"
    file.write_text(SEEDS)
    edit(never_planted, right, wrong)
    result = never_planted.flask("seed", "all")
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if "Nothing was changed." in line]
    assert line.startswith("Error: app/seeds/shapes.py: ")
    assert message in line
    assert "Traceback" not in result.stdout
    assert set(contents(never_planted)) == {"[]"}


def test_a_database_behind_the_models(project: Project):
    result = project.flask("seed", "all")
    assert result.returncode == 1
    assert "flask db upgrade" in result.stdout


def test_no_column_takes_text_that_is_not_in_its_enum(shapes: Project):
    """Neither with the base's own enum nor with one that a model spells out."""
    for wrong in ('ink="blu"', 'ink="blue", mood="WORSE"'):
        program = (
            "import uuid; from app import create_app; from app.models import db, shapes\n"
            "with create_app().app_context():\n"
            f"    db.session.add(shapes.Pen(token=uuid.uuid4(), {wrong})); db.session.commit()"
        )
        result = shapes.run(shapes.python, "-c", program)
        assert "is not among the defined enum values" in result.stdout
    assert shapes.sql("SELECT FROM pens") == "[]"
