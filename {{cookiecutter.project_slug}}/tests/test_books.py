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


@pytest.mark.parametrize("number", [10**30, 2**63, "1_0", "١", "+1", "01", "1.0"])
def test_a_number_that_no_book_can_have(client: FlaskClient, number: int | str) -> None:
    assert client.get(f"/api/books/{number}").status_code == 404


def test_pages(client: FlaskClient, session: Session, author: Author) -> None:
    for number in range(5):
        isbn = f"{number:013}"
        session.add(Book(isbn=isbn, title="A title", genre=Genre.FICTION, author_id=author.id))
    session.commit()
    url, isbns = "/api/books?per_page=2", []
    while url:
        page = client.get(url).get_json()
        assert set(page) == {"items", "next"}
        isbns.append([book["isbn"][-1] for book in page["items"]])
        url = page["next"]
    assert isbns == [["0", "1"], ["2", "3"], ["4"]]
    assert client.get("/api/books?per_page=2&total=true").get_json()["total"] == 5


@pytest.mark.parametrize(
    "query",
    ["after=-1", "after=x", "per_page=0", "per_page=101", "per_page=1_0", "total=yes", "page=2"],
)
def test_a_page_that_cannot_exist(client: FlaskClient, query: str) -> None:
    response = client.get(f"/api/books?{query}")
    assert (response.status_code, response.mimetype) == (422, PROBLEM)
    assert response.get_json()["errors"][0]["where"] == f"query.{query.split('=')[0]}"


def test_a_book_that_has_not_changed_is_not_sent_again(
    client: FlaskClient, book: dict[str, Any]
) -> None:
    url = f"/api/books/{book['id']}"
    tag = client.get(url).headers["ETag"]
    response = client.get(url, headers={"If-None-Match": tag})
    assert (response.status_code, response.data, response.headers["ETag"]) == (304, b"", tag)
    changed = client.patch(url, json={"title": "Jazz"})
    assert changed.headers["ETag"] != tag
    assert client.get(url, headers={"If-None-Match": tag}).get_json() == changed.get_json()


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_nobody_overwrites_what_they_have_not_seen(
    client: FlaskClient, body: dict[str, Any], method: str
) -> None:
    created = client.post("/api/books", json=body)
    url, seen = created.headers["Location"], {"If-Match": created.headers["ETag"]}
    changed = client.patch(url, json={"title": "Jazz"}, headers=seen)
    assert changed.status_code == 200
    late = client.open(url, method=method, json={}, headers=seen)
    assert (late.status_code, late.mimetype) == (412, PROBLEM)
    assert client.get(url).get_json() == changed.get_json()
    seen = {"If-Match": changed.headers["ETag"]}
    assert client.open(url, method=method, json={}, headers=seen).status_code in (200, 204)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("isbn", "123"),
        ("title", " "),
        ("title", None),
        ("genre", "poetry"),
        ("published", 100_000),
        ("author_id", True),
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


def test_an_author_who_does_not_exist(client: FlaskClient, body: dict[str, Any]) -> None:
    response = client.post("/api/books", json=body | {"author_id": 123_456_789})
    assert (response.status_code, response.mimetype) == (409, PROBLEM)
    assert [error["where"] for error in response.get_json()["errors"]] == ["json.author_id"]


def test_missing_fields_are_named(client: FlaskClient) -> None:
    errors = client.post("/api/books", json={}).get_json()["errors"]
    assert {error["where"] for error in errors} == {
        "json.isbn",
        "json.title",
        "json.genre",
        "json.author_id",
    }


@pytest.mark.parametrize("data", ["", "{", '{"title": NaN}', '{"title": "A", "title": "B"}'])
def test_unreadable_json(client: FlaskClient, data: str) -> None:
    response = client.post("/api/books", data=data, content_type="application/json")
    assert (response.status_code, response.mimetype) == (400, PROBLEM)
    assert "JSON" in response.get_json()["detail"]


@pytest.mark.parametrize("data", ["null", "[]", '"text"', "1"])
def test_a_body_that_is_not_an_object(client: FlaskClient, data: str) -> None:
    response = client.post("/api/books", data=data, content_type="application/json")
    assert (response.status_code, response.mimetype) == (422, PROBLEM)
    assert [error["where"] for error in response.get_json()["errors"]] == ["json"]


def test_another_media_type(client: FlaskClient) -> None:
    response = client.post("/api/books", data={"title": "Beloved"})
    assert (response.status_code, response.mimetype) == (415, PROBLEM)


@pytest.mark.parametrize("title", ["A\0B", "A\ud800B", "A\nB"])
def test_a_character_that_a_title_cannot_have(
    client: FlaskClient, body: dict[str, Any], title: str
) -> None:
    response = client.post("/api/books", json=body | {"title": title})
    assert (response.status_code, response.mimetype) == (422, PROBLEM)
    assert [error["where"] for error in response.get_json()["errors"]] == ["json.title"]


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
    assert len(client.get("/api/books").get_json()["items"]) == 1
