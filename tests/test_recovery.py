"""docs/recovery.md: every state is made real, `flask doctor` names it, the page mends it."""

import re
from pathlib import Path

from conftest import TEMPLATE, Project, wait_until
from test_migrations import NEW_COLUMN, add_to_books

CORE = TEMPLATE / "{{cookiecutter.project_slug}}/app/core"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
REVISION = """
from alembic import op

revision = "{name}"
down_revision = "{parent}"


def upgrade():
    op.execute("{statement}")


def downgrade():
    op.execute("SELECT 1")
"""


def section(project: Project, heading: str) -> list[tuple[str, str]]:
    """The fenced blocks under a heading: language and text."""
    page = (project.path / "docs/recovery.md").read_text()
    return BLOCK.findall(page.split(f"\n## {heading}\n")[1].split("\n## ")[0])


def follow(project: Project, heading: str) -> None:
    """Do what the section says, from top to bottom."""
    done = 0
    for language, words in section(project, heading):
        if language == "sh":
            result = project.run("sh", "-euc", words)
            assert result.returncode == 0, result.stdout
            done += 1
        elif language == "sql":
            project.sql(words)
            done += 1
    assert done


def doctor(project: Project, **environment: str) -> tuple[int, str]:
    result = project.flask("doctor", **environment)
    assert "Traceback" not in result.stdout, result.stdout
    return result.returncode, result.stdout


def assert_healthy(project: Project) -> None:
    assert project.flask("db", "check").returncode == 0
    code, words = doctor(project)
    assert code == 0, words


def add_revision(project: Project, name: str, statement: str, parent: str = "0001") -> Path:
    file = project.path / f"migrations/versions/{name}.py"
    file.write_text(REVISION.format(name=name, statement=statement, parent=parent))
    return file


def assert_named(project: Project, heading: str, *parts: str, **environment: str) -> str:
    """`flask doctor` exits 1, and names the heading and these parts; return what it says."""
    code, words = doctor(project, **environment)
    assert code == 1, words
    for part in (heading, *parts):
        assert part in words
    return words


def test_every_finding_has_its_heading(project: Project):
    page = (project.path / "docs/recovery.md").read_text()
    headings = set(re.findall(r"^## (.*)$", page, re.MULTILINE))
    source = "".join(
        (CORE / name).read_text()
        for name in ("doctor.py", "migrations/failures.py", "migrations/environment.py")
    )
    named = set(re.findall(r'Line\([^)]*"([A-Z][a-z ]+[a-zA-Z ]+)"\)', source))
    named |= set(re.findall(r'heading = "([^"]+)"', source))
    assert len(named) >= 6
    assert named <= headings
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    pointed = set(re.findall(r"recovery\.md, ([^.{]+)\.", joined))
    assert len(pointed) >= 3
    assert pointed <= headings


def test_a_healthy_project(ready: Project):
    code, words = doctor(ready, SECRET_KEY="very-secret-indeed")
    assert code == 0
    assert "very-secret-indeed" not in words
    for part in ("PostgreSQL 18", "public", "0001", "agree", "replicas fit"):
        assert part in words


def test_no_connection(ready: Project):
    url = "postgresql://me:hidden-word@127.0.0.1:9/nothing"
    words = assert_named(ready, "No connection", DATABASE_URL=url, DATABASE_WAIT_SECONDS="0")
    assert "hidden-word" not in words


def test_too_many_connections(ready: Project):
    assert_named(ready, "Too many connections", DATABASE_POOL_SIZE="200")
    follow(ready, "Too many connections")


def test_the_database_is_behind(ready: Project):
    add_to_books(ready, NEW_COLUMN)
    assert_named(ready, "column books.subtitle is not in the database")
    assert ready.flask("db", "migrate", "-m", "subtitle").returncode == 0
    assert_named(ready, "The database is behind the code")
    behind = ready.flask("db", "check")
    assert behind.returncode == 1
    assert "flask db upgrade" in behind.stdout
    follow(ready, "The database is behind the code")
    assert_healthy(ready)


def test_a_pending_revision_with_hazards(ready: Project):
    add_revision(ready, "20300101000000", "ALTER TABLE books DROP COLUMN title")
    assert_named(ready, "A pending revision with hazards", "column-drop:books.title")
    ((_, command),) = section(ready, "A pending revision with hazards")
    assert ready.run("sh", "-euc", command).returncode == 1


def test_the_database_is_ahead(ready: Project):
    file = add_revision(ready, "20300101000000", "CREATE TABLE newer (a int)")
    newer = file.read_text().replace('"SELECT 1"', '"DROP TABLE newer"')
    file.write_text(newer)
    assert ready.flask("db", "upgrade").returncode == 0
    file.unlink()
    for command in ("upgrade", "current", "check"):
        result = ready.flask("db", command)
        assert result.returncode == 1
        assert "which this code does not have" in result.stdout
        assert "Traceback" not in result.stdout
    assert_named(ready, "The database is ahead of the code")
    file.write_text(newer)
    (downgrade,) = [
        words
        for language, words in section(ready, "The database is ahead of the code")
        if not language
    ]
    assert ready.run("sh", "-euc", downgrade).returncode == 0
    file.unlink()
    assert_healthy(ready)
    ready.sql("UPDATE alembic_version SET version_num = 'gone'")
    follow(ready, "The database is ahead of the code")
    assert_healthy(ready)


