"""Two services behind a real PgBouncer in transaction mode, each in its own schema."""

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests
from conftest import PATIENCE, TEMPLATE, Project, Server, copy_project, free_port, wait_until
from production import SECRET, Load, producing
from real_servers import Pooler, Postgres, pooler, postgres, start_pooler

WORKER = TEMPLATE / "tests/pooler_worker.py"
SCHEMAS = ("public", "orders")
COMMANDS = {
    "public": [["db", "upgrade"], ["seed", "all"], ["seed", "undo", "--yes-in-production"]],
    "orders": [
        ["db", "upgrade"],
        ["seed", "reset", "--yes-in-production"],
        ["db", "check"],
        ["doctor"],
    ],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def bouncer(server: Postgres) -> Iterator[Pooler]:
    with pooler(server.folder, server.folder, server.port) as bouncer:
        yield bouncer


@pytest.fixture(scope="module")
def base(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(generated, tmp_path_factory.mktemp("pooler") / "book-service")


def settings(server: Postgres, bouncer: Pooler, **more: str) -> dict[str, str]:
    return {
        "APP_ENV": "production",
        "SECRET_KEY": SECRET,
        "DATABASE_URL": bouncer.url("plain"),
        "DATABASE_URL_MIGRATIONS": server.url("plain"),
        "DATABASE_POOLED": "true",
        "WEB_CONCURRENCY": "1",
        "DRAIN_SECONDS": "0",
        **more,
    }


def test_every_way_to_a_statement_is_in_the_schema(
    server: Postgres, bouncer: Pooler, base: Project
):
    for schema in SCHEMAS:
        environment = settings(server, bouncer, SCHEMA=schema)
        for words in COMMANDS[schema]:
            result = base.flask(*words, **environment)
            assert result.returncode == 0, f"{words}: {result.stdout}"
        # Limits as under gunicorn; PGOPTIONS is not for a pooler.
        environment |= {"SERVER_SOFTWARE": "gunicorn/test", "PGOPTIONS": "-c search_path=nowhere"}
        environment["PYTHONPATH"] = str(base.path)
        result = base.run(base.python, WORKER, **environment)
        assert result.returncode == 0, result.stdout
        assert result.stdout.splitlines()[-1] == f"{schema} 12s", result.stdout
    for schema in SCHEMAS:
        count = f"SELECT count(*) FROM {schema}.authors WHERE name LIKE 'many%'"
        assert server.sql(count, "plain") == [(3,)]
    # The sessions of the pooler, which others use too, are as they were.
    with psycopg.connect(bouncer.url("plain"), autocommit=True) as connection:
        for _ in range(8):
            found = connection.execute("SELECT current_setting('search_path')").fetchone()
            assert found == ('"$user", public',)


def test_two_services_under_load(server: Postgres, bouncer: Pooler, base: Project):
    """Neither writes into the other's tables, also after the pooler or the server were gone."""

    def ask(service: Server, schema: str, number: int) -> str:
        if number % 3:
            path = ("/api/books", "/api/authors")[number % 2]
            return f"{schema} {service.get(path).status_code}"
        author = {"name": f"{schema} {time.monotonic_ns()} {number}"}
        answer = requests.post(f"{service.url}/api/authors", json=author, timeout=PATIENCE)
        return f"{schema} {answer.status_code}"

    more = {"RUN_SEEDS": "1", "DATABASE_POOL_SIZE": "2", "DATABASE_POOL_OVERFLOW": "1"}
    environment = settings(server, bouncer, **more)
    url = environment.pop("DATABASE_URL")
    with (
        producing(base, url, **environment, SCHEMA="public") as public,
        producing(base, url, **environment, SCHEMA="orders") as orders,
    ):
        services = {"public": public, "orders": orders}

        def ask_both(number: int) -> str:
            schema = SCHEMAS[number % 2]
            return ask(services[schema], schema, number)

        with Load(6, ask_both) as load:
            load.until(300)
        assert load.results.keys() <= {f"{name} {code}" for name in SCHEMAS for code in (200, 201)}
        for schema in SCHEMAS:
            own = f"SELECT count(*) FROM {schema}.authors WHERE name LIKE '{schema} %'"
            assert server.sql(own, "plain") == [(load.results[f"{schema} 201"],)]

        bouncer.stop()
        assert public.get("/api/authors").status_code == 503
        assert public.get("/readyz").status_code == 503
        start_pooler(bouncer, server.folder)
        for service in services.values():
            assert [service.get("/api/authors").status_code for _ in range(10)] == [200] * 10

        server.control("-m", "immediate", "restart")
        wait_until(lambda: public.answers("/api/authors"), "the pooler found the server again")
        assert [public.get("/api/authors").status_code for _ in range(10)] == [200] * 10
        assert "Traceback" not in public.log.read_text() + orders.log.read_text()


def test_what_leads_to_the_wrong_schema_is_refused(
    server: Postgres, bouncer: Pooler, base: Project
):
    """Both by a pooler that refuses options and by one that drops them without a word."""
    ignored = "extra_float_digits, options, search_path"
    with pooler(
        server.folder, server.folder, server.port, ignore_startup_parameters=ignored
    ) as deaf:
        seed = [base.python, "-m", "flask", "seed", "all"]
        for words, each, schema in (
            (["./init.sh"], bouncer, "orders"),
            (["./init.sh"], deaf, "public"),
            (seed, deaf, "orders"),
        ):
            direct = settings(server, each, SCHEMA=schema, DATABASE_POOLED="false")
            del direct["DATABASE_URL_MIGRATIONS"]
            result = base.run(*words, **direct, PORT=str(free_port()))
            assert result.returncode == 1, result.stdout
            assert "Set DATABASE_POOLED=true, and" in result.stdout, result.stdout

        environment = settings(server, deaf, SCHEMA="orders", DATABASE_POOLED="false")
        gunicorn = [str(base.python), "-m", "gunicorn"]
        with base.serving(*gunicorn, until="/healthz", **environment) as service:
            answer = service.get("/readyz")
            assert answer.status_code == 503
            assert "Set DATABASE_POOLED=true" in answer.json()["reason"], answer.text
            assert service.get("/api/authors").status_code == 503

        for each in (bouncer, deaf):
            again = settings(server, each, SCHEMA="orders")
            again["DATABASE_URL_MIGRATIONS"] = each.url("plain")
            result = base.flask("db", "upgrade", **again)
            assert result.returncode == 1, result.stdout
            assert "DATABASE_URL_MIGRATIONS leads to a pooler" in result.stdout, result.stdout
            assert "Set it to the direct URL" in result.stdout, result.stdout

        # The pooler is known, and the URL has options of its own.
        url = bouncer.url("plain") + "?options=-cwork_mem%3D8MB"
        result = base.run("./init.sh", **settings(server, bouncer) | {"DATABASE_URL": url})
        assert result.returncode == 1, result.stdout
        assert "Take the options out of it" in result.stdout, result.stdout
