"""A GET reads without a transaction, and may not do what needs one."""

from collections.abc import Iterator

import pytest
from flask import request
from flask.testing import FlaskClient
from sqlalchemy import text

from app import create_app
from app.config import Settings
from app.core.session import in_transaction
from app.models import db


@pytest.fixture(scope="module")
def sql(settings: Settings) -> Iterator[FlaskClient]:
    """A client of two pages that execute what they are given; the second has a transaction."""
    app = create_app(settings)

    def execute() -> str:
        db.session.execute(text(request.args["q"]))
        return "done"

    app.add_url_rule("/sql", view_func=execute)
    app.add_url_rule("/in-transaction", "transaction", in_transaction(lambda: execute()))
    yield app.test_client()
    with app.app_context():
        db.engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1",
        "(SELECT 1) UNION (SELECT 2)",
        "WITH one AS (SELECT 1) SELECT * FROM one",
        "-- a comment: UPDATE\nSELECT 'delete from' AS \"into\" /* INSERT */ ;",
        "SHOW search_path",
    ],
)
def test_a_get_may(sql: FlaskClient, statement: str) -> None:
    assert sql.get("/sql", query_string={"q": statement}).status_code == 200


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMP TABLE t (a int)",
        "WITH gone AS (DELETE FROM alembic_version RETURNING 1) SELECT * FROM gone",
        "SELECT 1 AS a INTO TEMP t",
        "SELECT 1 FOR UPDATE",
        "SELECT set_config('work_mem', '1MB', true)",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT 1; CREATE TEMP TABLE t (a int)",
        "SET LOCAL work_mem = '1MB'",
    ],
)
def test_a_get_may_not(sql: FlaskClient, statement: str) -> None:
    assert sql.get("/sql", query_string={"q": statement}).status_code == 500


def test_in_a_transaction_it_may(sql: FlaskClient) -> None:
    query = {"q": "CREATE TEMP TABLE t (a int) ON COMMIT DROP"}
    assert sql.get("/in-transaction", query_string=query).status_code == 200
