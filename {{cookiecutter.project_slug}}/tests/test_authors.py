"""/api/authors"""

import pytest
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from app.models import Author, Book, Genre


@pytest.fixture
def author(session: Session) -> Author:
    author = Author(name="Toni Morrison", born=1931)
    session.add(author)
    session.commit()
    return author


def test_authors_are_listed(client: FlaskClient, author: Author) -> None:
    page = client.get("/api/authors?total=true").get_json()
    assert [item["name"] for item in page["items"]] == ["Toni Morrison"]
    assert page["total"] == 1


def test_an_author_is_created(client: FlaskClient) -> None:
    response = client.post("/api/authors", json={"name": " Chinua Achebe "})
    assert response.status_code == 201
    created = response.get_json()
    assert (created["name"], created["born"]) == ("Chinua Achebe", None)
    assert client.get(response.headers["Location"]).get_json() == created


def test_an_author_is_changed(client: FlaskClient, author: Author) -> None:
    response = client.patch(f"/api/authors/{author.id}", json={"born": 1930})
    assert response.status_code == 200
    assert (response.get_json()["name"], response.get_json()["born"]) == ("Toni Morrison", 1930)


def test_an_author_without_books_is_deleted(client: FlaskClient, author: Author) -> None:
    url = f"/api/authors/{author.id}"
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404


def test_an_author_with_books_stays(client: FlaskClient, session: Session, author: Author) -> None:
    book = Book(isbn="9781400033416", title="Beloved", genre=Genre.FICTION, author_id=author.id)
    session.add(book)
    session.commit()
    url = f"/api/authors/{author.id}"
    response = client.delete(url)
    assert response.status_code == 409
    assert "books" in response.get_json()["detail"]
    assert client.get(url).status_code == 200


def test_a_name_is_taken_once(client: FlaskClient, author: Author) -> None:
    response = client.post("/api/authors", json={"name": author.name})
    assert response.status_code == 409
    assert [error["where"] for error in response.get_json()["errors"]] == ["json.name"]
