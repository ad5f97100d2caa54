"""`flask seed …` on models that are harder than the example's."""

import pytest
from conftest import Project

MODELS = '''"""Harder models."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Seeded


class Tag(Seeded, Base):
    """Nothing but its key, in a table whose name needs quotes."""

    __tablename__ = "Tag"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Folder(Seeded, Base):
    """Refers to its own table."""

    __tablename__ = "folders"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("folders.id"))
'''

SEEDS = '''"""Harder seeds."""

from sqlalchemy import select

from app.core.seeding import Seed
from app.models.hard import Folder, Tag


def _parent(name: str):
    return select(Folder.id).where(Folder.name == name).scalar_subquery()


TAGS = Seed(Tag, key="name", rows=[{"name": "a"}, {"name": "b"}])
FOLDERS = Seed(
    Folder,
    key="name",
    rows=[
        {"name": "leaf", "parent_id": _parent("branch")},
        {"name": "branch", "parent_id": _parent("root")},
        {"name": "root", "parent_id": _parent("root")},
    ],
)
'''


@pytest.fixture
def hard(project: Project) -> Project:
    """A project with those models and seeds, migrated."""
    (project.path / "app/models/hard.py").write_text(MODELS)
    (project.path / "app/seeds/hard.py").write_text(SEEDS)
    models = project.path / "app/models/__init__.py"
    models.write_text(models.read_text() + "\nfrom app.models.hard import Folder, Tag  # noqa\n")
    seeds = project.path / "app/seeds/__init__.py"
    seeds.write_text(
        seeds.read_text() + "\nfrom app.seeds.hard import FOLDERS, TAGS  # noqa\n\n"
        "SEEDS += [TAGS, FOLDERS]\n"
    )
    for command in (["upgrade"], ["migrate", "-m", "hard"], ["upgrade"]):
        result = project.flask("db", *command)
        assert result.returncode == 0, result.stdout
    return project


def seed(project: Project, *words: str) -> str:
    result = project.flask("seed", *words)
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_twice_is_once_and_undo_is_complete(hard: Project):
    first = seed(hard, "all")
    assert "Tag: 2 added" in first
    assert "folders: 3 added" in first
    tree = "SELECT count(*) FROM folders JOIN folders parent ON parent.id = folders.parent_id"
    assert hard.sql(tree) == "[(3,)]"
    second = seed(hard, "all")
    assert "Tag: 0 added, 0 restored, 2 unchanged" in second
    assert "folders: 0 added, 0 restored, 3 unchanged" in second
    undone = seed(hard, "undo")
    assert "left" not in undone
    assert hard.sql('SELECT (SELECT count(*) FROM "Tag"), count(*) FROM folders') == "[(0, 0)]"


def test_a_users_row_in_a_table_without_a_model_is_safe(hard: Project):
    seed(hard, "all")
    hard.sql('CREATE TABLE "Notes of mine" (id int, tag bigint REFERENCES "Tag" ON DELETE CASCADE)')
    hard.sql('INSERT INTO "Notes of mine" SELECT 1, id FROM "Tag" WHERE name = \'a\'')
    assert "Tag: 1 removed; 1 left, other rows refer to it: a" in seed(hard, "reset")
    assert hard.sql('SELECT count(*) FROM "Notes of mine"') == "[(1,)]"


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('key="name", rows=[{"name": "a"}', 'key="nam", rows=[{"name": "a"}', "the key 'nam'"),
        ('{"name": "b"}', '{"name": "b", "x": 1}', "the same fields"),
        ('{"name": "b"}', '{"name": "a"}', "two rows have the same key"),
    ],
)
def test_a_mistake_in_a_seed_is_named(hard: Project, right, wrong, message):
    seeds = hard.path / "app/seeds/hard.py"
    seeds.write_text(SEEDS.replace(right, wrong))
    result = hard.flask("seed", "all")
    assert result.returncode != 0
    assert message in result.stdout
