"""Runs in a project behind a pooler: whatever way a statement goes, it must be in SCHEMA."""

import contextlib

import psycopg
from app import create_app
from app.models import Author, db
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

WHERE = "SELECT current_schema()"
PATH = "SELECT current_setting('search_path')"


def refused(work, words):
    with contextlib.suppress(DBAPIError, psycopg.Error):
        try:
            work()
        except Exception as error:
            if words not in str(error):
                raise AssertionError(f"not for this reason: {error}") from None
            raise
        raise AssertionError(f"not refused: {words}")


app = create_app()
with app.app_context():
    schema = app.config["SETTINGS"].schema_name
    engine = db.engine

    # The same connection, again and again, and nothing that is prepared on it.
    assert isinstance(engine.pool, QueuePool)
    drivers = set()
    for _ in range(20):
        with engine.connect() as connection:
            drivers.add(id(connection.connection.driver_connection))
            assert connection.scalar(text(WHERE)) == schema
    assert len(drivers) == 1

    # The ORM, its executemany included, and savepoints.
    with db.session.begin():
        db.session.execute(insert(Author), [{"name": f"many {n}"} for n in range(3)])
        with db.session.begin_nested() as savepoint:
            db.session.add(Author(name="many, but rolled back"))
            db.session.flush()
            savepoint.rollback()
        names = select(Author.name).where(Author.name.like("many%"))
        assert len(db.session.scalars(names.execution_options(yield_per=2)).all()) == 3

    # Isolation levels.
    for level in ("SERIALIZABLE", "REPEATABLE READ"):
        with engine.connect().execution_options(isolation_level=level) as connection:
            assert connection.scalar(text("SHOW transaction_isolation")) == level.lower()
            assert connection.scalar(text(WHERE)) == schema

    # AUTOCOMMIT: each statement is a transaction of its own.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(10):
            assert connection.scalar(text(WHERE)) == schema
            assert connection.scalar(text(f"{WHERE} WHERE :n = :n"), {"n": 1}) == schema
        connection.execute(text("INSERT INTO authors (name) VALUES ('by autocommit')"))
        refused(lambda: connection.execute(text("VACUUM authors")), "Behind a pooler each")
        refused(lambda: connection.execute(text("BEGIN")), "begin with connection.transaction()")
        refused(lambda: connection.execute(text("SELECT 1 / 0")), "division by zero")
        assert connection.scalar(text(WHERE)) == schema

    # psycopg itself, in a transaction and in autocommit.
    for autocommit in (False, True):
        raw = engine.raw_connection()
        driver = raw.driver_connection
        driver.autocommit = autocommit
        driver.execute("DELETE FROM authors WHERE name LIKE 'raw%'")
        cursor = driver.cursor()
        insert_one = "INSERT INTO authors (name) VALUES (%s)"
        cursor.executemany(insert_one, [("raw 1",), ("raw 2",)])
        with cursor.copy("COPY authors (name) FROM STDIN") as copy:
            copy.write_row(("raw 3",))
        if not autocommit:
            driver.commit()
        count = "SELECT count(*) FROM authors WHERE name LIKE 'raw%'"
        assert [*cursor.stream(count)] == [(3,)]
        driver.rollback()
        with driver.pipeline():
            cursor.execute(insert_one, ["raw 4"])
            cursor.execute(WHERE)
        assert cursor.fetchone() in ((schema,), None)
        driver.rollback()
        with driver.transaction():
            assert driver.execute(WHERE).fetchone() == (schema,)
            assert driver.execute(PATH, prepare=True).fetchone() == (f"{schema}, extensions",)
        if autocommit:
            # A cursor that is not ours cannot look into the wrong schema.
            other = psycopg.ClientCursor(driver)
            refused(lambda other=other: other.execute(WHERE), "This is no transaction")
        driver.autocommit = False
        raw.close()

    with app.test_request_context("/"):
        assert db.session.scalar(text(WHERE)) == schema
        db.session.remove()

    # The limit of a statement, which is sent with BEGIN too.
    print(schema, db.session.scalar(text("SHOW statement_timeout")))
    db.session.rollback()
