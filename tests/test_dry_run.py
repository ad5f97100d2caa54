"""What lint says of a revision is what `flask db upgrade` does; the real schema never notices."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project, copy_project

WORKER = Path(__file__).parent / "dry_run_worker.py"
TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'well');
CREATE TABLE senders (id bigserial PRIMARY KEY, name varchar(200) NOT NULL UNIQUE, mood mood);
CREATE TABLE parcels (
    id bigserial PRIMARY KEY,
    code varchar(13) NOT NULL UNIQUE,
    label varchar(300) NOT NULL,
    weight bigint,
    data jsonb,
    sender_id bigint NOT NULL REFERENCES senders
);
CREATE TABLE readings (id bigint, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE readings_1 PARTITION OF readings FOR VALUES FROM ('2020-01-01') TO ('2030-01-01');
CREATE VIEW heavy AS SELECT id, code FROM parcels WHERE weight > 100;
CREATE SEQUENCE numbers;
"""
ROWS = """
INSERT INTO senders (name, mood) SELECT 'n' || g, 'well' FROM generate_series(1, 9) g;
INSERT INTO parcels (code, label, sender_id) SELECT 'c' || g, 'l', g FROM generate_series(1, 9) g;
"""
BLOCK = "with op.get_context().autocommit_block():\n        "
THEN = "\n    "
SET_LABEL = "UPDATE parcels SET label = 'x' "
WELL = "UPDATE senders SET mood = 'glad' WHERE id = 1"
DEFERRED = "CREATE TABLE d (id int PRIMARY KEY, up int REFERENCES d DEFERRABLE INITIALLY DEFERRED)"


def sql(*statements: str) -> str:
    """The body of an upgrade() that sends these statements."""
    return THEN.join(f'op.execute("""{each} """)' for each in statements)


