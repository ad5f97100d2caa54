"""Migrations under concurrency, locks and kills, against a real server."""

import re
import signal
from pathlib import Path

from conftest import Project, wait_until
from test_migrations import together

REVISION = """
from alembic import op

from app.core.backfill import backfill

revision = "{name}"
down_revision = "{parent}"


def upgrade():
    {upgrade}


def downgrade():
    pass
"""
ACTIVE = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{}%' AND pid <> pg_backend_pid()"
INDEX = "    title: Mapped[str] = mapped_column(String(300), index=True)\n"
INVALID = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
BUILT = "SELECT count(*) FROM pg_index WHERE indexrelid = 'ix_books_title'::regclass AND indisvalid"


def write(
    project: Project, upgrade: str, name: str = "20300101000000", parent: str = "0001"
) -> Path:
    file = project.path / f"migrations/versions/{name}.py"
    file.write_text(REVISION.format(name=name, parent=parent, upgrade=upgrade))
    return file


def index_the_title(project: Project) -> None:
    file = project.path / "app/models/books.py"
    old = "    title: Mapped[str] = mapped_column(String(300))\n"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, INDEX))
    assert project.flask("db", "migrate", "-m", "index the title").returncode == 0


def upgrading(project: Project, **environment: str):
    return project.popen(project.python, "-m", "flask", "db", "upgrade", **environment)


def test_five_replicas_and_a_concurrent_build(ready: Project):
    index_the_title(ready)
    outputs = together(ready, 5, "db", "upgrade")
    assert sum(output.count("index the title") for output in outputs) == 1
    assert ready.sql(BUILT) == "[(1,)]"


def test_killed_in_a_revision(ready: Project):
    write(
        ready,
        'op.execute("CREATE TABLE half (a int)")\n    op.execute("SELECT pg_sleep(600)")',
    )
    process = upgrading(ready)
    wait_until(lambda: "(1,)" in ready.sql(ACTIVE.format("pg_sleep")), "it runs")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: "(0,)" in ready.sql(ACTIVE.format("pg_sleep(600)%SELECT")), "it ended")
    wait_until(lambda: "(None,)" in ready.sql("SELECT to_regclass('half')"), "nothing is left")
    write(ready, 'op.execute("CREATE TABLE half (a int)")')
    result = ready.flask("db", "upgrade")
    assert result.returncode == 0, result.stdout


def test_killed_in_a_concurrent_build(ready: Project):
    index_the_title(ready)
    writes = "LOCK TABLE books IN ROW EXCLUSIVE MODE"
    with ready.holding(writes):
        process = upgrading(ready)
        build = ACTIVE.format("CREATE INDEX CONCURRENTLY")
        wait_until(lambda: "(1,)" in ready.sql(build), "the index is being built")
        wait_until(lambda: "(1,)" in ready.sql(INVALID), "and is not valid yet")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until(lambda: "(0,)" in ready.sql(build), "the server has ended it")
    assert ready.sql(INVALID) == "[(1,)]"
    result = ready.flask("db", "upgrade")
    assert result.returncode == 0, result.stdout
    assert "invalid index ix_books_title" in result.stdout
    assert ready.sql(BUILT) == "[(1,)]"
    assert ready.flask("db", "check").returncode == 0


def test_killed_in_a_backfill(ready: Project):
    ready.sql(
        "CREATE TABLE numbers (a int, b uuid DEFAULT gen_random_uuid(), filled int)",
        "ALTER TABLE numbers ADD PRIMARY KEY (a, b)",
        "INSERT INTO numbers (a) SELECT n % 7 FROM generate_series(1, 12000) n",
    )
    fill = 'backfill("numbers", "filled = coalesce(filled, 0) + 1", "filled IS NULL", '
    write(ready, fill + "batch_size=50, pause_seconds=0.1)")
    some = "SELECT count(*) > 200 FROM numbers WHERE filled = 1"
    process = upgrading(ready)
    wait_until(lambda: "(True,)" in ready.sql(some), "some rows are filled")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = int(
        re.findall(r"\d+", ready.sql("SELECT count(*) FROM numbers WHERE filled IS NULL"))[0]
    )
    assert 0 < left < 12000
    write(ready, fill + "batch_size=500, pause_seconds=0)")
    result = ready.flask("db", "upgrade")
    assert result.returncode == 0, result.stdout
    done = re.search(r"backfill of numbers: (\d+) of (\d+) rows \(100 %\)", result.stdout)
    assert done
    assert int(done[1]) <= left
    assert ready.sql("SELECT DISTINCT filled FROM numbers") == "[(1,)]"


def test_a_blocker_that_stays(ready: Project):
    write(ready, 'op.execute("ALTER TABLE books ADD blocked int")')
    with ready.holding("LOCK TABLE books"):
        result = ready.flask("db", "upgrade", MIGRATION_LOCK_TIMEOUT_MS="20", APP_ENV="test")
    assert result.returncode == 1
    assert "A table stayed in use" in result.stdout
    assert re.search(r"process \d+ on books", result.stdout)
    assert "Traceback" not in result.stdout
    assert result.stdout.count("trying again") == 11
    assert ready.flask("db", "upgrade").returncode == 0


def test_a_committed_revision_never_runs_again(ready: Project):
    ready.sql("CREATE TABLE runs (n int)")
    write(ready, 'op.execute("INSERT INTO runs VALUES (1)")')
    second = 'op.execute("ALTER TABLE books ADD blocked int")'
    write(ready, second, "20300101000001", "20300101000000")
    with ready.holding("LOCK TABLE books"):
        process = upgrading(ready, APP_ENV="test")
        assert process.stdout is not None
        assert any("trying again" in line for line in process.stdout)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert ready.sql("SELECT count(*) FROM runs") == "[(1,)]"


def test_mistakes_in_the_files_are_named(ready: Project):
    write(ready, "pass", "20300101000000")
    file = write(ready, "pass", "20300101000001", "20300101000000")
    twin = file.with_name("twin.py")
    twin.write_text(file.read_text())
    for command in ("upgrade", "heads", "current"):
        result = ready.flask("db", command)
        assert result.returncode == 1
        assert "are both revision 20300101000001" in result.stdout
    assert "duplicate-revision" in ready.flask("db", "lint").stdout
    twin.unlink()
    (file.with_name("20300101000000.py")).unlink()
    for command in ("upgrade", "heads", "history"):
        result = ready.flask("db", command)
        assert result.returncode == 1
        assert "20300101000000 is missing" in result.stdout
        assert "Traceback" not in result.stdout
    assert ready.flask("db", "lint").returncode == 2
    file.write_text("this is no Python")
    assert ready.flask("db", "lint").returncode == 2
    result = ready.flask("db", "upgrade")
    assert result.returncode == 1
    assert file.name in result.stdout
