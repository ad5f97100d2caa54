"""What `flask db migrate` writes: the whole change, its way back, and nothing that is not ours."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, Project, copy_project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WORKER = Path(__file__).parent / "written_worker.py"

TABLES = ["plain", "user", "Order Line", 'odd"%s', "t" * 40]
COLUMNS = ["x", "select", "Mixed Case", "per%cent", 'quo"te', "it's", "c" * 50]
TYPES = [
    "sa.Integer()",
    "sa.BigInteger()",
    "sa.String(20)",
    "sa.String(200)",
    "sa.Text()",
    "sa.Numeric(10, 2)",
    "sa.Numeric(14, 2)",
    "sa.Boolean()",
    "sa.Date()",
    "sa.DateTime()",
    "sa.DateTime(timezone=True)",
    "postgresql.JSONB()",
    "sa.Uuid()",
    "sa.ARRAY(sa.Text())",
    "sa.Enum('a', 'b', name='letters', native_enum=False, length=64)",
    "sa.Enum('a', 'b', name='native')",
]
NUMBERS = ("sa.Integer()", "sa.BigInteger()", "sa.Numeric(10, 2)", "sa.Numeric(14, 2)")
TEXTS = ("sa.String(20)", "sa.String(200)", "sa.Text()")
WORDS = ["", "plain", "Hi :name", ":smile: it's", "100 %s %(x)s", "'quoted'", "back\\slash \\:x"]


def _default(draw: st.DrawFn, type_: str) -> str | None:
    if type_ in NUMBERS:
        return draw(st.sampled_from([None, None, "'0'", "'7'", "sa.text('-1')"]))
    if type_ in TEXTS:
        word = draw(st.sampled_from(WORDS))
        return draw(st.sampled_from([None, None, repr(word)]))
    if type_.startswith("sa.DateTime"):
        return draw(st.sampled_from([None, None, "sa.func.now()"]))
    if type_ == "sa.Boolean()":
        return draw(st.sampled_from([None, "sa.false()", "sa.true()"]))
    return None


def _column(draw: st.DrawFn, table: str, name: str) -> tuple[str, str]:
    type_ = draw(st.sampled_from(TYPES))
    words = [repr(name), type_, f"nullable={draw(st.booleans())}"]
    if default := _default(draw, type_):
        words.append(f"server_default={default}")
    if draw(st.integers(0, 3)) == 0:
        words.append(f"comment={draw(st.sampled_from(WORDS))!r}")
    return type_, f"sa.Column({', '.join(words)})"


def _constraints(
    draw: st.DrawFn, table: str, columns: dict[str, str], others: list[str]
) -> Iterator[str]:
    """Some of what a table may have besides its columns."""
    names = [*columns]
    wanted = draw(st.lists(st.integers(0, 9), max_size=4, unique=True))
    some = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    plain = [each for each in some if columns[each] != "postgresql.JSONB()"]
    listed = ", ".join(map(repr, plain))
    number = next((each for each in names if columns[each] in NUMBERS), None)
    word = next((each for each in names if columns[each] in TEXTS), None)
    limit = draw(st.integers(0, 1))
    if 0 in wanted and plain:
        options = draw(st.sampled_from(["", ", deferrable=True", ", name='uq one'"]))
        yield f"sa.UniqueConstraint({listed}{options})"
    if 1 in wanted and plain:
        yield f"sa.Index('ix {table[:20]}', {listed}, unique={draw(st.booleans())})"
    if 2 in wanted and number:
        yield (f"sa.CheckConstraint(sa.column({number!r}, sa.Integer) > {limit}, name='over')")
    if 3 in wanted and word:
        pattern = draw(st.sampled_from(["a:b", ":name", "100%", "it''s"]))
        column = '"' + word.replace('"', '""') + '"'
        condition = f"{column} <> '{pattern}'"
        yield f"sa.CheckConstraint(sa.literal_column({condition!r}), name='words')"
    if 4 in wanted and others:
        other = draw(st.sampled_from(others))
        action = draw(st.sampled_from(["", ", ondelete='CASCADE'", ", deferrable=True"]))
        yield f"sa.ForeignKeyConstraint(['parent'], ['{other}.id']{action})"
    if 5 in wanted and plain and number:
        condition = '"' + number.replace('"', '""') + f'" > {limit}'
        where = f"postgresql_where=sa.literal_column({condition!r})"
        yield f"sa.Index('ix part {table[:20]}', {listed}, {where})"
    if 6 in wanted and word:
        lower = f"sa.func.lower(sa.column({word!r}))"
        yield f"sa.Index('ix low {table[:20]}', {lower}, unique={bool(limit)})"
    if 7 in wanted:
        document = next((each for each in names if columns[each] == "postgresql.JSONB()"), None)
        if document:
            yield f"sa.Index('ix gin {table[:20]}', {document!r}, postgresql_using='gin')"
    if 8 in wanted and number:
        span = "sa.text('int8range(id, id, $$[]$$)')"
        yield f"postgresql.ExcludeConstraint(({span}, '&&'), name='ex {table[:20]}')"


@st.composite
def _models(draw: st.DrawFn) -> str:
    """The source text of a few tables."""
    lines = []
    names = draw(st.lists(st.sampled_from(TABLES), min_size=0, max_size=3, unique=True))
    for table in names:
        chosen = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4, unique=True))
        columns, parts = {}, []
        for name in chosen:
            columns[name], text = _column(draw, table, name)
            parts.append(text)
        if draw(st.integers(0, 5)) == 0:
            parts.append("sa.Column('sum', sa.BigInteger(), sa.Computed('id + 1', persisted=True))")
        if draw(st.integers(0, 5)) == 0:
            parts.append("sa.Column('counts', sa.BigInteger(), sa.Identity())")
        key = "sa.Column('id', sa.BigInteger(), primary_key=True)"
        if table == "plain" and draw(st.booleans()):
            key += ", sa.Column('part', sa.Integer(), primary_key=True)"
        parts = [key, "sa.Column('parent', sa.BigInteger())", *parts]
        parts += _constraints(draw, table, columns, [each for each in names if each != "plain"])
        if draw(st.integers(0, 4)) == 0:
            parts.append(f"comment={draw(st.sampled_from(WORDS[1:]))!r}")
        lines.append(f"sa.Table({table!r}, m, {', '.join(parts)})")
    return "\n".join(lines)


class Worker:
    """The process of a generated project that tries a change."""

    def __init__(self, project: Project) -> None:
        self.process = subprocess.Popen(
            [project.python, WORKER],
            cwd=project.path,
            env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, models: list[str]) -> dict[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"models": models}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                answer: dict[str, str] = json.loads(line.removeprefix("ANSWER "))
                return answer
        raise AssertionError("the worker ended")


@pytest.fixture(scope="module")
def written(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose database is at the head."""
    project = copy_project(generated, tmp_path_factory.mktemp("written") / "book-service")
    good(project, "db", "upgrade")
    return project


