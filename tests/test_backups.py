"""`flask backup`: everything in a schema comes back, a kill at any moment leaves no half backup."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from conftest import PATIENCE, Project, copy_project, free_port, wait_until

ALL = "SELECT title, isbn FROM books ORDER BY id"
# A schema as teams have them: `svc` is also the name of a table in it.
RICH = r"""
CREATE TYPE status AS ENUM ('new', 'old');
CREATE DOMAIN price AS numeric CHECK (VALUE >= 0);
CREATE TABLE svc (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status status DEFAULT 'new',
  p price, twice numeric GENERATED ALWAYS AS (p * 2) STORED, note text DEFAULT 'svc.svc is it',
  data bytea, j jsonb, place vector(2));
INSERT INTO svc (p, data, j, note, place) SELECT n, '\x5c2e0a00', '{"a": "b\nc"}',
  E'a\tb\nc\\.\n\\.\n', '[1,2]' FROM generate_series(1, 2500) n;
CREATE TABLE "Odd ""name"" %s" ("we ird" serial PRIMARY KEY, "sel;ect" text);
INSERT INTO "Odd ""name"" %s" ("sel;ect") VALUES ('COPY x FROM stdin;'), (NULL), ('');
CREATE TABLE parts (at date, id int, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE parts_2025 PARTITION OF parts FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
INSERT INTO parts SELECT date '2025-06-01' + n, n FROM generate_series(1, 400) n;
CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent);
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3);
CREATE TABLE audit (what text);
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO svc.audit VALUES (TG_TABLE_NAME); RETURN NEW; END $$;
CREATE FUNCTION total() RETURNS numeric LANGUAGE sql STABLE SET search_path = svc
  AS 'SELECT sum(svc.p) FROM svc.svc';
CREATE FUNCTION atomic() RETURNS bigint LANGUAGE sql
  BEGIN ATOMIC; SELECT count(svc.id) FROM svc.svc; END;
CREATE FUNCTION mentions() RETURNS bigint LANGUAGE sql
  AS $$ SELECT count(*) FROM information_schema.tables WHERE table_schema = 'svc' $$;