# They run, and lint has nothing against them.
CLEAN = {
    "body in standard SQL": sql(
        "CREATE FUNCTION f(a bigint) RETURNS bigint BEGIN ATOMIC "
        "SELECT CASE WHEN a > 1 THEN 2 ELSE 3 END; SELECT 1; END"
    ),
    "semicolons in a rule": sql(
        "CREATE TABLE log (x text); CREATE RULE r AS ON UPDATE TO log "
        "DO ALSO (INSERT INTO log VALUES ('a'); INSERT INTO log VALUES ('b'))"
    ),
    "words in strings": sql(
        "INSERT INTO senders (name) VALUES (E'a\\\\'; DROP TABLE parcels; --'), "
        "($q$ ; TRUNCATE parcels; $$ $q$)"
    ),
    "nested comment": sql("/* a /* b; */ DROP TABLE parcels; */ SELECT 1"),
    "weak lock": sql("LOCK TABLE parcels IN ACCESS SHARE MODE"),
    "one row": sql(SET_LABEL + "WHERE (weight IS NULL OR weight = 3) AND code = 'c3'"),
    "join with a value": sql(
        SET_LABEL + "FROM senders s WHERE s.id = parcels.sender_id AND s.name = 'n3'"
    ),
    "chosen rows": sql(SET_LABEL + "FROM (VALUES ('c1')) v(c) WHERE v.c = parcels.code"),
    "new view in place of the old": sql("DROP VIEW heavy; CREATE VIEW heavy AS SELECT 1 AS id"),
    "concurrent build": BLOCK + sql("CREATE INDEX CONCURRENTLY ix ON parcels (weight)"),
    "error that is caught": BLOCK
    + "try:\n            op.execute('SELECT * FROM nowhere')\n        except Exception:\n"
    + "            pass\n        "
    + sql("CREATE INDEX CONCURRENTLY ix ON parcels (weight)"),
    "index of a partitioned table": sql("CREATE INDEX ix ON ONLY readings (day)")
    + THEN
    + BLOCK
    + sql("CREATE INDEX CONCURRENTLY ix_1 ON readings_1 (day)")
    + THEN
    + sql("ALTER INDEX ix ATTACH PARTITION ix_1"),
    "vacuum": BLOCK + sql("VACUUM parcels"),
    "savepoint": "with op.get_bind().begin_nested():\n        op.execute('SELECT 1')",
    "print": "print('hello')",
    "name of the schema": sql(
        "ALTER TABLE public.parcels ADD x int; SELECT 'public.numbers'::regclass"
    ),
    "question for the catalog": (
        "found = sa.inspect(op.get_bind()).get_table_names(schema='public')\n"
        "    assert 'parcels' in found"
    ),
    "word that is the name of the schema": sql("CREATE TABLE t (seen text DEFAULT 'public')"),
    "value that was committed": BLOCK + sql("ALTER TYPE mood ADD VALUE 'glad'") + THEN + sql(WELL),
    "cursor of the driver": (
        "cursor = op.get_bind().connection.cursor()\n"
        "    cursor.execute('ALTER TABLE parcels ADD z int')"
    ),
    "backfill": "backfill('parcels', '''data = '{\"a\":true, \"at\":\"10:30\"}'::jsonb''', "
    "where=\"data IS NULL AND label LIKE 'l%'\")",
    "extension": sql("CREATE EXTENSION vector", "ALTER TABLE parcels ADD e vector(3)"),
    "extension in a block": sql(
        "DO $$ BEGIN CREATE EXTENSION IF NOT EXISTS vector; END $$",
        "ALTER TABLE parcels ADD e vector(3)",
    ),
    "only data": sql("INSERT INTO senders (name) VALUES ('a 100%')"),
}
# The same of several revisions.
CLEAN_TOGETHER = {
    "new value, then its use": [sql("ALTER TYPE mood ADD VALUE 'glad'"), sql(WELL)],
    "deferred constraint": [
        sql(DEFERRED, "INSERT INTO d VALUES (1, 2), (2, 1)"),
        sql("ALTER TABLE d ADD x int"),
    ],
    "temporary table": [sql("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1 AS a")] * 2,
    "another schema": [
        sql("CREATE SCHEMA IF NOT EXISTS extra; CREATE TABLE IF NOT EXISTS extra.t (x int)"),
        sql("ALTER TABLE extra.t ADD COLUMN IF NOT EXISTS y int"),
    ],
    "two validations": [
        sql("ALTER TABLE parcels ADD CONSTRAINT a CHECK (id > 0) NOT VALID")
        + THEN
        + sql("ALTER TABLE parcels ADD CONSTRAINT b CHECK (id > 0) NOT VALID"),
        sql(
            "ALTER TABLE parcels VALIDATE CONSTRAINT a", "ALTER TABLE parcels VALIDATE CONSTRAINT b"
        ),
    ],
}
# They run, and lint says what they would do.
HAZARDS = {
    "SET": (sql("SET lock_timeout = 0"), "run-setting:lock_timeout"),
    "SET LOCAL": (sql("SET LOCAL statement_timeout = 900"), "run-setting:statement_timeout"),
    "set_config": (
        sql("DO $$ BEGIN PERFORM set_config('lock_timeout', '9s', true); END $$"),
        "run-setting:lock_timeout",
    ),
    "set and reset": (
        sql("SET lock_timeout = 0", "ALTER TABLE parcels ADD x int", "RESET lock_timeout"),
        "run-setting:lock_timeout",
    ),
    "for good": (
        sql("ALTER ROLE CURRENT_USER SET lock_timeout = '3s'"),
        "run-setting:lock_timeout",
    ),
    "lock": (sql("LOCK TABLE parcels"), "lock-table:parcels"),
    "join": (
        sql(SET_LABEL + "FROM senders s WHERE s.id = parcels.sender_id"),
        "whole-table-update:parcels",
    ),
    "always true": (sql(SET_LABEL + "WHERE code = 'c1' OR 1 = 1"), "whole-table-update:parcels"),
    "where of a subquery": (
        sql("UPDATE parcels SET label = (SELECT name FROM senders s WHERE s.id = 1)"),
        "whole-table-update:parcels",
    ),
    "sequence": (sql("DROP SEQUENCE numbers"), "object-drop:numbers"),
    "view": (sql("DROP VIEW heavy"), "object-drop:heavy"),
    "enum type": (sql("ALTER TYPE mood RENAME TO feeling"), "object-rename:mood"),
    "enum value": (sql("ALTER TYPE mood RENAME VALUE 'well' TO 'fine'"), "enum-value-removed:mood"),
    "end of the transaction": (sql("COMMIT"), "ends-transaction"),
    "becomes required": (
        sql("ALTER TABLE parcels ADD r text", SET_LABEL.replace("label", "r"))
        + THEN
        + sql("ALTER TABLE parcels ALTER r SET NOT NULL"),
        "set-not-null:parcels.r",
    ),
}
# They fail, and lint says so first.
FAILING = {
    "CONCURRENTLY on a partitioned table": (
        BLOCK + sql("CREATE INDEX CONCURRENTLY ix ON readings (day)"),
        "partitioned-index:readings.ix",
    ),
    "two commands in one call": (
        BLOCK
        + sql("DROP INDEX CONCURRENTLY IF EXISTS a; CREATE INDEX CONCURRENTLY a ON parcels (id)"),
        "concurrently-in-transaction",
    ),
    "CONCURRENTLY of two": (BLOCK + sql("DROP INDEX CONCURRENTLY a, b"), "multiple objects"),
    "VACUUM of nothing": (BLOCK + sql("VACUUM nowhere"), "nowhere"),
    "savepoint without a transaction": (
        BLOCK + "with op.get_bind().begin_nested():\n            op.execute('SELECT 1')",
        "SAVEPOINT can only be used in transaction blocks",
    ),
    "lost transaction": (
        "try:\n        op.execute('SELECT * FROM nowhere')\n    except Exception:\n        pass",
        "transaction that is lost",
    ),
    "value before its commit": (
        sql("ALTER TYPE mood ADD VALUE 'glad'", WELL),
        "unsafe use of new value",
    ),
    "view in the way": (sql("ALTER TABLE parcels ALTER code TYPE varchar(50)"), "view"),
    "constraint at the end": (sql(DEFERRED, "INSERT INTO d VALUES (1, 2)"), "foreign key"),
    "work that waits for the end": (
        sql(DEFERRED, "INSERT INTO d VALUES (1, 1)", "ALTER TABLE d ADD x int"),
        "pending trigger",
    ),
    "column of a backfill": ("backfill('parcels', 'nope = 1', where='id > 5')", "nope"),
    "value of a backfill": (
        "backfill('parcels', \"weight = 'x'\", where='weight IS NULL')",
        "invalid input syntax",
    ),
    "arguments of a backfill": (
        "backfill('parcels', 'weight = 1', where='id > 5', batch_size=0)",
        "batch_size",
    ),
    "end of the process": ("raise SystemExit(3)", "SystemExit"),
}
EMBEDDING = sql("CREATE EXTENSION IF NOT EXISTS vector", "ALTER TABLE books ADD e vector(3)")