@pytest.fixture(scope="module")
def worker(written: Project) -> Iterator[Worker]:
    worker = Worker(written)
    yield worker
    # It ends by itself, and with it the embedded server.
    worker.process.communicate(timeout=PATIENCE)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(models=st.lists(_models(), min_size=2, max_size=2))
def test_any_change_goes_up_down_and_up(worker: Worker, models: list[str]):
    assert "wrong" not in (answer := worker.ask(models)), answer["wrong"]


# One line per form that `flask db migrate` writes: the table before and after.
FORMS = {
    "circle": (
        "",
        """
sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("b", sa.ForeignKey("b.id")))
sa.Table("b", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("a", sa.ForeignKey("a.id")))""",
        "",
    ),
    "link table": (
        'sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True))',
        """
sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True))
sa.Table("a_a", m, sa.Column("one", sa.ForeignKey("a.id"), primary_key=True),
    sa.Column("other", sa.ForeignKey("a.id"), primary_key=True))""",
    ),
    "primary key": (
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("word", sa.Text(), nullable=False))""",
        """sa.Table("a", m, sa.Column("id", sa.BigInteger()),
    sa.Column("word", sa.Text(), primary_key=True))""",
    ),
    "native enum": (
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("state", sa.Enum("new", name="state")))""",
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("state", sa.Enum("before", "new", "it's", name="state")))""",
    ),
    "check": (
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), sa.CheckConstraint("id > 0", name="k"),
    primary_key=True))""",
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), sa.CheckConstraint("id > 1", name="k"),
    primary_key=True))""",
    ),
    "foreign key": (
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("up", sa.ForeignKey("a.id")))""",
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("up", sa.ForeignKey("a.id", ondelete="SET NULL", deferrable=True)))""",
    ),
    "time zone": (
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("at", sa.DateTime(), server_default=sa.func.now()))""",
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now()))""",
    ),
    "partitioned": (
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    postgresql_partition_by="RANGE (id)")""",
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("note", sa.Text(), comment="100%"), postgresql_partition_by="RANGE (id)")""",
    ),
    "all of one column": (
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("x", sa.Integer(), server_default="0"))""",
        """sa.Table("a", m, sa.Column("id", sa.BigInteger(), primary_key=True),
    sa.Column("x", sa.String(9), server_default="a :b", nullable=False, unique=True,
    comment="it's new"))""",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_goes_up_down_and_up(worker: Worker, name: str):
    assert worker.ask([*FORMS[name]]) == {}


