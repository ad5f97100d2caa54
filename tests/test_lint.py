"""What `flask db lint` says of hand-written revisions; the server is asked for each.

The history and its tables are the test's own: nothing of the example is in the way. Many revisions
are judged in one process of the project, because to start one takes longer than to judge one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Project, copy_project

REVISION = """
import sqlalchemy as sa
from alembic import context, op

revision = "lint_me"
down_revision = "lint_before"
{facts}


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
"""
BEFORE = """
from alembic import op

revision = "lint_before"
down_revision = None


def upgrade():
    op.execute('''{tables}''')


def downgrade():
    op.execute("DROP TABLE parcels, senders")
"""
TABLES = """
CREATE TABLE senders (id bigserial PRIMARY KEY, name varchar(200) NOT NULL UNIQUE);
CREATE TABLE parcels (
    id bigserial CONSTRAINT pk_parcels PRIMARY KEY,
    code varchar(13) NOT NULL UNIQUE,
    label varchar(300) NOT NULL,
    weight bigint,
    sender_id bigint NOT NULL REFERENCES senders
)"""
BLOCK = "with op.get_context().autocommit_block():\n        "
COLUMN = 'op.add_column("parcels", sa.Column("x", {}))'

HAZARDS = {
    'op.add_column("parcels", sa.Column("x", sa.Text(), nullable=False))': {"required-column"},
    COLUMN.format('sa.Uuid(), server_default=sa.text("gen_random_uuid()")'): {"volatile-default"},
    COLUMN.format("sa.Integer(), sa.Identity()"): {"identity-column"},
    COLUMN.format('sa.Integer(), sa.Computed("id * 2", persisted=True)'): {"generated-column"},
    COLUMN.format("sa.JSON()"): {"json-column"},
    'op.execute("ALTER TABLE parcels ADD n serial")': {"identity-column"},
    'op.alter_column("parcels", "label", type_=sa.String(20))': {"type-change"},
    'op.get_bind().execute(sa.text("alter table parcels alter id type int"))': {"type-change"},
    'op.drop_column("parcels", "label")': {"column-drop"},
    "op.execute(f\"DO $$ BEGIN EXECUTE 'alter table parcels ' || 'drop label'; END $$\")": {
        "column-drop"
    },
    'op.alter_column("parcels", "label", new_column_name="name")': {"column-rename"},
    'op.drop_table("parcels")': {"table-drop"},
    'op.rename_table("parcels", "volumes")': {"table-rename"},
    'op.execute("CLUSTER parcels USING pk_parcels")': {"table-rewrite"},
    'op.execute("ALTER TABLE parcels DROP CONSTRAINT pk_parcels, ADD PRIMARY KEY (code)")': {
        "primary-key"
    },
    'op.execute("ALTER TABLE parcels ADD EXCLUDE USING gist (int8range(id, id + 1) WITH &&)")': {
        "exclusion-constraint"
    },
    'op.create_index("ix", "parcels", ["label"])': {"index-build"},
    'op.create_unique_constraint("uq", "parcels", ["label"])': {"unique-constraint"},
    'op.create_foreign_key("fk", "parcels", "senders", ["id"], ["id"])': {"foreign-key"},
    'op.create_check_constraint("positive", "parcels", "id > 0")': {"check-constraint"},
    'op.alter_column("parcels", "weight", nullable=False)': {"set-not-null"},
    'op.execute("ALTER TABLE parcels ADD CONSTRAINT c CHECK (id > 0) NOT VALID")\n'
    '    op.execute("ALTER TABLE parcels VALIDATE CONSTRAINT c")': {"validate-with-ddl"},
    'op.execute("COMMIT")\n'
    '    op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix")\n'
    '    op.execute("create index concurrently ix on parcels (label)")': {
        "concurrently-in-transaction"
    },
    COLUMN.format("sa.Text()")
    + "\n    op.execute(\"UPDATE parcels SET x = 'a' WHERE x IS NULL\")": {"whole-table-update"},
    'op.execute("delete from parcels")': {"whole-table-update"},
    "op.execute(\"UPDATE parcels AS p SET label = 'a' WHERE true\")": {"whole-table-update"},
    'op.execute("MERGE INTO parcels p USING senders s ON s.id = p.sender_id '
    'WHEN MATCHED THEN DELETE")': {"whole-table-update"},
    'op.execute("VACUUM parcels")': {"concurrently-in-transaction"},
    BLOCK + 'op.execute("VACUUM (ANALYZE, FULL) parcels")': {"table-rewrite"},
    'op.execute("TRUNCATE senders CASCADE")': {"truncate"},
    'op.execute("DROP SCHEMA other CASCADE")': {"schema-drop"},
    'op.execute("DROP DATABASE other")': {"database-drop"},
}

SAFE = [
    BLOCK + 'op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS ix ON parcels (label)")',
    COLUMN.format("sa.Text()"),
    COLUMN.format('sa.Integer(), server_default="0", nullable=False'),
    COLUMN.format("sa.DateTime(), server_default=sa.func.now(), nullable=False"),
    'op.alter_column("parcels", "label", type_=sa.String(500))',
    'op.alter_column("parcels", "label", type_=sa.Text())',
    'op.create_foreign_key("fk", "parcels", "senders", ["id"], ["id"], postgresql_not_valid=True)',
    BLOCK + 'op.drop_index("ix", if_exists=True, postgresql_concurrently=True)\n'
    '        op.create_index("ix", "parcels", ["label"], postgresql_concurrently=True)',
    "op.execute(\"UPDATE parcels SET weight = 1 WHERE code = '123'\")",
    "op.execute(\"INSERT INTO senders (name) VALUES ('drop schema x; truncate parcels cascade')\")",
    'op.execute("/* drop table parcels */ SELECT 1 -- truncate parcels")',
    'op.create_table("new", sa.Column("id", sa.Integer(), primary_key=True))\n'
    '    op.create_index("ix", "new", ["id"])\n'
    '    op.execute("ALTER TABLE new ADD x serial; ALTER TABLE new DROP id; UPDATE new SET x = 1")',
]

# Run in the project: judges each of the revisions in a file of JSON, and prints the reports.
JUDGE = """
import json
import sys
from pathlib import Path

