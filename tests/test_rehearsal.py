"""`flask db rehearse`: hazards that nobody saw in the file are caught, and safe forms pass."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import PATIENCE, Project, clean_environment, commit, copy_project, wait_until
from production import Database, running

LIMIT_MS = 1000
SLEEP = "op.execute('SELECT pg_sleep(1.5)')"
PRINTS = "__import__('os').system('echo no JSON')"
KILLS_THE_WATCH = """op.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
               " WHERE datname = current_database() AND application_name = 'rehearsal watch'")"""
CUTS = """op.execute("CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
               " NEW.title = left(NEW.title, 100); RETURN NEW; END$$")"""
TRIGGER, CUT = "CREATE TRIGGER cut BEFORE", "FOR EACH ROW EXECUTE FUNCTION cut()"
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
    ("lock", f"op.add_column('books', sa.Column('note', sa.Text())); {SLEEP}; {PRINTS}", "pass"),
    (
        "locked_rows",
        f"{KILLS_THE_WATCH}; op.execute('UPDATE authors SET born = born'); {SLEEP}",
        "pass",
    ),
    ("index", f"op.create_index('ix_title', 'books', ['title']); {SLEEP}", "pass"),
    ("sequence", "op.execute('ALTER SEQUENCE books_id_seq RESTART WITH 1')", "pass"),
    (
        "secured",
        "op.execute('ALTER SEQUENCE books_id_seq RESTART WITH 1000');"
        " op.execute('ALTER TABLE books ENABLE ROW LEVEL SECURITY')",
        "pass",
    ),
    ("unique", "op.create_unique_constraint('t', 'books', ['title'])", "pass"),
    (
        "required",
        "op.add_column('books', sa.Column('language', sa.Text(), server_default='en'));"
        " op.alter_column('books', 'language', nullable=False, server_default=None)",
        "pass",
    ),
    ("narrow", "op.alter_column('authors', 'name', type_=sa.String(100))", "pass"),
    ("padded", "op.alter_column('authors', 'name', type_=sa.CHAR(200))", "pass"),
    ("zone", "op.alter_column('authors', 'created_at', type_=sa.DateTime())", "pass"),
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
    (
        "hidden",
        "op.rename_table('books', 'tomes'); op.execute("
        "'CREATE VIEW books AS SELECT * FROM tomes WHERE id <> (SELECT max(id) FROM tomes)')",
        "pass",
    ),
    ("hidden_goes", "op.execute('DROP VIEW books'); op.rename_table('tomes', 'books')", "pass"),
    ("lost", "op.execute('DELETE FROM books WHERE id = (SELECT min(id) FROM books)')", "pass"),
    ("type", "op.alter_column('authors', 'born', type_=sa.Text())", "pass"),
    ("rename", "op.alter_column('authors', 'born', new_column_name='year')", "pass"),
    ("cut", f"{CUTS}; op.execute('{TRIGGER} UPDATE ON books {CUT}')", "pass"),
    ("column", "op.drop_column('books', 'title')", "pass"),
    ("table", "op.drop_table('books')", "pass"),
    ("duplicates", "op.execute('CREATE UNIQUE INDEX u ON authors (seeded)')", "pass"),
    ("never_reached", "op.drop_table('authors')", "pass"),
]
EXPECTED = {
    "lock": ("wait", "books", r"statements? on books waited, up to 1\.\d+ s; the limit is 1 s"),
    "locked_rows": ("wait", "authors", r"statements? on authors waited"),
    "index": ("wait", "books", r"statements? on books waited"),
    "sequence": ("breaks", "books", "insert.*the next number of books.id is taken"),
    "required": ("breaks", "books", 'insert.*null value in column "language"'),
    "narrow": ("breaks", "authors", "name = 200 characters: .*too long"),
    "padded": ("breaks", "authors", "read authors.name: str with blanks at its end"),
    "zone": ("breaks", "authors", "read authors.created_at: datetime without a time zone"),
    "integer": ("breaks", "books", "published = 9223372036854775807: .*out of range"),
    "check": ("breaks", "books", 'change rows.*"new"'),
    "value": ("breaks", "books", 'genre is nonfiction.*"g"'),
    "hidden": ("breaks", "books", "sees 3 of the 4 rows of books, which is a view"),
    "cut": ("breaks", "books", "title = 300 characters: .*reads back as 100 characters"),
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
    assert report["title"].startswith("25 revisions (since v1), from 0001, on the seeds of v1")
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
    known = [each for each in report["findings"] if each["kind"] == "security"]
    assert [(each["revision"], each["table"]) for each in known] == [("9904_secured", "books")]
    (asked,) = [each for each in report["findings"] if each["revision"].endswith("_unique")]
    assert not asked["is_to_fix"]
    assert "insert, insert with defaults: UniqueViolation" in asked["words"]
    lock, rows, *_, last = report["revisions"]
    assert lock["longest_wait"]["table"] == "books"
    assert lock["longest_wait"]["seconds"] > LIMIT_MS / 1000
    assert lock["waits"]["books"]["keeps_out"] == "readers and writers"
    assert lock["waits"]["books"]["statements"] > 1
    assert (rows["rows"], lock["rows"], last["rows"]) == (4, 0, 0)
    assert rows["seconds"] > 1.5
    size = report["revisions"][2]["sizes"]["books"]
    assert size["before"] < size["after"]


def test_ways_back(released: Project):
    rows = "op.execute('DELETE FROM books')"
    write(
        released,
        ("by_design", "op.execute('SELECT 1')", "raise NotImplementedError('it was sold')"),
        ("loses", "op.execute('SELECT 1')", "op.execute('DELETE FROM authors')"),
        ("drops", "op.execute('SELECT 1')", "op.drop_table('books')"),
        ("good", "op.execute('CREATE TABLE new (id bigint)')", "op.drop_table('new')"),
    )
    code, report, said = rehearse(released)
    assert code == 1, said
    assert [(each["revision"], each["words"]) for each in to_fix(report)] == [
        ("9902_drops", "downgrade() drops books, which was there before upgrade()"),
        ("9901_loses", "authors has 0 of 4 rows after going down"),
    ]
    gone = "not asked: going down and up again has dropped books"
    assert report["checks"]["this code"] == gone
    way = report["checks"]["down and up again"]
    assert way == "3 of 4 revisions; 9900_by_design does not go down, by design: it was sold"

    for file in (released.path / "migrations/versions").glob("99*"):
        file.unlink()
    reason = "acknowledged = {'rehearsal:books': 'they were copies'}"
    write(
        released,
        ("not_again", "op.execute('CREATE TABLE new (id bigint)')", "pass"),
        ("acknowledged", rows, "pass", reason),
    )
    code, report, said = rehearse(released)
    assert code == 1, said
    (again,) = to_fix(report)
    assert (again["kind"], again["revision"]) == ("again", "9900_not_again")
    assert 'relation "new" already exists' in again["words"]
    (told,) = [each for each in report["findings"] if each["acknowledged"]]
    assert (told["words"], told["acknowledged"]) == ("books loses rows: 4 → 0", "they were copies")


SHELVES = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class Shelf(Base):
    __tablename__ = "shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"), unique=True)
"""
EXPANDED = """    title: Mapped[str] = mapped_column(String(400), index=True)
    __unused_columns__ = ("published",)
    __table_args__ = (CheckConstraint("length(isbn) > 1", name="isbn"), UniqueConstraint("title"))
    pages: Mapped[int] = mapped_column(server_default="0")
    language: Mapped[str | None] = mapped_column(String(10))
    shelf: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
"""
BACKFILL = """from app.core.backfill import backfill
    backfill("books", "language = 'en'", where="language IS NULL")
"""


