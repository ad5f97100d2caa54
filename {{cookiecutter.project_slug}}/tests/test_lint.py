"""What `flask db lint` says of hand-written revisions; the server is asked for each.

The tables are the test's own.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from apiflask import APIFlask
from flask.testing import FlaskCliRunner
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.config import Settings
from app.core import history
from app.core.safety import Report
from app.core.safety import judge as judge_revisions

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
down_revision = "{parent}"


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

Judge = Callable[..., Report]


@pytest.fixture
def judge(
    app: APIFlask, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Judge:
    """Judges one hand-written revision on top of this project's history."""
    folder = tmp_path / "migrations"
    shutil.copytree(history.FOLDER, folder)
    (parent,) = history.heads()
    monkeypatch.setattr(history, "FOLDER", folder)

    before = BEFORE.format(parent=parent, tables=TABLES)
    (folder / "versions" / "lint_before.py").write_text(before)

    def judged(upgrade: str, downgrade: str = 'op.execute("SELECT 1")', **facts: object) -> Report:
        said = "\n".join(f"{name} = {value!r}" for name, value in facts.items())
        file = REVISION.format(upgrade=upgrade, downgrade=downgrade, facts=said)
        (folder / "versions" / "lint_me.py").write_text(file)
        with app.app_context():
            return judge_revisions(settings, "lint_me", {parent})

    return judged


def names(report: Report) -> set[str]:
    """The kinds of hazard that were found."""
    return {hazard.name for verdict in report.verdicts for hazard in verdict.hazards}


@pytest.mark.parametrize("upgrade", HAZARDS)
def test_a_hazard(judge: Judge, upgrade: str) -> None:
    report = judge(upgrade)
    assert names(report) == HAZARDS[upgrade], report.text()
    assert report.exit_code == 1
    assert "Safe: " in report.text()


@pytest.mark.parametrize("upgrade", SAFE)
def test_what_is_safe_is_clean(judge: Judge, upgrade: str) -> None:
    report = judge(upgrade)
    assert report.exit_code == 0, report.text()


def test_a_reason_in_the_file_silences_one_place(judge: Judge) -> None:
    drops = 'op.drop_column("parcels", "label")\n    op.drop_column("parcels", "weight")'
    report = judge(drops, acknowledged={"column-drop:parcels.label": "nobody reads it"})
    assert [hazard.key for hazard in report.verdicts[0].hazards] == ["column-drop:parcels.weight"]
    assert "nobody reads it" in report.text()
    assert judge(drops, acknowledged={"column-drop": "an empty service"}).exit_code == 0
    assert judge(drops, acknowledged={"column-drop": ""}).exit_code == 1


def test_an_upgrade_needs_its_way_back(judge: Judge) -> None:
    assert names(judge(COLUMN.format("sa.Text()"), downgrade="pass")) == {"empty-downgrade"}
    assert judge("pass", downgrade="pass").exit_code == 0


def test_what_does_not_run_can_not_be_judged(judge: Judge) -> None:
    assert judge('raise ValueError("no")').exit_code == 2
    assert judge("raise SystemExit(3)").exit_code == 2
    assert judge('op.execute("ALTER TABLE nowhere ADD x int")').exit_code == 2


def test_nothing_of_it_stays(judge: Judge, session: Session) -> None:
    judge('op.execute("COMMIT; DELETE FROM parcels; CREATE TABLE stays (a int)")')
    judge('op.execute("CREATE TABLE stays (a int)"); op.get_bind().connection.commit()')
    judge(
        'c = op.get_bind().connection.cursor(); c.execute("CREATE TABLE stays (a int)"); '
        'c.execute("COMMIT")'
    )
    judge('op.get_bind().commit()\n    op.execute("CREATE TABLE stays (a int)")')
    assert session.scalar(text("SELECT to_regclass('stays')")) is None


def test_this_history_and_the_command(cli: FlaskCliRunner) -> None:
    result = cli.invoke(args=["db", "lint", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["revisions"] == []
    assert "clean" in cli.invoke(args=["db", "lint", "base:head"]).stdout
    assert cli.invoke(args=["db", "lint", "nowhere"]).exit_code == 2


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER TABLE parcels ALTER id TYPE int", 'rewriting table "parcels"'),
        ("ALTER TABLE parcels ALTER weight SET NOT NULL", 'verifying table "parcels"'),
        (
            "ALTER TABLE parcels ADD CONSTRAINT fk FOREIGN KEY (id) REFERENCES senders",
            'validating foreign key constraint "fk"',
        ),
        ("CREATE INDEX ix ON parcels (label)", 'building index "ix" on table "parcels"'),
    ],
)
def test_what_the_server_says(session: Session, statement: str, message: str) -> None:
    """The lint hears these messages; they are no documented interface of PostgreSQL."""
    heard: list[str] = []
    driver = session.connection().connection.driver_connection
    assert driver is not None
    driver.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    session.execute(text(TABLES))
    session.execute(text("SET LOCAL client_min_messages = debug1"))
    session.execute(text(statement))
    assert any(line.startswith(message) for line in heard), heard
