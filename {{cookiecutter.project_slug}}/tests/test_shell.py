"""`flask shell`."""

from apiflask import APIFlask
from sqlalchemy import select

from app.models import Base, db


def test_models_and_session_are_at_hand(app: APIFlask) -> None:
    with app.app_context():
        names = app.make_shell_context()
    assert (names["db"], names["session"], names["select"]) == (db, db.session, select)
    for mapper in Base.registry.mappers:
        assert names[mapper.class_.__name__] is mapper.class_