@pytest.fixture(scope="module")
def answers(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What the worker says of all these revisions."""
    project = copy_project(generated, tmp_path_factory.mktemp("dry run") / "book-service")
    works = {
        **{name: [upgrade] for name, upgrade in CLEAN.items()},
        **CLEAN_TOGETHER,
        **{name: [upgrade] for name, (upgrade, _) in {**HAZARDS, **FAILING}.items()},
    }
    file = project.path.parent / "works.json"
    file.write_text(json.dumps([TABLES, ROWS, *works.values()]))
    result = project.run(project.python, WORKER, file, PYTHONPATH=str(project.path))
    assert result.returncode == 0, result.stdout
    return dict(zip(works, json.loads(result.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", [*CLEAN, *CLEAN_TOGETHER])
def test_clean_and_runs(answers, name):
    answer = answers[name]
    assert (answer["exit_code"], answer["upgraded"]) == (0, True), answer["text"]
    assert answer["replayed"] == 0


@pytest.mark.parametrize("name", HAZARDS)
def test_a_hazard_that_runs(answers, name):
    answer = answers[name]
    assert (answer["exit_code"], answer["upgraded"]) == (1, True), answer["text"]
    assert f"  {HAZARDS[name][1]}\n" in answer["text"]
    assert "required-column" not in answer["text"]


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_is_not_clean(answers, name):
    answer = answers[name]
    assert not answer["upgraded"]
    assert answer["exit_code"] in (1, 2), answer["text"]
    assert FAILING[name][1] in answer["text"]
    assert "dry_run_" not in answer["text"]


def add_revision(project: Project, name: str, upgrade: str, downgrade: str = "pass") -> Path:
    """Write a revision by hand."""
    result = project.flask("db", "revision", "-m", name)
    assert result.returncode == 0, result.stdout
    file = next((project.path / "migrations/versions").glob(f"*_{name}.py"))
    text = file.read_text().replace("-> None:\n    pass", f"-> None:\n    {upgrade}", 1)
    file.write_text(text.replace("-> None:\n    pass", f"-> None:\n    {downgrade}", 1))
    return file


def test_neither_rows_nor_locks_of_the_real_schema_matter(ready):
    fill = "backfill('books', 'published = 1', where='id > 0')"
    add_revision(ready, "fill", f"from app.core.backfill import backfill\n    {fill}")
    with ready.holding("LOCK TABLE books, authors"):
        for revisions in ("base:head", "head"):
            result = ready.flask("db", "lint", revisions)
            assert result.returncode == 0, result.stdout
            assert "backfill of books: 1" not in result.stdout
    assert ready.sql("SELECT count(*) FROM books WHERE published = 1") == "[(0,)]"


def test_what_needs_rows_is_said_so_and_the_next_is_judged(ready):
    look = "op.add_column('books', sa.Column('x', sa.Text()))\n    "
    look += "op.get_bind().execute(sa.text('SELECT id FROM books')).one()"
    add_revision(ready, "look", look, "op.drop_column('books', 'x')")
    add_revision(
        ready, "drop", sql("ALTER TABLE books DROP x"), sql("ALTER TABLE books ADD x text")
    )
    result = ready.flask("db", "lint")
    assert result.returncode == 1
    assert "needs rows, and a dry run has none (NoResultFound" in result.stdout
    assert "column-drop:books.x" in result.stdout


def test_a_connection_of_its_own_is_refused(ready):
    delete = "execute(sa.text('DELETE FROM books'))"
    engine = f"with op.get_bind().engine.begin() as other:\n        other.{delete}"
    add_revision(ready, "other", engine)
    session = f"from app.models import db\n    db.session.{delete}\n    db.session.commit()"
    add_revision(ready, "session", session)
    before = ready.sql("SELECT count(*) FROM books")
    for revision in ("head-1", "head"):
        result = ready.flask("db", "lint", revision)
        assert result.returncode == 2
    assert "connection of its own" in ready.flask("db", "lint").stdout
    assert ready.sql("SELECT count(*) FROM books") == before


def test_a_setting_does_not_reach_the_next_revision(ready):
    add_revision(ready, "loose", sql("SET lock_timeout = '77s'"))
    look = "found = op.get_bind().execute(sa.text('SHOW lock_timeout')).scalar()\n    "
    add_revision(
        ready, "next", look + "op.create_table('seen_' + found, sa.Column('x', sa.Text()))"
    )
    result = ready.flask("db", "upgrade")
    assert result.returncode == 0, result.stdout
    names = ready.sql("SELECT tablename FROM pg_tables WHERE tablename LIKE 'seen%'")
    assert "seen_77s" not in names
    assert "seen_" in names


def test_json_is_json_when_a_revision_prints(ready):
    file = add_revision(ready, "talk", 'print("in the middle")')
    file.write_text(file.read_text() + '\nprint("at the top")\n')
    script = ".venv/bin/flask db lint --json 2>/dev/null"
    result = ready.run("sh", "-c", script)
    assert json.loads(result.stdout)["revisions"][0]["hazards"] == []


def test_an_extension_is_there_in_every_schema(project):
    assert project.flask("db", "upgrade").returncode == 0
    # One that somebody made by hand, where one schema alone would see it.
    project.sql("CREATE EXTENSION vector SCHEMA public")
    add_revision(
        project, "embedding", EMBEDDING, sql("ALTER TABLE books DROP e", "DROP EXTENSION vector")
    )
    upgrade = project.flask("db", "upgrade")
    assert upgrade.returncode == 0, upgrade.stdout
    assert "vector moved from schema public to extensions" in upgrade.stdout
    second = project.flask("db", "upgrade", SCHEMA="second")
    assert second.returncode == 0, second.stdout
    for words in (["lint", "base:head"], ["check"]):
        result = project.flask("db", *words, SCHEMA="second")
        assert result.returncode in (0, 1)
        assert "could not be judged" not in result.stdout
    tests = project.run(project.python, "-m", "pytest", "-q", "tests/test_health.py")
    assert tests.returncode == 0, tests.stdout
    # The other schema goes on using it.
    assert project.flask("db", "downgrade", SCHEMA="second").returncode == 0
    assert project.sql("SELECT count(*) FROM pg_extension WHERE extname = 'vector'") == "[(1,)]"


@pytest.fixture
def running(ready: Project) -> Iterator[Project]:
    """The project with its embedded server up."""
    with ready.holding("SELECT 1"):
        yield ready


def test_a_role_that_may_not_create_a_schema(running):
    running.sql("CREATE ROLE app LOGIN", "CREATE DATABASE team", "CREATE ROLE dba LOGIN SUPERUSER")
    where = "from app.core import embedded; print(embedded.url().query['host'])"
    at = f"@/team?host={running.run(running.python, '-c', where).stdout.strip()}"
    dba = {"DATABASE_URL": f"postgresql://dba{at}"}
    app = {"DATABASE_URL": f"postgresql://app{at}", "SCHEMA": "shop"}
    running.sql("CREATE SCHEMA shop AUTHORIZATION app", **dba)
    assert running.flask("db", "upgrade", **app).returncode == 0
    refused = running.flask("db", "migrate", "-m", "none", **app)
    assert refused.returncode == 1
    statement = "CREATE SCHEMA shop_dry_run AUTHORIZATION app;"
    assert statement in refused.stdout
    running.sql(statement, **dba)
    for words in (["migrate", "-m", "none"], ["lint", "base:head"], ["check"]):
        result = running.flask("db", *words, **app)
        assert result.returncode == 0, result.stdout
    # What belongs to somebody else fails in lint, as it fails in the upgrade.
    running.sql("ALTER TABLE shop.books OWNER TO dba", **dba)
    add_revision(
        running, "own", sql("ALTER TABLE books ADD x int"), sql("ALTER TABLE books DROP x")
    )
    lint = running.flask("db", "lint", **app)
    assert lint.returncode == 2
    assert "must be owner of table books" in lint.stdout
    assert running.flask("db", "upgrade", **app).returncode == 1


def test_a_type_of_the_team_is_written_with_its_import(ready):
    (ready.path / "app/models/lowered.py").write_text(
        "from sqlalchemy import String\nfrom sqlalchemy.types import TypeDecorator\n\n\n"
        "class Lowered(TypeDecorator):\n    impl = String\n    cache_ok = True\n"
    )
    model = ready.path / "app/models/books.py"
    text = model.read_text().replace(
        "    published:",
        "    slug: Mapped[str | None] = mapped_column(Lowered(80))\n    published:",
    )
    model.write_text(
        text.replace(
            "from app.models.base", "from app.models.lowered import Lowered\nfrom app.models.base"
        )
    )
    for words in (["migrate", "-m", "slug"], ["lint"], ["upgrade"], ["check"]):
        result = ready.flask("db", *words)
        assert result.returncode == 0, result.stdout


def test_what_cannot_run_is_not_acknowledged(ready):
    file = add_revision(ready, "broken", sql("ALTER TABLE books ALTER isbn TYPE bigint"))
    file.write_text(
        file.read_text() + "\nacknowledged = {'fails': 'no', 'type-change': 'a small table'}\n"
    )
    result = ready.flask("db", "lint")
    assert result.returncode != 0
    assert "cannot be cast automatically" in result.stdout


@pytest.mark.parametrize("schema", ["public", "other"])
def test_nothing_is_left_of_it(ready, schema):
    for words in (["upgrade"], ["lint", "base:head"], ["check"]):
        assert ready.flask("db", *words, SCHEMA=schema).returncode == 0
    left = ready.sql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'dry%run%'")
    assert left == "[(0,)]"
