"""`flask db rehearse`: hazards that nobody saw in the file are caught, and safe forms pass."""

import contextlib
import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import PATIENCE, Project, clean_environment, commit, copy_project, wait_until
from production import Database, running

LIMIT_MS = 1000
SLEEP = "op.execute('SELECT pg_sleep(1.5)')"
REVISION = '''"""{name}"""

import sqlalchemy as sa
from alembic import op

from app.core.backfill import backfill

revision = "{revision}"
down_revision = "{before}"
{extra}

def upgrade():
    {up}


def downgrade():
    {down}
'''
# Nobody ran `flask db lint`. Each is a name, what goes up and what goes down.
HAZARDS = [
    ("lock", f"op.add_column('books', sa.Column('note', sa.Text())); {SLEEP}", "pass"),
    ("locked_rows", f"op.execute('UPDATE authors SET born = born'); {SLEEP}", "pass"),
    ("index", f"op.create_index('ix_title', 'books', ['title']); {SLEEP}", "pass"),
    (
        "required",
        "op.add_column('books', sa.Column('language', sa.Text(), server_default='en'));"
        " op.alter_column('books', 'language', nullable=False, server_default=None)",
        "pass",
    ),
    ("narrow", "op.alter_column('authors', 'name', type_=sa.String(100))", "pass"),
    ("integer", "op.alter_column('books', 'published', type_=sa.Integer())", "pass"),
    (
        "check",
        "op.execute('ALTER TABLE books ADD CONSTRAINT new CHECK (isbn > title) NOT VALID')",
        "pass",
    ),
    ("check_goes", "op.drop_constraint('new', 'books')", "pass"),
    (
        "value",
        """op.execute("ALTER TABLE books ADD CONSTRAINT g CHECK (genre <> 'nonfiction')"
               " NOT VALID")""",
        "pass",
    ),
    ("value_goes", "op.drop_constraint('g', 'books')", "pass"),
    ("lost", "op.execute('DELETE FROM books WHERE id = (SELECT min(id) FROM books)')", "pass"),
    ("type", "op.alter_column('authors', 'born', type_=sa.Text())", "pass"),
    ("rename", "op.alter_column('authors', 'born', new_column_name='year')", "pass"),
    ("column", "op.drop_column('books', 'title')", "pass"),
    ("table", "op.drop_table('books')", "pass"),
    ("duplicates", "op.execute('CREATE UNIQUE INDEX u ON authors (seeded)')", "pass"),
    ("never_reached", "op.drop_table('authors')", "pass"),
]
EXPECTED = {
    "lock": ("wait", "books", r"statements? on books waited, up to 1\.\d+ s; the limit is 1 s"),
    "locked_rows": ("wait", "authors", r"statements? on authors waited"),
    "index": ("wait", "books", r"statements? on books waited"),
    "required": ("breaks", "books", 'insert.*null value in column "language"'),
    "narrow": ("breaks", "authors", "name = 200 characters: .*too long"),
    "integer": ("breaks", "books", "published = 9223372036854775807: .*out of range"),
    "check": ("breaks", "books", 'change rows.*"new"'),
    "value": ("breaks", "books", 'genre is nonfiction.*"g"'),
    "lost": ("rows", "books", "books loses rows: 4 → 3"),
    "type": ("breaks", "authors", "read authors.born: str, and no longer int"),
    "rename": ("breaks", "authors", "read.*authors.born does not exist"),
    "column": ("breaks", "books", "read.*books.title does not exist"),
    "table": ("rows", "books", "books is dropped with its 3 rows"),
    "duplicates": ("fails", "", r"could not create unique index.*\n.*Key \(seeded\)=\(t\)"),
}


def write(project: Project, *revisions: tuple[str, ...], after: str = "0001") -> None:
    """Revisions by hand, each after the other."""
    for number, (name, up, down, *extra) in enumerate(revisions):
        revision = f"99{number:02d}_{name}"
        file = project.path / f"migrations/versions/{revision}.py"
        words = {"up": up, "down": down, "extra": "\n".join(extra)}
        file.write_text(REVISION.format(name=name, revision=revision, before=after, **words))
        after = revision


def rehearse(project: Project, *words: str, **environment: str) -> tuple[int, dict, str]:
    """Exit code, report and what was said besides; what comes out on stdout is JSON."""
    result = subprocess.run(
        [project.python, "-m", "flask", "db", "rehearse", "--json", *words],
        cwd=project.path,
        env=clean_environment(MIGRATION_LOCK_TIMEOUT_MS=str(LIMIT_MS), **environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    report = json.loads(result.stdout) if result.stdout else {}
    return result.returncode, report, result.stderr


def to_fix(report: dict) -> list[dict]:
    return [each for each in report["findings"] if each["counts"]]


@pytest.fixture
def released(generated: Path, tmp_path: Path) -> Project:
    """The default project, whose first commit is the release v1."""
    project = copy_project(generated, tmp_path / "book-service")
    assert project.run("git", "tag", "v1").returncode == 0
    return project


def test_a_hazard_of_each_kind_is_caught(released: Project):
    write(released, *HAZARDS)
    code, report, said = rehearse(released)
    assert code == report["exit_code"] == 1, said
    assert report["title"].startswith("17 revisions (since v1), from 0001, on the seeds of v1")
    names = [each["revision"].partition("_")[2] for each in report["revisions"]]
    assert names == [each[0] for each in HAZARDS[:-1]]
    found = to_fix(report)
    for name, (kind, table, words) in EXPECTED.items():
        own = [each for each in found if each["revision"].endswith(f"_{name}")]
        fitting = [each for each in own if (each["kind"], each["table"]) == (kind, table)]
        assert any(re.search(words, each["words"]) for each in fitting), (name, own)
    harmless = {each[0] for each in HAZARDS} - EXPECTED.keys()
    guilty = {each["revision"].partition("_")[2] for each in found}
    assert not harmless & guilty, found
    lock, rows, *_, last = report["revisions"]
    assert lock["longest_wait"]["table"] == "books"
    assert lock["longest_wait"]["seconds"] > LIMIT_MS / 1000
    assert lock["waits"]["books"]["keeps_out"] == "readers and writers"
    assert lock["waits"]["books"]["statements"] > 1
    assert (rows["rows"], lock["rows"], last["rows"]) == (4, 0, 0)
    assert rows["seconds"] > 1.5
    before, after = next(e for e in report["revisions"] if "9902_index" in str(e))["sizes"]["books"]
    assert before < after


def test_ways_back_that_are_none(released: Project):
    write(
        released,
        ("by_design", "op.execute('SELECT 1')", "raise NotImplementedError('it was sold')"),
        ("fails", "op.execute('SELECT 1')", "op.drop_table('nowhere')"),
        ("loses", "op.execute('SELECT 1')", "op.execute('DELETE FROM books')"),
        (
            "not_again",
            "op.execute('CREATE TABLE once (id bigint)')",
            "pass",
            'acknowledged = {"rehearsal:authors": "one of us"}',
        ),
        ("allowed", "op.execute('DELETE FROM authors WHERE name LIKE %Q')", "pass"),
    )
    for file in (released.path / "migrations/versions").glob("99*_allowed.py"):
        file.write_text(file.read_text().replace("LIKE %Q", "IN (SELECT max(name) FROM authors)"))


def test_what_is_written_safely_passes(released: Project):
    pass
