"""What a long history and long work are like; how long they take is measured by bench/scale.py."""

from conftest import Project

REVISION = """
from alembic import op

revision = "20300101000000"
down_revision = "0001"


def upgrade():
    op.execute("SELECT pg_sleep(1)")
    op.drop_column("books", "published")


def downgrade():
    op.execute("ALTER TABLE books ADD published bigint")
"""
# `flask …`, which tells what it does more often than every few seconds.
TALKATIVE = """
from flask.cli import main
from app.core import waiting

waiting.TELL_EVERY_SECONDS = 0.1
main()
"""


def add_revision(project: Project) -> None:
    (project.path / "migrations/versions/20300101000000_slow.py").write_text(REVISION)


def test_long_work_says_how_far_it_is(ready: Project):
    add_revision(ready)
    result = ready.run(ready.python, "-c", TALKATIVE, "db", "lint")
    assert "judging revisions: 0 of 1 done\n" in result.stdout


def test_an_upgrade_in_development_warns_where_there_may_be_rows(project: Project):
    add_revision(project)
    assert "column-drop" not in project.flask("db", "upgrade").stdout
    assert project.flask("db", "downgrade").returncode == 0
    assert "column-drop:books.published" in project.flask("db", "upgrade").stdout