from app import create_app
from app.config import load_settings
from app.core import history
from app.core.safety import judge

settings = load_settings()
reports = []
with create_app(settings).app_context():
    for number, revision in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        file = history.FOLDER / "versions" / f"lint_me_{number}.py"
        file.write_text(revision)
        report = judge(settings, "lint_me", set())
        reports.append(json.loads(report.json()) | {"text": report.text()})
        file.unlink()
print()
print(json.dumps(reports))
"""
# Run in the project: the messages that the server sends for a statement.
LISTEN = """
import json
import sys

from app.config import load_settings
from app.core.database import connect_directly

with connect_directly(load_settings(), "client_min_messages=debug1") as connection:
    heard = []
    driver = connection.connection.driver_connection
    driver.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    tables, *statements = sys.argv[1:]
    answers = []
    for statement in statements:
        connection.exec_driver_sql(tables)
        heard.clear()
        connection.exec_driver_sql(statement)
        answers.append([*heard])
        connection.rollback()
print(json.dumps(answers))
"""
MESSAGES = {
    "ALTER TABLE parcels ALTER id TYPE int": 'rewriting table "parcels"',
    "ALTER TABLE parcels ALTER weight SET NOT NULL": 'verifying table "parcels"',
    "ALTER TABLE parcels ADD CONSTRAINT fk FOREIGN KEY (id) REFERENCES senders": (
        'validating foreign key constraint "fk"'
    ),
    "CREATE INDEX ix ON parcels (label)": 'building index "ix" on table "parcels"',
}


@dataclass
class Report:
    """What `flask db lint --json` prints of one revision, and what it prints for people."""

    exit_code: int
    hazards: list[dict[str, str]]
    text: str

    def names(self) -> set[str]:
        """The kinds of hazard that were found."""
        return {hazard["name"] for hazard in self.hazards}


Judge = Callable[..., list[Report]]


def revision(upgrade: str, downgrade: str = 'op.execute("SELECT 1")', **facts: object) -> str:
    """A revision file that comes after `lint_before`."""
    said = "\n".join(f"{name} = {value!r}" for name, value in facts.items())
    return REVISION.format(upgrade=upgrade, downgrade=downgrade, facts=said)


@pytest.fixture(scope="module")
def home(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose history is one revision with the tables of this file; an empty database."""
    project = copy_project(generated, tmp_path_factory.mktemp("lint") / "book-service")
    versions = project.path / "migrations/versions"
    for file in versions.glob("*.py"):
        file.unlink()
    (versions / "lint_before.py").write_text(BEFORE.format(tables=TABLES))
    return project


@pytest.fixture(scope="module")
def judge(home: Project) -> Judge:
    """Judges revision files, each as the next one of the history, in one process."""

    def judged(*revisions: str, **environment: str) -> list[Report]:
        file = home.path.parent / "revisions.json"
        file.write_text(json.dumps(revisions))
        result = home.run(home.python, "-c", JUDGE, file, **environment)
        assert result.returncode == 0, result.stdout
        return [
            Report(
                each["exit_code"],
                [hazard for verdict in each["revisions"] for hazard in verdict["hazards"]],
                each["text"],
            )
            for each in json.loads(result.stdout.splitlines()[-1])
        ]

    return judged