def test_what_is_written_safely_passes(released: Project):
    """The forms of `flask db migrate`, in two releases: expand; then backfill, contract, drop."""
    app, versions = released.path / "app", released.path / "migrations/versions"

    def flask(*words: str) -> str:
        result = released.flask(*words)
        assert result.returncode == 0, result.stdout
        return result.stdout

    flask("db", "upgrade")
    (app / "models/shelves.py").write_text(SHELVES)
    with (app / "models/__init__.py").open("a") as models:
        models.write("\nfrom app.models.shelves import *  # noqa\n")
    model, seeds = app / "models/books.py", app / "seeds/books.py"
    text = model.read_text().replace("import ForeignKey, String", "import *  # noqa")
    text = re.sub(r"    published: .*\n", "", text)
    text = re.sub(r"    title: .*\n", lambda _: EXPANDED, text)
    text = text.replace('books")', 'books", foreign_keys="Book.author_id")')
    model.write_text(text)
    author = app / "models/authors.py"
    keys = 'back_populates="author", foreign_keys="Book.author_id"'
    author.write_text(author.read_text().replace('back_populates="author"', keys))
    seeds.write_text(re.sub(r"\n *\"published\": .*", "", seeds.read_text()))
    flask("db", "migrate", "-m", "expand")
    assert len(list(versions.glob("*.py"))) == 4
    code, report, said = rehearse(released)
    assert (code, to_fix(report)) == (0, []), said
    assert len(report["revisions"]) == 3
    checks = report["checks"]
    assert checks["previous release"] == "v1 reads and writes all of its 2 tables"
    assert checks["this code"] == "reads and writes all of its 3 tables"
    assert checks["down and up again"] == "3 of 3 revisions"
    asked = [each["words"] for each in report["findings"] if "UniqueViolation" in each["words"]]
    assert len(asked) == 1, report["findings"]
    assert "uq_books_title" in asked[0]

    flask("db", "upgrade")
    commit(released.path, "the second release")
    released.run("git", "tag", "v2")
    flask("db", "revision", "-m", "backfill")
    backfill = max(versions.glob("*_backfill.py"))
    backfill.write_text(backfill.read_text().replace("pass", BACKFILL, 1))
    flask("db", "upgrade")
    text = text.replace("language: Mapped[str | None]", "language: Mapped[str]")
    model.write_text(text.replace('    __unused_columns__ = ("published",)\n', ""))
    flask("db", "migrate", "-m", "contract")
    flask("db", "lint")
    code, report, said = rehearse(released)
    assert (code, to_fix(report)) == (0, []), said
    assert "(since v2)" in report["title"]
    assert report["revisions"][0]["rows"] == 4
    assert [each["words"] for each in report["findings"]] == [
        "does the code of v2 ever do this to books? It now fails: language = NULL: CheckViolation: "
        'new row for relation "books" violates check constraint "ck_books_language_not_null"'
    ]


