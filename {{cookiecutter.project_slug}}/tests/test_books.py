"""/api/books, and what all lists and all writes have in common."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Author, Book, Genre

PROBLEM = "application/problem+json"


@pytest.fixture
def author(session: Session) -> Author:
    author = Author(name="Toni Morrison", born=1931)
    session.add(author)
    session.commit()
    return author


@pytest.fixture
def body(author: Author) -> dict[str, Any]:
    return {
        "isbn": "9781400033416",
        "title": "Beloved",
        "genre": "fiction",
        "published": 1987,
        "author_id": author.id,
    }


@pytest.fixture
def book(client: FlaskClient, body: dict[str, Any]) -> dict[str, Any]:
    created: dict[str, Any] = client.post("/api/books", json=body).get_json()
    return created


def test_a_book_is_created(client: FlaskClient, session: Session, body: dict[str, Any]) -> None:
    response = client.post("/api/books", json=body)
    assert response.status_code == 201
    assert body.items() <= response.get_json().items()
    assert client.get(response.headers["Location"]).get_json() == response.get_json()
    stored = session.scalars(select(Book)).one()
    assert (stored.genre, stored.seeded) == (Genre.FICTION, False)


def test_a_book_is_changed_field_by_field(client: FlaskClient, book: dict[str, Any]) -> None:
    response = client.patch(f"/api/books/{book['id']}", json={"title": "Jazz", "published": None})
    assert response.status_code == 200
    changed = response.get_json() | {"updated_at": book["updated_at"]}
    assert changed == book | {"title": "Jazz", "published": None}


def test_a_book_is_deleted(client: FlaskClient, book: dict[str, Any]) -> None:
    url = f"/api/books/{book['id']}"
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_a_book_that_does_not_exist(client: FlaskClient, method: str) -> None:
    json: dict[str, Any] | None = {} if method == "PATCH" else None
    response = client.open("/api/books/123456789012", method=method, json=json)
    assert (response.status_code, response.mimetype) == (404, PROBLEM)
    assert response.get_json()["detail"] == "There is no book 123456789012."


def test_a_number_that_no_book_can_have(client: FlaskClient) -> None:
    assert client.get(f"/api/books/{10**30}").status_code == 404


def test_pages(client: FlaskClient, session: Session, author: Author) -> None:
    for number in range(5):
        isbn = f"{number:013}"
        session.add(Book(isbn=isbn, title="A title", genre=Genre.FICTION, author_id=author.id))
    session.commit()
    page = client.get("/api/books?page=2&per_page=2").get_json()
    assert [book["isbn"] for book in page.pop("items")] == [f"{2:013}", f"{3:013}"]
    assert page == {"page": 2, "per_page": 2, "total": 5, "pages": 3}
    assert client.get("/api/books?page=4&per_page=2").get_json()["items"] == []


@pytest.mark.parametrize("query", ["page=0", "page=x", "per_page=0", "per_page=101"])
def test_a_page_that_cannot_exist(client: FlaskClient, query: str) -> None:
    response = client.get(f"/api/books?{query}")
    assert (response.status_code, response.mimetype) == (422, PROBLEM)
    assert response.get_json()["errors"][0]["where"] == f"query.{query.split('=')[0]}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("isbn", "123"),
        ("title", " "),
        ("title", None),
        ("genre", "poetry"),
        ("published", 100_000),
        ("author_id", 123_456_789),
        ("publisher", "Knopf"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_wrong_field_is_named(
    client: FlaskClient, body: dict[str, Any], method: str, field: str, value: Any
) -> None:
    url = "/api/books"
    if method == "PATCH":
        url += f"/{client.post(url, json=body).get_json()['id']}"
    response = client.open(url, method=method, json=body | {field: value})
    assert (response.status_code, response.mimetype) == (422, PROBLEM)
    assert [error["where"] for error in response.get_json()["errors"]] == [f"json.{field}"]


def test_missing_fields_are_named(client: FlaskClient) -> None:
    errors = client.post("/api/books", json={}).get_json()["errors"]
    assert {error["where"] for error in errors} == {
        "json.isbn",
        "json.title",
        "json.genre",
        "json.author_id",
    }


def test_unreadable_json(client: FlaskClient) -> None:
    response = client.post("/api/books", data="{", content_type="application/json")
    assert (response.status_code, response.mimetype) == (400, PROBLEM)
    assert "JSON" in response.get_json()["detail"]


def test_a_character_that_postgresql_cannot_store(
    client: FlaskClient, body: dict[str, Any]
) -> None:
    response = client.post("/api/books", json=body | {"title": "A\0B"})
    assert (response.status_code, response.mimetype) == (422, PROBLEM)


def test_the_openapi_document(client: FlaskClient) -> None:
    paths = client.get("/openapi.json").get_json()["paths"]
    assert set(paths["/api/books"]) == {"get", "post"}
    assert set(paths["/api/books/{book_id}"]) == {"get", "patch", "delete"}
    assert list(paths["/api/books"]["post"]["responses"]["422"]["content"]) == [PROBLEM]


def test_an_isbn_is_taken_once(
    client: FlaskClient, book: dict[str, Any], body: dict[str, Any]
) -> None:
    response = client.post("/api/books", json=body)
    assert (response.status_code, response.mimetype) == (409, PROBLEM)
    assert "already exists" in response.get_json()["detail"]
    assert client.get("/api/books").get_json()["total"] == 1