@pytest.fixture(scope="module")
def reports(judge: Judge) -> dict[str, Report]:
    """What is said of all that is hazardous and all that is safe."""
    upgrades = [*HAZARDS, *SAFE]
    return dict(zip(upgrades, judge(*map(revision, upgrades)), strict=True))


@pytest.fixture(scope="module")
def messages(home: Project) -> dict[str, list[str]]:
    """What the server says of each statement in MESSAGES."""
    result = home.run(home.python, "-c", LISTEN, TABLES, *MESSAGES)
    assert result.returncode == 0, result.stdout
    return dict(zip(MESSAGES, json.loads(result.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("upgrade", HAZARDS)
def test_a_hazard(reports, upgrade):
    report = reports[upgrade]
    assert report.names() == HAZARDS[upgrade], report.text
    assert report.exit_code == 1
    assert "Safe: " in report.text


@pytest.mark.parametrize("upgrade", SAFE)
def test_what_is_safe_is_clean(reports, upgrade):
    report = reports[upgrade]
    assert report.exit_code == 0, report.text


def test_a_reason_in_the_file_silences_one_place(judge):
    drops = 'op.drop_column("parcels", "label")\n    op.drop_column("parcels", "weight")'
    one, both, no_reason = judge(
        revision(drops, acknowledged={"column-drop:parcels.label": "nobody reads it"}),
        revision(drops, acknowledged={"column-drop": "an empty service"}),
        revision(drops, acknowledged={"column-drop": ""}),
    )
    assert [hazard["key"] for hazard in one.hazards] == ["column-drop:parcels.weight"]
    assert "nobody reads it" in one.text
    assert both.exit_code == 0
    assert no_reason.exit_code == 1


def test_an_upgrade_needs_its_way_back(judge):
    change, nothing = judge(
        revision(COLUMN.format("sa.Text()"), downgrade="pass"),
        revision("pass", downgrade="pass"),
    )
    assert change.names() == {"empty-downgrade"}
    assert nothing.exit_code == 0


def test_what_does_not_run_cannot_be_judged(judge):
    failing = judge(
        revision('raise ValueError("no")'),
        revision("raise SystemExit(3)"),
        revision('op.execute("ALTER TABLE nowhere ADD x int")'),
    )
    assert [report.exit_code for report in failing] == [2, 2, 2]


ASKS = """count = "SELECT count(*) FROM pg_tables WHERE "
    values = {"table": "parcels", "schema": "parcels"}
    for where in (
        "tablename = :table AND schemaname = :schema",
        "schemaname IN ('other', :schema) AND tablename = :table",
        "schemaname = ANY (ARRAY[CAST(:schema AS name)]) AND tablename = :table",
    ):
        assert op.get_bind().scalar(sa.text(count + where), values) == 1, where
    assert sa.inspect(op.get_bind()).has_table("parcels")
    assert sa.inspect(op.get_bind()).has_table("parcels", schema="parcels")"""


def test_a_schema_may_have_the_name_of_a_table(judge):
    (report,) = judge(revision(ASKS), SCHEMA="parcels")
    assert report.exit_code == 0, report.text


def test_nothing_of_it_stays(judge, home):
    judge(
        revision('op.execute("COMMIT; DELETE FROM parcels; CREATE TABLE stays (a int)")'),
        revision('op.execute("CREATE TABLE stays (a int)"); op.get_bind().connection.commit()'),
        revision(
            'c = op.get_bind().connection.cursor(); c.execute("CREATE TABLE stays (a int)"); '
            'c.execute("COMMIT")'
        ),
        revision('op.get_bind().commit()\n    op.execute("CREATE TABLE stays (a int)")'),
    )
    assert home.sql("SELECT count(*) FROM pg_class WHERE relname = 'stays'") == "[(0,)]"


def test_the_command(ready):
    result = ready.flask("db", "lint", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["revisions"] == []
    assert "clean" in ready.flask("db", "lint", "base:head").stdout
    assert ready.flask("db", "lint", "nowhere").returncode == 2


@pytest.mark.parametrize("statement", MESSAGES)
def test_what_the_server_says(messages, statement):
    """The lint hears these messages; they are no documented interface of PostgreSQL."""
    heard = messages[statement]
    assert any(line.startswith(MESSAGES[statement]) for line in heard), heard