def good(project: Project, *words: str, **environment: str) -> str:
    result = project.flask(*words, **environment)
    assert result.returncode == 0, result.stdout
    return result.stdout


def refused(project: Project, *words: str, **environment: str) -> str:
    result = project.flask(*words, **environment)
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


def edit(project: Project, file: str, old: str, new: str) -> None:
    path = project.path / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def add_model(project: Project, text: str) -> None:
    (project.path / "app/models/extra.py").write_text(text)
    models = project.path / "app/models/__init__.py"
    models.write_text(models.read_text() + "\nfrom app.models import extra as extra\n")


def revisions(project: Project) -> list[Path]:
    return sorted((project.path / "migrations/versions").glob("*.py"))


# What changes in the model, and what is said of the rows: one has no year, three have 9000.
IN_THE_WAY = {
    "required": (
        "published: Mapped[int | None]",
        "published: Mapped[int]",
        ["1 row breaks NOT NULL of published", "id=", "backfill('books', 'published = …'"],
    ),
    "unique": (
        "published: Mapped[int | None]",
        "published: Mapped[int | None] = mapped_column(unique=True)",
        ["3 rows break uq_books_published", "published=9000", "GROUP BY published"],
    ),
    "check": (
        '__tablename__ = "books"',
        """__tablename__ = "books"
    __table_args__ = (CheckConstraint("published > 9000", name="new"),)""",
        ["3 rows break ck_books_new", "id=", "NOT (published > 9000)"],
    ),
    "foreign key": (
        "published: Mapped[int | None]",
        'published: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))',
        ["3 rows break fk_books_published_authors", "published=9000", "NOT EXISTS"],
    ),
}
CONSTRAINTS = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'books'::regclass"
INDEXES = "SELECT count(*) FROM pg_index WHERE indrelid = 'books'::regclass"


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_rows_in_the_way_stop_the_upgrade_before_anything_changes(ready: Project, name: str):
    old, new, words = IN_THE_WAY[name]
    edit(ready, "app/models/books.py", "import ForeignKey", "import CheckConstraint, ForeignKey")
    edit(ready, "app/models/books.py", old, new)
    first = "(SELECT min(id) FROM books)"
    ready.sql(f"UPDATE books SET published = CASE WHEN id <> {first} THEN 9000 END")
    before = ready.sql(CONSTRAINTS, INDEXES)
    warned = good(ready, "db", "migrate", "-m", "strict")
    stopped = refused(ready, "db", "upgrade")
    for word in words:
        assert word in warned
        assert word in stopped
    assert ready.sql(CONSTRAINTS, INDEXES) == before
    assert good(ready, "db", "current").strip().endswith("0001")
    ready.sql("UPDATE books SET published = 9000 + id")
    if name == "foreign key":
        ready.sql("UPDATE books SET published = author_id")
    good(ready, "db", "upgrade")
    good(ready, "db", "check")


VIEW = """
from sqlalchemy.orm import Mapped, mapped_column
from app.models.base import Base

class Shelf(Base):
    __tablename__ = "shelf"
    __table_args__ = {"info": {"is_view": True}}
    author_id: Mapped[int] = mapped_column(primary_key=True)
    created_at = None
    updated_at = None
"""


def test_what_is_not_ours_is_left_alone(ready: Project):
    ready.sql(
        "CREATE TABLE title (id int PRIMARY KEY)",
        "CREATE INDEX by_hand ON books (lower(title))",
        "ALTER TABLE books ADD CONSTRAINT by_hand_too CHECK (published < 9000)",
        "ALTER TABLE books ADD COLUMN somebodys text",
        "CREATE SEQUENCE numbers",
        "CREATE VIEW shelf AS SELECT author_id FROM books",
        "CREATE MATERIALIZED VIEW shelves AS SELECT author_id FROM books",
    )
    add_model(ready, VIEW)
    before = revisions(ready)
    good(ready, "db", "check")
    assert "drift                         none" in ready.flask("doctor").stdout
    assert "no changes" in good(ready, "db", "migrate", "-m", "nothing")
    assert revisions(ready) == before
    edit(ready, "app/models/extra.py", '    __table_args__ = {"info": {"is_view": True}}\n', "")
    assert "is_view" in refused(ready, "db", "migrate", "-m", "a table?")