IDENTITY = """op.execute("DROP SEQUENCE books_id_seq CASCADE")
    op.execute("ALTER TABLE books ALTER id ADD GENERATED ALWAYS AS IDENTITY")
    op.execute("SELECT setval(pg_get_serial_sequence('books', 'id'), max(id)) FROM books")"""


def test_a_real_backup(released: Project):
    """Rows that no seed has: a revision that runs on the seeds fails on them."""
    assert released.flask("db", "upgrade").returncode == 0
    released.sql(
        "INSERT INTO authors (name) SELECT 'author ' || n FROM generate_series(1, 200) n",
        "INSERT INTO books (isbn, title, genre, author_id) SELECT n, 'title ' || n % 5000,"
        " 'fiction', 1 + n % 200 FROM generate_series(1, 20000) n",
    )
    before = released.sql("SELECT count(*), max(updated_at) FROM books")
    page = (released.path / "docs/migrations.md").read_text()
    plain, made, rehearsed = re.findall(r"^uv run flask (backup .*|db rehearse.*)$", page, re.M)
    assert plain == "db rehearse"
    result = released.flask(*made.split())
    assert result.returncode == 0, result.stdout
    (file,) = (released.path / "backups").glob("*.dump")
    code, report, said = rehearse(released, *rehearsed.split()[2:])
    assert (code, report["title"]) == (
        0,
        "nothing to rehearse: no revision is pending since the backup",
    ), said

    write(
        released,
        ("numbered", IDENTITY, "pass"),
        (
            "view",
            "op.rename_table('authors', 'writers'); "
            "op.execute('CREATE VIEW authors AS SELECT * FROM writers')",
            "pass",
        ),
        ("fill", "backfill('books', 'published = 2000', where='published IS NULL')", "pass"),
        ("unique", "op.create_unique_constraint('one', 'books', ['title'])", "pass"),
    )
    code, report, said = rehearse(released, str(file), SCHEMA="elsewhere")
    assert code == 1, said
    assert report["title"].startswith(
        f"4 revisions (since the backup), from 0001, on {file.name} (20,200 rows"
    )
    assert [each["rows"] for each in report["revisions"]] == [0, 0, 20_000, 0]
    (finding,) = report["findings"]
    assert finding["kind"] == "fails"
    assert "is duplicated" in finding["words"]
    assert released.sql("SELECT count(*), max(updated_at) FROM books") == before
    assert "rehearsal" not in released.sql("SELECT datname FROM pg_database")

    for words, told in (
        (["nowhere.dump"], "nowhere.dump"),
        ([str(file), "--from", "0001"], "without FILE"),
        (["--previous", "v9"], "git does not know 'v9'"),
        (["--from", "9999"], "There is no revision 9999"),
        (["--readers", "-1"], "--readers"),
        (["--readers", "90", "--writers", "90"], "not for 180: use --readers"),
    ):
        code, report, said = rehearse(released, *words)
        assert (code, report) == (2, {}), words
        assert told in said