CREATE TRIGGER after_svc AFTER INSERT ON svc FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE VIEW v AS SELECT svc.id, svc.status FROM svc JOIN parent ON svc.id = parent.a;
CREATE MATERIALIZED VIEW mv AS SELECT count(*) AS n, total() FROM svc;
CREATE UNIQUE INDEX ON mv (n);
CREATE INDEX svc_lower ON svc (lower(note));
CREATE STATISTICS stat ON id, p FROM svc;
CREATE RULE r AS ON DELETE TO audit DO INSTEAD (NOTIFY x; SELECT 1);
CREATE SEQUENCE lone START 7; SELECT nextval('lone');
CREATE AGGREGATE mysum(int) (sfunc = int4pl, stype = int);
CREATE COLLATION c (provider = builtin, locale = 'C.UTF-8');
CREATE POLICY p ON child USING (b > 0);
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO alembic_version VALUES ('0001');
COMMENT ON TABLE svc IS 'svc.svc';
CREATE FUNCTION same(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 = $2';
CREATE OPERATOR === (leftarg = int, rightarg = int, function = same, commutator = ===);
CREATE OPERATOR CLASS backwards FOR TYPE int USING hash AS OPERATOR 1 ===, FUNCTION 1 hashint4(int);
CREATE TYPE term AS RANGE (subtype = date, multirange_type_name = terms);
CREATE TYPE label AS ENUM ('svc.svc');
CREATE DOMAIN word AS text DEFAULT 'svc.svc' CHECK (VALUE <> 'svc.parent');
CREATE TABLE terms_of (id int CHECK (id === id), term term, terms terms, word word,
  label label DEFAULT 'svc.svc', home regclass DEFAULT 'svc.svc',
  kind text CHECK (kind = 'svc.svc'),
  twice text GENERATED ALWAYS AS ('svc.svc' || kind) STORED);
INSERT INTO terms_of (id, term, terms, kind) VALUES
  (1, '[2025-01-01,2025-07-01)', '{[2025-01-01,2025-07-01)}', 'svc.svc');
CREATE INDEX ON terms_of USING hash (id backwards);
CREATE VIEW first AS SELECT 'svc.svc' AS words, term(min(lower(term)), NULL) FROM terms_of;
CREATE TYPE price_range AS RANGE (subtype = numeric);
CREATE TYPE mark AS (status status, number int);
CREATE TABLE hashed (mark mark, range price_range) PARTITION BY HASH (mark);
CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (modulus 2, remainder 0);
CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (modulus 2, remainder 1);
INSERT INTO hashed SELECT ('new', n)::mark FROM generate_series(1, 100) n;
"""
# Functions as people write them: without the schema.
FUNCTIONS = r"""
CREATE FUNCTION norm(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE
  AS $$ BEGIN RETURN lower(t); END $$;
CREATE FUNCTION slug(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE
  AS $$ BEGIN RETURN replace(norm(t), ' ', '-'); END $$;
CREATE FUNCTION is_known() RETURNS bool LANGUAGE sql STABLE
  AS 'SELECT count(*) = 1 FROM alembic_version';
CREATE FUNCTION later(id int) RETURNS int LANGUAGE sql IMMUTABLE
  AS 'SELECT a + id FROM ONLY parent';
CREATE TABLE calls (id int CHECK (is_known()), title text, home regnamespace DEFAULT 'svc',
  slug text GENERATED ALWAYS AS (slug(title)) STORED,
  later int GENERATED ALWAYS AS (later(id)) STORED);
CREATE INDEX ON calls (slug(title));
INSERT INTO calls (id, title) VALUES (1, 'A b'), (2, 'C d');
CREATE FUNCTION total_calls() RETURNS bigint LANGUAGE sql STABLE SET search_path = svc
  AS 'SELECT count(*) FROM calls';
CREATE MATERIALIZED VIEW counted AS SELECT total_calls() AS n;
ALTER FUNCTION total_calls() RESET search_path;
"""
# What pg_dump says of two schemas, without the names of the schemas.
COMPARE = """
import re, subprocess, sys
from app.core import embedded
embedded.start()
program, host = embedded.find_program("pg_dump"), embedded.url().query["host"]
said = []
for schema in sys.argv[1:]:
    command = [program, "-h", host, "-U", "postgres", "-d", "postgres", "--schema", schema, "-Ox"]
    command.append("--exclude-table-data=*.hashed_*")  # in each schema in another order
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = re.sub(rf"\\b({'|'.join(sys.argv[1:])})\\b", "S", text)
    said.append([line for line in text.splitlines() if not line.startswith("\\\\")])
print(said[0] == said[1], len(said[0]))
"""


@dataclass
class Service(Project):
    """A project with settings of its own."""

    settings: dict[str, str] = field(default_factory=dict)
    production: dict[str, str] = field(default_factory=dict)

    def ok(self, *words: str, **environment: str) -> str:
        result = self.flask(*words, **self.settings | environment)
        assert result.returncode == 0, result.stdout
        said: str = result.stdout
        return said

    def refused(self, *words: str, code: int = 1, **environment: str) -> str:
        result = self.flask(*words, **self.settings | environment)
        assert result.returncode == code, result.stdout
        assert "Traceback" not in result.stdout
        said: str = result.stdout
        return said


@pytest.fixture(scope="module")
def service(
    generated: Path, seeded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A migrated and seeded project, whose database runs for all of these tests."""
    project = copy_project(generated, tmp_path_factory.mktemp("backups") / "book-service")
    shutil.copytree(seeded, project.path / ".postgres")
    with project.in_production() as production:
        yield Service(project.path, production=production)


@pytest.fixture
def kept(service: Service) -> Iterator[Path]:
    """The folder of the backups, empty before and after."""
    folder = service.path / "backups"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def dumps(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.dump"))


def looks_whole(folder: Path) -> bool:
    """Whether every dump under a final name has a manifest that is right about it."""
    for dump in folder.glob("*.dump"):
        manifest = json.loads(dump.with_name(f"{dump.name}.json").read_text())
        if hashlib.sha256(dump.read_bytes()).hexdigest() != manifest["sha256"]:
            return False
    return True


def test_a_day_with_backups(service: Service, kept: Path):
    before = service.sql(ALL)
    said = service.ok("backup", "create")
    assert re.search(r"public-\d{8}T\d{6}Z-0001\.dump: 9 rows in 3 tables, revision 0001", said)
    (name,) = dumps(kept)
    manifest = json.loads((kept / f"{name}.json").read_text())
    assert manifest["rows"] == {"alembic_version": 1, "authors": 4, "books": 4}
    assert {*kept.iterdir()} == {kept / name, kept / f"{name}.json"}
    assert (kept / name).stat().st_mode & 0o077 == 0
    assert re.search(rf"{name}  .* complete\n", service.ok("backup", "list"))
    assert "is whole: restored into database" in service.ok("backup", "verify", "latest")
    assert "is whole: restored into schema" in service.ok("backup", "verify", name, "--in-schema")

    service.sql("DELETE FROM books WHERE id > 1", "UPDATE authors SET name = name || '!'")
    spoilt = service.sql(ALL)
    said = service.refused("backup", "restore", name)
    assert "Schema public is not empty: it has public.alembic_version" in said
    assert "--replace" in said
    assert service.sql(ALL) == spoilt
    words = ["backup", "restore", "latest", "--replace"]
    assert "--yes-in-production" in service.refused(*words, code=2, **service.production)
    assert service.sql(ALL) == spoilt
    # Jobs write lines of the log.
    result = service.flask("backup", "restore", "none.dump", **service.production)
    assert result.returncode == 1
    assert json.loads(result.stdout)["level"] == "error"
    result = service.flask(*words, "--yes-in-production", **service.production)
    assert all(json.loads(line) for line in result.stdout.splitlines())
    assert service.sql(ALL) == before
    assert service.sql("INSERT INTO authors (name) VALUES ('New') RETURNING id") == "[(5,)]"
    service.sql("DELETE FROM authors WHERE id = 5")

    said = service.ok("backup", "restore", f"backups/{name}", SCHEMA="copy")
    assert "flask db upgrade has nothing to do" in said
    assert service.sql(ALL, SCHEMA="copy") == before
    service.ok("db", "check", SCHEMA="copy")
    service.ok("db", "downgrade", "base", SCHEMA="copy")
    assert service.sql(ALL) == before
    service.sql("DROP SCHEMA copy CASCADE")
    assert "verify_" not in service.sql("SELECT datname FROM pg_database")
    assert "verify_" not in service.sql("SELECT nspname FROM pg_namespace")


def test_what_cannot_be_restored_is_refused_in_words(service: Service, kept: Path):
    service.ok("backup", "create", "backups/good.dump")
    assert "exists already" in service.refused("backup", "create", "backups/good.dump")
    good = (kept / "good.dump").read_bytes()
    manifest = json.loads((kept / "good.dump.json").read_text())

    def other(name: str, dump: bytes, **changes: object) -> str:
        (kept / f"{name}.dump").write_bytes(dump)
        (kept / f"{name}.dump.json").write_text(json.dumps(manifest | changes))
        return f"{name}.dump"

    cut = other("cut", good[:-100])
    changed = other("changed", good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    newer = other("newer", good, server_version="99.1")
    client = other("client", good, client_version="99.1")
    foreign = other("foreign", good, service="orders")
    rows = other("rows", good, rows=manifest["rows"] | {"books": 5})
    at = other("at", good, revisions=["0007"])
    junk = other("junk", b"x" * len(good), sha256=hashlib.sha256(b"x" * len(good)).hexdigest())
    (kept / "alone.dump").write_bytes(good)
    (kept / "odd.dump").write_bytes(good)
    (kept / "odd.dump.json").write_text("{}")
    other("edited", good, server_version="abc")
    reasons = {
        "none.dump": "There is no backup",
        "alone.dump": "has no manifest",
        "odd.dump": "has a manifest that cannot be read",
        "edited.dump": "has a manifest that cannot be read",
        cut: f"is not complete: it has {len(good) - 100:,} bytes of {len(good):,}",
        changed: "its SHA-256 is not that of its manifest",
        newer: "The backup is of PostgreSQL 99, and this server is 18",
        client: "The backup was made by pg_dump 99",
        foreign: "is a backup of orders, and this is book-service",
        rows: "books has 4 rows instead of 5",
        at: "is at revision 0001, and the manifest says 0007",
        junk: "pg_restore failed",
    }
    before = service.sql(ALL)
    for name, reason in reasons.items():
        assert reason in service.refused("backup", "restore", name, "--replace"), name
    assert service.sql(ALL) == before
    listed = service.ok("backup", "list")
    assert "alone.dump" in listed
    assert "has no manifest" in listed
    assert listed.count("not complete") == 1
    assert service.ok("backup", "restore", foreign, "--replace", "--other-service")
    assert service.sql(ALL) == before

    # Of code that does not have the revision, and of code that has more.
    service.sql("UPDATE alembic_version SET version_num = '0007'")
    service.ok("backup", "create", "backups/ahead.dump")
    said = service.ok("backup", "restore", "ahead.dump", "--replace")
    assert "at revision 0007, which is newer than this code" in said
    service.sql("UPDATE alembic_version SET version_num = '0001'")
    service.ok("db", "revision", "-m", "later")
    (later,) = (service.path / "migrations/versions").glob("*_later.py")
    said = service.ok("backup", "restore", "good.dump", "--replace")
    assert f"flask db upgrade would run revision {later.name[:14]}" in said

    # No backup, no migration; one backup, if two replicas migrate at once.
    before_migrate = {"BACKUP_BEFORE_MIGRATE": "1"}
    for command in ("db upgrade", "prepare"):
        nowhere = {"BACKUP_DIR": "/proc/none", "PORT": str(free_port())}
        result = service.flask(*command.split(), **nowhere, **before_migrate)
        assert result.returncode == 1
        assert re.search("Set BACKUP_DIR .*\nNothing was migrated", result.stdout), result.stdout
    assert service.sql("SELECT version_num FROM alembic_version") == "[('0001',)]"
    # A platform starts again and again what cannot be migrated: not each of its backups stays.
    text = later.read_text()
    later.write_text(
        re.sub(r"(def upgrade.*\n)", r"\1    op.execute('SELECT 1 / 0')\n", text, count=1)
    )
    shutil.rmtree(kept)
    tries = []
    for _ in range(4):
        assert "division by zero" in service.flask("db", "upgrade", **before_migrate).stdout
        tries.append(dumps(kept)[-1])
    assert dumps(kept) == [tries[0], tries[3]]
    assert service.ok("backup", "list").count("before a migration") == 2
    later.write_text(text)
    shutil.rmtree(kept)
    command = [service.python, "-m", "flask", "db", "upgrade"]
    both = [service.popen(*command, **before_migrate) for _ in range(2)]
    said = "".join(process.communicate(timeout=PATIENCE)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], said
    assert said.count("backup before the migration") == 1
    (name,) = dumps(kept)
    assert name.endswith("-0001.dump")
    service.ok("db", "upgrade", **before_migrate)
    assert len(dumps(kept)) == 1
    service.ok("db", "downgrade", "0001")
    later.unlink()


def test_everything_in_a_schema_comes_back_under_any_name(service: Service, kept: Path):
    service.sql(
        "CREATE SCHEMA svc",
        "CREATE SCHEMA IF NOT EXISTS extensions",
        "CREATE EXTENSION vector SCHEMA extensions",
        (RICH + FUNCTIONS).replace("%", "%%").replace(":", "\\:"),
        SCHEMA="svc",
    )
    service.ok("backup", "create", "svc.dump", SCHEMA="svc")
    manifest = json.loads((service.path / "svc.dump.json").read_text())
    assert manifest["extensions"] == {"vector": {"schema": "extensions", "needed": True}}
    assert manifest["rows"]["parts_2025"] == 213
    assert sum(manifest["rows"].values()) == 3009
    # The trial's database has no extension yet; a schema of this one has.
    for words in ([], ["--in-schema"]):
        assert "3,009 rows" in service.ok("backup", "verify", "./svc.dump", *words, SCHEMA="svc")
    result = service.flask("backup", "restore", "./svc.dump", "--into", "copy")
    assert result.returncode == 0, result.stdout
    assert re.findall(r"function (\w+)\(\) still has svc", result.stdout) == ["mentions"]
    assert "table calls could not be analyzed" in result.stdout
    compare = [service.python, "-c", COMPARE, "svc", "copy"]
    assert service.run(*compare).stdout.startswith("True")
    service.sql("INSERT INTO copy.svc (p) VALUES (1)")
    # What is data stays, what PostgreSQL takes for a name changes.
    values = service.sql(
        "INSERT INTO copy.terms_of (id, kind) VALUES (2, 'svc.svc')"
        " RETURNING word, label, home\\:\\:text, twice, (SELECT words FROM copy.first)"
    )
    data = "svc.svc"
    assert values == str([(data, data, "copy.svc", data * 2, data)])
    counted = "SELECT (SELECT count(*) FROM copy.audit), (SELECT count(*) FROM svc.audit)"
    assert service.sql(counted) == "[(1, 0)]"
    computed = "SELECT slug, later, n FROM copy.calls, copy.counted ORDER BY id"
    assert service.sql(computed) == "[('a-b', 2, 2), ('c-d', 3, 2)]"

    # What others have made of it keeps it from being replaced.
    service.sql(
        "CREATE SCHEMA elsewhere",
        "CREATE VIEW elsewhere.view AS SELECT id FROM copy.svc",
        "CREATE TABLE elsewhere.others"
        " (a text COLLATE copy.c, b int CHECK (b OPERATOR(copy.===) b))",
        "CREATE INDEX others_b_idx ON elsewhere.others USING hash (b copy.backwards)",
    )
    said = service.refused("backup", "restore", "./svc.dump", "--replace", SCHEMA="copy")
    assert (
        "Others use what is in copy and would lose: column a of table elsewhere.others; "
        "constraint others_b_check on table elsewhere.others; index elsewhere.others_b_idx; "
        "rule _RETURN on view elsewhere.view" in said
    )
    service.sql(
        "DROP SCHEMA elsewhere CASCADE",
        "CREATE FUNCTION public.keep() RETURNS event_trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE 'No drops'; END $$",
        "CREATE EVENT TRIGGER keep ON sql_drop EXECUTE FUNCTION public.keep()",
    )
    said = service.refused("backup", "restore", "./svc.dump", "--replace", SCHEMA="copy")
    assert re.search(r"does not remove table copy\..*: No drops. Nothing was changed", said)
    service.sql("DROP EVENT TRIGGER keep", "DROP FUNCTION public.keep()")
    service.ok("backup", "restore", "./svc.dump", "--replace", SCHEMA="copy")
    assert service.sql(counted) == "[(0, 0)]"
    service.sql("DROP SCHEMA copy CASCADE", "DROP SCHEMA svc CASCADE", "DROP EXTENSION vector")
    assert "There is no schema svc" in service.refused("backup", "create", SCHEMA="svc")
    service.sql("CREATE SCHEMA svc")
    assert "Schema svc is empty" in service.refused("backup", "create", SCHEMA="svc")
    # A CHECK that reads rows which come later, and what the refusal says to do.
    service.sql(
        "CREATE TABLE books AS SELECT 1 AS id",
        "CREATE FUNCTION is_book(n int) RETURNS bool LANGUAGE sql STABLE"
        " AS 'SELECT EXISTS (SELECT FROM books WHERE id = n)'",
        "CREATE TABLE arrived (book int CHECK (is_book(book)))",
        "INSERT INTO arrived VALUES (1)",
        SCHEMA="svc",
    )
    service.ok("backup", "create", "early.dump", SCHEMA="svc")
    said = service.refused("backup", "verify", "./early.dump", SCHEMA="svc")
    advice = re.findall(r"^  (ALTER TABLE arrived .*);$", said, re.MULTILINE)
    service.sql(*advice, SCHEMA="svc")
    service.ok("backup", "create", "late.dump", SCHEMA="svc")
    service.ok("backup", "verify", "./late.dump", SCHEMA="svc")
    service.sql("DROP SCHEMA svc CASCADE")


def test_a_million_rows_and_kill_9(service: Service, kept: Path):
    big = {"SCHEMA": "big"}
    service.ok("db", "upgrade", **big)
    service.sql(
        "INSERT INTO authors (name) VALUES ('x')",
        "INSERT INTO books (isbn, title, genre, author_id)"
        " SELECT n, md5(n\\:\\:text), 'fiction', 1 FROM generate_series(1, 1000000) n",
        **big,
    )
    create = [service.python, "-m", "flask", "backup", "create"]

    def part() -> Path | None:
        return next(iter(kept.glob(".*.backup-part")), None)

    def frozen() -> int:
        """pg_dump at work, stopped so that it cannot be faster than this test."""
        found: list[int] = []
        wait_until(lambda: found.extend(programs(service, "pg_dump")) or found, "pg_dump runs")
        os.kill(found[0], signal.SIGSTOP)
        return found[0]

    for victim in ("flask", "pg_dump"):
        with service.popen(*create, **big) as process:
            dump = frozen()
            os.kill(process.pid if victim == "flask" else dump, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(dump, signal.SIGCONT)
            said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == (-9 if victim == "flask" else 1), said
        assert dumps(kept) == []
        assert "no backups" in service.ok("backup", "list", **big)
        wait_until(lambda: not programs(service, "pg_dump"), "pg_dump has ended too")
        if victim == "pg_dump":
            assert "pg_dump was ended by signal 9" in said
            assert part() is None
    # Ctrl-C leaves nothing; what the kill left goes with the next backup, one that is being
    # written stays.
    (kept / ".dead.dump.backup-part").touch()
    with service.popen(*create, **big) as process:
        frozen()
        assert not (kept / ".dead.dump.backup-part").exists()
        running = part()
        assert "nothing to remove" in service.ok("backup", "prune")
        assert running
        assert running.exists()
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert [*kept.iterdir()] == []

    # A disk that is full.
    limited = ["sh", "-c", 'ulimit -f 4000; trap "" XFSZ; exec "$@"', "sh", *create]
    result = service.run(*limited, **big)
    assert result.returncode == 1
    assert re.search("cannot be written: .*Nothing was left behind", result.stdout)
    assert [*kept.iterdir()] == []

    said = service.ok("backup", "create", **big)
    assert "1,000,002 rows in 3 tables" in said
    (name,) = dumps(kept)
    with service.popen(*create[:-1], "verify", name, **big) as process:
        wait_until(lambda: programs(service, "pg_restore"), "pg_restore runs")
        process.kill()
        process.communicate()
    assert "verify_" in service.sql("SELECT datname FROM pg_database")
    wait_until(lambda: "verify_" not in service.sql("SELECT datname FROM pg_stat_activity"), "end")
    # The next one removes what the kill left, and tells a person how far it is.
    command = f"{service.python} -m flask backup verify {name}"
    script = service.run("script", "-qec", command, "/dev/null", **big)
    assert script.returncode == 0, script.stdout
    assert re.search(r"restoring: \d+,\d+ of 1,000,002 rows, table books, \d s", script.stdout)
    assert "verify_" not in service.sql("SELECT datname FROM pg_database")

    # A restore that is killed has changed nothing, and the service reads what it read before.
    service.sql("DELETE FROM books WHERE id > 10", **big)
    with service.popen(*create[:-1], "restore", name, "--replace", **big) as process:
        wait_until(lambda: programs(service, "pg_restore"), "pg_restore runs")
        service.refused("db", "upgrade", MIGRATION_LOCK_WAIT_SECONDS="0", **big)
        process.kill()
        process.communicate()
    assert service.sql("SELECT count(*) FROM books", **big) == "[(10,)]"
    service.ok("backup", "restore", name, "--replace", **big)
    assert service.sql("SELECT count(*), max(id) FROM books", **big) == "[(1000000, 1000000)]"
    service.sql("DROP SCHEMA big CASCADE")


def programs(service: Service, name: str) -> list[int]:
    """The ids of the clients of this project that work, not those that are asked for a version."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            works = words[0].endswith(name.encode()) and b"--version" not in words
            if works and os.path.samefile(process / "cwd", service.path):
                found.append(int(process.name))
    return found


def test_old_ones_go_by_count_and_age(service: Service, kept: Path):
    service.ok("backup", "create", "backups/0.dump")
    manifest = json.loads((kept / "0.dump.json").read_text())
    now = datetime.now(UTC)
    for days in (1, 2, 10, 20, 30):
        (kept / f"{days}.dump").write_bytes((kept / "0.dump").read_bytes())
        created = (now - timedelta(days=days)).isoformat()
        text = json.dumps(manifest | {"created": created})
        (kept / f"{days}.dump.json").write_text(text)
    other = json.dumps(manifest | {"created": "2020-01-01T00:00:00Z", "service": "orders"})
    (kept / "other.dump").write_bytes((kept / "0.dump").read_bytes())
    (kept / "other.dump.json").write_text(other)
    (kept / "mine.dump").touch()
    (kept / "gone.dump.json").write_text(json.dumps(manifest))
    # What others have there, also where a backup goes to a folder that is theirs.
    foreign = {".their.iso.part", ".their.dump.part", "their.json"}
    theirs = service.path / "theirs"
    theirs.mkdir()
    for name in foreign:
        (kept / name).touch()
        (theirs / name).touch()
    (theirs / ".dead.dump.backup-part").touch()
    shutil.copy(kept / "gone.dump.json", theirs)
    there = {*theirs.iterdir()}
    service.ok("backup", "create", "theirs/my.dump")
    assert {*theirs.iterdir()} - there == {theirs / "my.dump", theirs / "my.dump.json"}
    assert there <= {*theirs.iterdir()}
    shutil.rmtree(theirs)
    ours = {"mine", "other"}

    def left() -> set[str]:
        return {name.removesuffix(".dump") for name in dumps(kept)} - ours

    words = ["backup", "prune"]
    rule = {"BACKUP_KEEP": "2", "BACKUP_KEEP_DAYS": "15"}
    assert service.ok(*words, "--dry-run", **rule).count("would remove") == 3
    assert left() == {"0", "1", "2", "10", "20", "30"}
    assert service.ok(*words, **rule).count("removed") == 3
    assert left() == {"0", "1", "2", "10"}
    assert not (kept / "gone.dump.json").exists()
    assert foreign <= {file.name for file in kept.iterdir()}
    not_a_folder = {"BACKUP_DIR": "backups/their.json"}
    assert "must be a folder" in service.refused("backup", "list", **not_a_folder)
    service.ok(*words, BACKUP_KEEP="3", BACKUP_KEEP_DAYS="0")
    assert left() == {"0", "1", "2"}
    service.ok(*words, BACKUP_KEEP="1", BACKUP_KEEP_DAYS="0")
    assert left() == {"0"}
    assert {f"{name}.dump" for name in ours} <= {*dumps(kept)}
    assert "BACKUP_KEEP is '0'" in service.refused(*words, BACKUP_KEEP="0")


def test_two_roles_and_a_password_that_nobody_sees(service: Service, kept: Path):
    """The owner of the tables migrates and backs up; it may create no database and no schema."""
    service.sql(
        "CREATE ROLE owner LOGIN PASSWORD 'hunter2'",
        "CREATE ROLE reader LOGIN",
        "CREATE SCHEMA duo AUTHORIZATION owner",
        "GRANT USAGE ON SCHEMA duo TO reader",
    )
    url = service.production["DATABASE_URL"]
    duo = {
        "SCHEMA": "duo",
        "DATABASE_URL": url.replace("//postgres@", "//reader@"),
        "DATABASE_URL_MIGRATIONS": url.replace("//postgres@", "//owner:hunter2@"),
        "SERVICE_ROLE": "reader",
    }
    service.ok("db", "upgrade", **duo)
    rows = "INSERT INTO authors (name) VALUES ('A'), ('B')"
    service.sql(rows, **duo)

    # What the programs are started with, and with which password.
    spy = service.path / "spy"
    spy.mkdir()
    find = "from app.core import embedded; print(embedded.find_program('pg_dump').parent)"
    real = service.run(service.python, "-c", find).stdout.strip()
    for program in ("pg_dump", "pg_restore"):
        script = f'#!/bin/sh\necho "$0 $@" >> spy/words\nexec {real}/{program} "$@"\n'
        (spy / program).write_text(script)
        (spy / program).chmod(0o755)
    service.ok("backup", "create", "backups/duo.dump", PATH=f"{spy}:{os.environ['PATH']}", **duo)
    words = (spy / "words").read_text()
    assert "user=owner" in words
    assert "hunter2" not in words
    shutil.rmtree(spy)

    said = service.refused("backup", "verify", "duo.dump", **duo)
    assert "ALTER ROLE" in said
    assert "CREATEDB" in said
    service.sql("ALTER ROLE owner CREATEDB")
    service.ok("backup", "verify", "duo.dump", **duo)
    service.sql("DELETE FROM authors WHERE name = 'A'", **duo)
    service.ok("backup", "restore", "duo.dump", "--replace", **duo)
    assert service.sql("SELECT count(*) FROM authors", **duo) == "[(2,)]"
    service.sql("INSERT INTO authors (name) VALUES ('C')", **duo)
    service.sql("CREATE TABLE duo.theirs (a int)")
    said = service.refused("backup", "restore", "duo.dump", "--replace", **duo)
    assert "permission denied for table theirs: role owner may not do that" in said
    service.sql("DROP TABLE duo.theirs")
    doctor = service.flask("doctor", **duo).stdout
    assert "has the privileges that the models need" in doctor

    # Who sees only some rows makes no backup of some rows.
    alone = {"DATABASE_URL_MIGRATIONS": duo["DATABASE_URL"], "SERVICE_ROLE": ""}
    service.sql("ALTER TABLE duo.authors ENABLE ROW LEVEL SECURITY")
    said = service.refused("backup", "create", **duo | alone)
    assert "BYPASSRLS" in said
    service.sql("ALTER TABLE duo.authors DISABLE ROW LEVEL SECURITY")
    service.sql("REVOKE SELECT ON duo.books FROM reader")
    said = service.refused("backup", "create", **duo | alone)
    assert "permission denied for table books" in said
    assert dumps(kept) == ["duo.dump"]
    service.sql(
        "DROP SCHEMA duo CASCADE",
        "DROP OWNED BY owner, reader",
        "DROP ROLE owner, reader",
    )

    # Programs that are missing, too old, or without TLS where the server has it.
    script = "from app.core.backups import clients; clients.find({})"
    for arguments, reason in {
        "99": "The server is PostgreSQL 99, and the newest pg_dump",
        "18, tls=True": "The connection uses TLS, and the pg_dump of the development wheel",
    }.items():
        result = service.run(service.python, "-c", script.format(arguments), PATH="/nowhere")
        assert reason in result.stdout
        assert "apt-get install postgresql-client" in result.stdout


def test_a_bucket(service: Service, tmp_path: Path):
    """boto3, and a server that speaks S3."""
    assert "uv sync --group s3" in service.refused("backup", "list", BACKUP_DIR="s3://bucket/x")
    project = copy_project(service.path, tmp_path / "book-service")
    shutil.rmtree(project.path / ".venv")
    result = project.run("uv", "sync", "--group", "s3")
    assert result.returncode == 0, result.stdout
    port = free_port()
    with (tmp_path / "moto.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    settings = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "no_proxy": "127.0.0.1",
        "BACKUP_DIR": "s3://bucket/books",
        "DATABASE_URL": service.production["DATABASE_URL"],
    }
    try:
        wait_until(lambda: is_listening(port), "the server listens")
        bucket = Service(project.path, settings)
        assert "NoSuchBucket" in bucket.refused("backup", "create")
        s3 = boto3.client(
            "s3",
            endpoint_url=settings["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
            config=Config(proxies={}),
        )
        s3.create_bucket(Bucket="bucket")
        before = service.sql(ALL)
        bucket.ok("backup", "create")
        (name,) = re.findall(r"(\S+\.dump)  .*, complete", bucket.ok("backup", "list"))
        assert "is whole" in bucket.ok("backup", "verify", "latest")
        service.sql("DELETE FROM books")
        bucket.ok("backup", "restore", f"s3://bucket/books/{name}", "--replace")
        assert service.sql(ALL) == before
        bucket.ok("backup", "create", "s3://bucket/books/second.dump")
        said = bucket.refused("backup", "create", "s3://bucket/books/second.dump")
        assert "exists already" in said
        bucket.ok("backup", "prune", BACKUP_KEEP="1", BACKUP_KEEP_DAYS="0")
        listed = keys(s3)
        assert listed == ["books/second.dump", "books/second.dump.json"]

        # In pieces, and cut off: nobody sees any of it.
        service.sql(
            "CREATE TABLE noise AS SELECT gen_random_uuid() FROM generate_series(1, 1200000)"
        )
        create = [project.python, "-m", "flask", "backup", "create", "s3://bucket/books/k.dump"]
        with project.popen(*create, **settings) as killed:
            wait_until(lambda: parts(s3), "a part is uploaded")
            killed.kill()
            killed.communicate()
        assert keys(s3) == listed
        assert parts(s3) >= 1
        bucket.ok("backup", "create", "s3://bucket/books/k.dump")
        assert "1,200,009 rows" in bucket.ok("backup", "verify", "latest")
        spoilt = bytearray(s3.get_object(Bucket="bucket", Key="books/k.dump")["Body"].read())
        spoilt[-5] ^= 1
        s3.put_object(Bucket="bucket", Key="books/k.dump", Body=bytes(spoilt))
        service.sql("DROP TABLE noise")
        assert "SHA-256" in bucket.refused("backup", "restore", "k.dump", "--replace")
        assert service.sql(ALL) == before
    finally:
        server.terminate()
        server.wait()


def keys(s3: Any) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket="bucket")["Contents"]]


def parts(s3: Any) -> int:
    """How many parts of uploads that are not complete have arrived."""
    uploads = s3.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
    place = [
        {"Bucket": "bucket", "Key": each["Key"], "UploadId": each["UploadId"]} for each in uploads
    ]
    return sum(len(s3.list_parts(**each).get("Parts", [])) for each in place)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_every_command_of_the_page(service: Service, kept: Path):
    service.sql("UPDATE books SET title = 'changed' WHERE id = 1")
    page = (service.path / "docs/backups.md").read_text()
    before = service.sql(ALL)
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if language == "sh":
            named = [each for each in dumps(kept) if each.startswith("book-service-public-")]
            result = service.run("sh", "-euc", text.replace("NAME", max(named, default="")))
            assert result.returncode == 0, result.stdout
    assert service.sql(ALL) == before
    assert "yesterday" not in service.sql("SELECT nspname FROM pg_namespace")