def test_an_index_that_a_revision_made_by_hand_stays(ready: Project):
    good(ready, "db", "revision", "-m", "by hand")
    file = revisions(ready)[-1]
    body = """    op.create_index("by_hand", "books", [sa.text("lower(title)")])
    op.execute("CREATE INDEX by_hand_too ON books (lower(isbn))")"""
    file.write_text(file.read_text().replace("    pass", body, 1))
    good(ready, "db", "upgrade")
    assert "no changes" in good(ready, "db", "migrate", "-m", "nothing")


FAULTS = {
    "schema": (
        "",
        '__table_args__ = {"schema": "audit"}',
        ["Event (app/models/extra.py)", "SCHEMA"],
    ),
    "check": (
        "from sqlalchemy import CheckConstraint\n",
        '__table_args__ = (CheckConstraint("id > 0"),)',
        ["CHECK without a name", "name="],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_model_that_cannot_be_compared_is_refused_in_words(ready: Project, name: str):
    imports, line, words = FAULTS[name]
    add_model(
        ready,
        f"""{imports}from sqlalchemy.orm import Mapped, mapped_column
from app.models.base import Base

class Event(Base):
    __tablename__ = "events"
    {line}
    id: Mapped[int] = mapped_column(primary_key=True)
""",
    )
    for command in (["db", "migrate", "-m", "no"], ["db", "check"], ["doctor"]):
        said = refused(ready, *command)
        for word in words:
            assert word in said


def test_check_doctor_and_migrate_see_the_same(ready: Project):
    ready.sql(
        "ALTER TABLE books ADD CONSTRAINT lost EXCLUDE USING gist (int8range(id, id) WITH &&)",
        "ALTER TABLE books DROP CONSTRAINT pk_books",
        "ALTER TABLE books ADD CONSTRAINT pk_books PRIMARY KEY (id, isbn)",
    )
    edit(ready, "app/models/books.py", '"nonfiction"', '"non-fiction"')
    checked = refused(ready, "db", "check")
    seen = [
        "the primary key of books: the models say PRIMARY KEY (id), the database has PRIMARY KEY "
        "(id, isbn)",
        "books.genre no longer has the value nonfiction",
    ]
    for sentence in seen:
        assert sentence in checked
        assert sentence in refused(ready, "doctor")
    assert " object at 0x" not in checked
    asked = refused(ready, "db", "migrate", "-m", "all")
    keys = re.findall(r'--acknowledge "(.+)=the reason"', asked)
    assert sorted(keys) == ["enum-value-removed:books.genre", "primary-key:books"]
    reasons = [word for key in keys for word in ("--acknowledge", f"{key}=a test")]
    good(ready, "db", "migrate", "-m", "all", *reasons)
    assert good(ready, "db", "lint").count("clean") == 3
    good(ready, "db", "upgrade")
    good(ready, "db", "check")


def test_a_table_goes_in_two_deploys(ready: Project):
    add_model(ready, VIEW.replace('    __table_args__ = {"info": {"is_view": True}}\n', ""))
    good(ready, "db", "migrate", "-m", "shelves")
    good(ready, "db", "upgrade")
    page = (ready.path / "docs/migrations.md").read_text()
    (line,) = re.findall(r"^__unused_tables__ = .*$", page, re.MULTILINE)
    line = line.replace("publishers", "shelf")
    edit(
        ready, "app/models/__init__.py", "\nfrom app.models import extra as extra\n", f"\n{line}\n"
    )
    assert "shelf is marked as unused" in refused(ready, "db", "check")
    good(ready, "db", "migrate", "-m", "shelves are not used any more")
    good(ready, "db", "upgrade")
    good(ready, "db", "check")
    tests = ready.run(ready.python, "-m", "pytest", "-q", "tests/test_migrations.py")
    assert tests.returncode == 0, tests.stdout
    edit(ready, "app/models/__init__.py", line, "")
    good(ready, "db", "migrate", "-m", "no shelves")
    assert "op.drop_table('shelf')" in revisions(ready)[-1].read_text()
    good(ready, "db", "lint")
    good(ready, "db", "upgrade")
    good(ready, "db", "check")


def test_the_server_says_which_view_stands_in_the_way(ready: Project):
    ready.sql("CREATE VIEW titles AS SELECT title FROM books")
    edit(ready, "app/models/books.py", "String(300)", "String(500)")
    assert "view titles" in refused(ready, "db", "migrate", "-m", "wider")


def test_another_type_is_written_with_its_cast_or_not_at_all(ready: Project):
    year = "published: Mapped[int | None]"
    edit(ready, "app/models/books.py", year, f"{year} = mapped_column(Date)")
    edit(ready, "app/models/books.py", "import ForeignKey", "import Date, ForeignKey")
    words = ["--acknowledge", "type-change:books.published=no"]
    assert "cannot cast" in refused(ready, "db", "migrate", "-m", "no", *words)
    edit(
        ready,
        "app/models/books.py",
        f"{year} = mapped_column(Date)",
        "published: Mapped[str | None]",
    )
    good(ready, "db", "migrate", "-m", "text", "--acknowledge", "type-change:books.published=small")
    good(ready, "db", "upgrade")
    good(ready, "db", "downgrade")


LEGACY = """
import sqlalchemy as sa
from alembic import op

revision = "a1"
down_revision = None

def upgrade():
    op.execute("CREATE TYPE mood AS ENUM ('good')")
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("mail", sa.String(50), nullable=False),
        sa.Column("mood", sa.Enum("good", name="mood", create_type=False)),
        sa.UniqueConstraint("mail"),
    )

def downgrade():
    op.drop_table("users")
"""
LATER = """
from alembic import op

revision = "a2"
down_revision = "a1"

def upgrade():
    op.drop_constraint("users_mail_key", "users")
    op.create_unique_constraint(None, "users", ["mail"])

def downgrade():
    op.drop_constraint("users_mail_key", "users")
    op.create_unique_constraint(None, "users", ["mail"])
"""
USERS = """
from sqlalchemy import Enum, Integer, String
from sqlalchemy.orm import Mapped, mapped_column
from app.models.base import Base

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    mail: Mapped[str] = mapped_column(String(50), unique=True)
    mood: Mapped[str | None] = mapped_column(Enum("good", name="mood"))
    created_at = None
    updated_at = None
"""


@pytest.fixture
def adopting(project: Project) -> Project:
    """A project without the example, whose models are those of a database that was there before."""
    (project.path / "app/models/__init__.py").write_text(
        "from app.models.base import Base, db\nfrom app.models.extra import User\n"
    )
    (project.path / "app/models/extra.py").write_text(USERS)
    for name in ("authors", "books"):
        for folder in ("models", "routes", "seeds"):
            (project.path / f"app/{folder}/{name}.py").unlink()
    (project.path / "app/seeds/__init__.py").write_text("SEEDS = []\n")
    (project.path / "app/routes/__init__.py").write_text("BLUEPRINTS = []\n")
    for file in revisions(project):
        file.unlink()
    return project


def commands_of(project: Project, words: str) -> str:
    """The block of commands of docs/migrations.md that has these words."""
    page = (project.path / "docs/migrations.md").read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (block,) = [each for each in blocks if words in each]
    return str(block)


def test_a_database_that_was_there_is_adopted_as_the_page_says(adopting: Project):
    adopting.sql(
        "CREATE TYPE mood AS ENUM ('good')",
        "CREATE TABLE users (id serial PRIMARY KEY, mail varchar(50) NOT NULL UNIQUE, mood mood)",
        "INSERT INTO users (mail) VALUES ('a')",
    )
    script = commands_of(adopting, "SCHEMA=adoption")
    script = script.replace('"as it was"', '"as it was" --acknowledge "native-enum=it was there"')
    result = adopting.run("sh", "-euc", script)
    assert result.returncode == 0, result.stdout
    edit(adopting, "app/models/extra.py", '"good",', '"good", "bad",')
    good(adopting, "db", "migrate", "-m", "bad moods")
    good(adopting, "db", "upgrade")
    good(adopting, "db", "check")
    assert adopting.sql("SELECT enum_range(NULL::mood)::text, mail FROM users") == (
        "[('{good,bad}', 'a')]"
    )


def test_a_history_that_was_there_is_adopted_as_the_page_says(adopting: Project):
    versions = adopting.path / "migrations/versions"
    (versions / "a1.py").write_text(LEGACY)
    (versions / "a2.py").write_text(LATER)
    good(adopting, "db", "upgrade")
    result = adopting.run("sh", "-euc", commands_of(adopting, "MIGRATION_LINT_START_AFTER"))
    assert result.returncode == 0, result.stdout
    edit(adopting, "app/models/extra.py", "(50)", "(60)")
    good(adopting, "db", "migrate", "-m", "longer mails")
    assert "clean" in good(adopting, "db", "lint", "base:head")
    good(adopting, "db", "upgrade")
    good(adopting, "db", "downgrade", "a1")
    good(adopting, "db", "upgrade")
    good(adopting, "db", "check")
