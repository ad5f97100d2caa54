"""`flask db …` in a generated project: any schema, many processes, every command."""

import re

from conftest import Project

SLOW_REVISION = """
from alembic import op

revision = "20300101000000"
down_revision = "0001"


def upgrade():
    print("in the slow one", flush=True)
    op.execute("SELECT pg_sleep(8)")


def downgrade():
    pass
"""

NEW_COLUMN = "    subtitle: Mapped[str | None] = mapped_column(String(300))\n"


def add_to_books(project: Project, line: str) -> None:
    model = project.path / "app/models/books.py"
    model.write_text(model.read_text().replace("    genre: ", f"{line}    genre: "))


def revisions(project: Project) -> list[str]:
    return sorted(file.name for file in (project.path / "migrations/versions").glob("*.py"))


def together(project: Project, count: int, *words: str, **environment: str) -> list[str]:
    """Run the same flask command in several processes at once; return what each printed."""
    flask = [project.python, "-m", "flask", *words]
    processes = [project.popen(*flask, **environment) for _ in range(count)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    return outputs


def test_eight_upgrades_at_once_on_an_empty_database(project: Project):
    schema = "order"
    outputs = together(project, 8, "db", "upgrade", SCHEMA=schema)
    assert sum(output.count("Running upgrade") for output in outputs) == 1
    assert project.flask("db", "check", SCHEMA=schema).returncode == 0


def test_two_services_share_one_database(project: Project):
    for schema in ("public", "orders"):
        assert project.flask("db", "upgrade", SCHEMA=schema).returncode == 0
    project.flask("seed", "all", SCHEMA="orders")
    assert project.sql("SELECT count(*) FROM books", SCHEMA="orders") == "[(4,)]"
    assert project.sql("SELECT count(*) FROM books", SCHEMA="public") == "[(0,)]"
    tables = project.sql(
        "SELECT schemaname, count(*) FROM pg_tables WHERE tablename IN"
        " ('authors', 'books', 'alembic_version') GROUP BY 1 ORDER BY 1"
    )
    assert tables == "[('orders', 3), ('public', 3)]"
    add_to_books(project, NEW_COLUMN)
    project.flask("db", "migrate", "-m", "subtitle", SCHEMA="orders")
    for schema in ("public", "orders"):
        assert project.flask("db", "check", SCHEMA=schema).returncode == 1
        assert project.flask("db", "upgrade", SCHEMA=schema).returncode == 0
        assert project.flask("db", "check", SCHEMA=schema).returncode == 0
    text = (project.path / "migrations/versions" / revisions(project)[-1]).read_text()
    assert "orders" not in text
    assert "schema" not in text


def test_no_change_writes_no_file(project: Project):
    project.flask("db", "upgrade")
    result = project.flask("db", "migrate", "-m", "nothing")
    assert result.returncode == 0
    assert "no changes" in result.stdout
    assert revisions(project) == ["0001_initial.py"]


def test_files_sort_in_the_order_of_their_revisions(project: Project):
    names = ["0001_initial.py"]
    for number in range(3):
        project.flask("db", "upgrade")
        add_to_books(project, f"    extra_{number}: Mapped[int | None]\n")
        assert project.flask("db", "migrate", "-m", f"{9 - number} extra").returncode == 0
        assert project.flask("db", "revision", "-m", f"by hand {9 - number}").returncode == 0
    names = revisions(project)
    assert len(names) == 7
    history = project.flask("db", "history").stdout
    ids = re.findall(r"-> (\w+)", history)[::-1]
    assert [name.split("_")[0] for name in names] == ids


def test_every_command(project: Project):
    def flask(*words: str) -> str:
        result = project.flask("db", *words)
        assert result.returncode == 0, (words, result.stdout)
        return result.stdout

    flask("upgrade")
    assert "0001 (head)" in flask("current")
    assert "0001 (head)" in flask("heads")
    assert "initial" in flask("history")
    assert "initial" in flask("show", "0001")
    flask("check")
    flask("downgrade")
    assert "0001" not in flask("current")
    flask("stamp", "0001")
    assert "0001 (head)" in flask("current")
    flask("stamp", "base")
    flask("upgrade")
    script = flask("upgrade", "--sql")
    assert "CREATE TABLE books" in script
    assert "SET search_path = public,extensions" in script


def test_a_migration_drops_nobodys_table(project: Project):
    project.sql("CREATE TABLE precious (a int)")
    project.run("rm", "-rf", "migrations")
    project.flask("db", "init")
    assert project.flask("db", "migrate", "-m", "initial").returncode == 0
    assert project.flask("db", "upgrade").returncode == 0
    add_to_books(project, NEW_COLUMN)
    assert project.flask("db", "migrate", "-m", "subtitle").returncode == 0
    assert project.flask("db", "upgrade").returncode == 0
    assert project.flask("db", "check").returncode == 0
    assert project.sql("SELECT count(*) FROM precious") == "[(0,)]"


def test_migrations_can_be_made_anew(project: Project):
    before = (project.path / "migrations/versions/0001_initial.py").read_text()
    project.run("rm", "-rf", "migrations")
    assert project.flask("db", "init").returncode == 0
    result = project.flask("db", "migrate", "-m", "initial", "--rev-id", "0001")
    assert result.returncode == 0, result.stdout
    assert (project.path / "migrations/versions/0001_initial.py").read_text() == before


def test_a_model_written_in_the_old_style(project: Project):
    (project.path / "app/models/things.py").write_text(
        "from sqlalchemy.orm import Mapped, mapped_column\n\nfrom app.models.base import db\n\n\n"
        "class StrangeThing(db.Model):\n    id: Mapped[int] = mapped_column(primary_key=True)\n"
    )
    models = project.path / "app/models/__init__.py"
    models.write_text(models.read_text() + "\nfrom app.models.things import StrangeThing\n")
    for command in (["upgrade"], ["migrate", "-m", "things"], ["upgrade"], ["check"]):
        result = project.flask("db", *command)
        assert result.returncode == 0, result.stdout
    row = project.sql("INSERT INTO strange_thing DEFAULT VALUES RETURNING created_at, updated_at")
    assert row.count("tzinfo=") == 2


def test_a_table_in_use_is_tried_again(project: Project):
    """Another transaction holds books for a while; the upgrade steps back and comes again."""
    project.flask("db", "upgrade")
    add_to_books(project, NEW_COLUMN)
    project.flask("db", "migrate", "-m", "subtitle")
    upgrade = [project.python, "-m", "flask", "db", "upgrade"]
    with project.holding("LOCK TABLE books"):
        process = project.popen(*upgrade, MIGRATION_LOCK_TIMEOUT_MS="100")
        assert process.stdout is not None
        assert any("trying again" in line for line in process.stdout)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert project.flask("db", "check").returncode == 0


def test_a_migration_that_does_not_end_is_not_waited_for_for_ever(project: Project):
    project.flask("db", "upgrade")
    script = project.path / "migrations/versions/20300101000000_slow.py"
    script.write_text(SLOW_REVISION)
    upgrade = [project.python, "-m", "flask", "db", "upgrade"]
    with project.popen(*upgrade, APP_ENV="test") as slow:
        assert slow.stdout is not None
        assert any(line == "in the slow one\n" for line in slow.stdout)
        result = project.flask("db", "upgrade", MIGRATION_LOCK_WAIT_SECONDS="1")
        assert result.returncode == 1
        assert "waiting for" in result.stdout
        assert "MIGRATION_LOCK_WAIT_SECONDS" in result.stdout
        assert "Traceback" not in result.stdout
    assert slow.returncode == 0