def databases(server: Database) -> list[str]:
    found = server.sql("SELECT datname FROM pg_database WHERE datname LIKE 'rehearsal%'")
    return [name for (name,) in found]


def test_nothing_is_left_behind(released: Project):
    """Killed, stopped, or with a server of its own: its database is gone afterwards."""
    write(released, ("fails", "op.execute('SELECT pg_sleep(0)')", "raise SystemExit(0)"))
    file = released.path / "migrations/versions/9900_fails.py"
    text = file.read_text()
    sleeping = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(300)%'"
        " AND pid <> pg_backend_pid()"
    )

    @contextlib.contextmanager
    def half_way(server: Database):
        command = [released.python, "-m", "flask", "db", "rehearse"]
        with released.popen(*command) as process:
            wait_until(lambda: server.sql(sleeping) == [(1,)], "the revision runs")
            yield process

    with running(released) as server:
        file.write_text(text.replace("pg_sleep(0)", "pg_sleep(300)"))
        with half_way(server) as process:
            process.kill()
        (left,) = databases(server)
        files = Path(tempfile.gettempdir(), left)
        assert files.exists()
        wait_until(lambda: server.sql(sleeping) == [(0,)], "the server has noticed")
        with half_way(server) as process:
            process.send_signal(signal.SIGINT)
            output = process.communicate(timeout=PATIENCE)[0]
            assert process.returncode == 130
        assert f"removing {left}, which a rehearsal that was killed left" in output
        assert not files.exists()
        assert databases(server) == []
        with half_way(server) as process:
            process.terminate()
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 128 + signal.SIGTERM
        assert databases(server) == []

        file.write_text(text)
        server.sql("DROP DATABASE IF EXISTS entry", "CREATE DATABASE entry")
        server.sql("DROP ROLE IF EXISTS small", "CREATE ROLE small LOGIN")
        other = Database(server.host, "entry").url
        code, report, said = rehearse(
            released, "--readers", "0", DATABASE_URL=server.url, REHEARSAL_DATABASE_URL=other
        )
        assert code == 1, said
        (finding,) = to_fix(report)
        assert (finding["kind"], finding["revision"]) == ("down", "9900_fails")
        assert finding["words"] == "downgrade() fails: it ends the process (SystemExit 0)"
        for url, told in (
            (server.url.replace("///", "//localhost/"), "the service's own database"),
            (other.replace("postgres@", "small@"), 'ALTER ROLE "small" CREATEDB;'),
            (other.replace("entry", "nowhere"), "REHEARSAL_DATABASE_URL: no login"),
        ):
            code, report, said = rehearse(
                released, DATABASE_URL=server.url, REHEARSAL_DATABASE_URL=url
            )
            assert (code, report) == (2, {})
            assert told in said
        assert databases(server) == []
        server.sql("DROP ROLE small", "DROP DATABASE entry")

        # Bytecode of another text of the same second and size; and a text that changes half-way.
        stamp, changes = file.stat(), "open(__file__, 'a').write('#')"
        assert released.run(released.python, "-m", "py_compile", str(file)).returncode == 0
        file.write_text(text.replace("op.execute('SELECT pg_sleep(0)')", f"{changes:32}"))
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert file.stat().st_size == stamp.st_size
        code, report, said = rehearse(released, "--readers", "0", "--writers", "0")
        assert code == 1, said
        assert "9900_fails.py was changed while it was rehearsed" in to_fix(report)[-1]["words"]


def test_without_git_the_previous_release_is_left_out_in_words(released: Project):
    shutil.rmtree(released.path / ".git")
    result = released.flask("db", "rehearse")
    assert result.returncode == 0, result.stdout
    assert "1 revision (the last one: no release), from an empty schema" in result.stdout
    assert "not asked: git knows no code" in result.stdout
    assert "nothing to fix" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