def test_several_heads(ready: Project):
    add_revision(ready, "20300101000000", "SELECT 1")
    add_revision(ready, "20300101000001", "SELECT 2")
    lint = ready.flask("db", "lint")
    assert lint.returncode == 1
    assert "flask db merge heads" in lint.stdout
    upgrade = ready.flask("db", "upgrade")
    assert upgrade.returncode == 1
    assert "flask db merge heads" in upgrade.stdout
    assert_named(ready, "Several heads")
    follow(ready, "Several heads")
    assert_healthy(ready)


def test_tables_without_a_revision(ready: Project):
    ready.sql("DROP TABLE alembic_version")
    for command in (["upgrade"], ["migrate", "-m", "x"]):
        refused = ready.flask("db", *command)
        assert refused.returncode == 1
        assert "flask db stamp 0001" in refused.stdout
        assert "Traceback" not in refused.stdout
    assert_named(ready, "Database out of sync")
    follow(ready, "Database out of sync")
    assert_healthy(ready)
    assert ready.sql("SELECT count(*) FROM books") == "[(4,)]"


def test_drift(ready: Project):
    ready.sql("ALTER TABLE books ADD by_hand int")
    assert_healthy(ready)
    ready.sql("ALTER TABLE books ALTER title TYPE varchar(20)")
    assert_named(ready, "Database out of sync", "column books.title is VARCHAR(300)")


def test_reset_of_the_migrations(ready: Project):
    follow(ready, "Reset of the migrations")
    assert_healthy(ready)


def test_a_failed_migration(ready: Project):
    fails = "SELECT 1 / (SELECT count(*) FROM authors WHERE name = 'Somebody')"
    add_revision(ready, "20300101000000", fails)
    failed = ready.flask("db", "upgrade")
    assert failed.returncode == 1
    assert "division by zero" in failed.stdout
    assert "A failed migration" in failed.stdout
    assert "Traceback" not in failed.stdout
    ready.sql("INSERT INTO authors (name) VALUES ('Somebody')")
    follow(ready, "A failed migration")
    assert_healthy(ready)


def without_the_look(revision: str) -> str:
    """A revision as people write it by hand, and as earlier versions of the template did."""
    return re.sub(r"^    refuse_if_rows\(.*?\)\n", "", revision, flags=re.MULTILINE | re.DOTALL)


def test_bad_data_found_by_validate(ready: Project):
    ready.sql("UPDATE books SET published = -5 WHERE id IN (SELECT min(id) FROM books)")
    file = ready.path / "app/models/books.py"
    text = file.read_text().replace("import ForeignKey", "import CheckConstraint, ForeignKey")
    table = '    __tablename__ = "books"\n'
    check = '    __table_args__ = (CheckConstraint("published > 0", name="published_positive"),)\n'
    file.write_text(text.replace(table, table + check))
    assert ready.flask("db", "migrate", "-m", "positive").returncode == 0
    (first,) = (ready.path / "migrations/versions").glob("*_positive.py")
    first.write_text(without_the_look(first.read_text()))
    failed = ready.flask("db", "upgrade")
    assert failed.returncode == 1
    assert "Bad data found by VALIDATE" in failed.stdout
    assert_named(ready, "Bad data found by VALIDATE")
    follow(ready, "Bad data found by VALIDATE")
    assert_healthy(ready)


def test_a_migration_that_waits(ready: Project):
    add_revision(ready, "20300101000000", "ALTER TABLE books ALTER published SET DEFAULT NULL")
    with ready.holding("LOCK TABLE books"):
        waiting = ready.popen(ready.python, "-m", "flask", "db", "upgrade")
        assert waiting.stdout is not None
        line = next(line for line in waiting.stdout if "a table is in use" in line)
        assert re.search(r"by process \d+ on books \(\d+ s old, idle in transaction: ", line), line
        follow(ready, "A migration that waits")
        rest = waiting.communicate()[0]
        assert waiting.returncode == 0, rest
    assert_healthy(ready)


def test_a_database_that_is_stuck(ready: Project):
    with ready.holding("LOCK TABLE books"):
        with ready.holding("LOCK TABLE books", until_held=False):
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            wait_until(lambda: "(1,)" in ready.sql(waits), "somebody waits")
            assert_named(ready, "A database that is stuck")
            *blocks, (_, last) = section(ready, "A database that is stuck")
            for _, words in blocks:
                ready.sql(words)
            wait_until(lambda: "(0,)" in ready.sql(waits), "nobody waits any more")
        assert ready.run("sh", "-euc", last).returncode == 0
