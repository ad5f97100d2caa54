"""The API over HTTP: writers at the same time, pages, strict input, and its OpenAPI document."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from conftest import PATIENCE, Server, copy_project, run
from openapi_spec_validator import OpenAPIV31SpecValidator

PROBLEM = "application/problem+json"
ISBNS = (f"{number:013}" for number in itertools.count())
ROUNDS = 20

# What a team adds: nothing of it is told to the document or to the checks of input.
SHELVES = '''
"""/api/shelves: where books stand."""

from apiflask import APIBlueprint, Schema
from apiflask.fields import Integer, List, String
from apiflask.views import MethodView
from pydantic import BaseModel

from app.core.api import In, Name, Number

shelves = APIBlueprint("shelves", __name__, url_prefix="/api/shelves")


class Filter(BaseModel):
    height: int = 3
    oak: bool = False
    weight: float = 1.5
    colour: str = "red"


class ShelfIn(In):
    label: Name
    width: Number = 1
    notes: dict[str, str] = {}


class Shelf(BaseModel):
    label: str


class Labels(Schema):
    label = List(String())
    size = Integer()


@shelves.get("")
@shelves.input(Filter, location="query")
@shelves.output(Shelf)
def find(query_data: Filter) -> dict[str, str]:
    return {"label": query_data.colour}


@shelves.post("")
@shelves.input(ShelfIn)
@shelves.output(Shelf, status_code=201)
def create_shelf(json_data: ShelfIn) -> ShelfIn:
    return json_data


@shelves.get("/<int:number>")
@shelves.get("/number/<int:number>")
def get_book(number: int) -> dict[str, int]:
    return {"number": number}


@shelves.get("/labels")
@shelves.input(Labels, location="query")
@shelves.output(Labels)
def labels(query_data: dict[str, list[str]]) -> dict[str, list[str]]:
    return query_data


class Row(MethodView):
    @shelves.output(Shelf)
    def get(self, row: str) -> dict[str, str]:
        """A row."""
        return {"label": row}

    @shelves.input(ShelfIn)
    @shelves.output(Shelf)
    def put(self, row: str, json_data: ShelfIn) -> ShelfIn:
        """Replace a row."""
        return json_data


shelves.add_url_rule("/rows/<row>", view_func=Row.as_view("row"))
'''


@pytest.fixture(scope="module")
def server(generated, tmp_path_factory) -> Iterator[Server]:
    """The default project, and a blueprint of its team."""
    project = copy_project(generated, tmp_path_factory.mktemp("api") / "book-service")
    (project.path / "app/routes/shelves.py").write_text(SHELVES.lstrip())
    routes = project.path / "app/routes/__init__.py"
    text = routes.read_text().replace("authors, books]", "authors, books, shelves]")
    routes.write_text("from app.routes.shelves import shelves\n" + text)
    with project.serving() as server:
        yield server


@pytest.fixture
def send(server) -> Callable[..., requests.Response]:
    """Send a request; `json` may also be the text of a body."""

    def send(method: str, path: str, json: Any = None, **headers: str) -> requests.Response:
        text = isinstance(json, str | bytes)
        return requests.request(
            method,
            server.url + path,
            data=json if text else None,
            json=None if text else json,
            headers={name.replace("_", "-"): value for name, value in headers.items()}
            | ({"Content-Type": "application/json"} if text else {}),
            timeout=PATIENCE,
        )

    return send


@pytest.fixture
def book(send) -> requests.Response:
    """The answer to the creation of a new book."""
    return new_book(send)


def new_book(send) -> requests.Response:
    author = send("GET", "/api/authors").json()["items"][0]["id"]
    body = {"isbn": next(ISBNS), "title": "A title", "genre": "fiction", "author_id": author}
    response = send("POST", "/api/books", body)
    assert response.status_code == 201, response.text
    return response


def where(response: requests.Response) -> list[str]:
    """What a problem complains about."""
    assert response.headers["Content-Type"] == PROBLEM, response.text
    return [error["where"] for error in response.json().get("errors", [])]


# Writers


def test_an_etag_is_that_of_what_get_answers(send, book):
    url = book.headers["Location"]
    tag = book.headers["ETag"]
    assert (book.json(), tag) == (send("GET", url).json(), send("GET", url).headers["ETag"])
    assert send("HEAD", url).headers["ETag"] == tag
    changed = send("PATCH", url, {"title": "Another"})
    assert changed.headers["ETag"] == send("GET", url).headers["ETag"] != tag


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_what_the_client_has_is_not_sent_again(send, book, form):
    url = book.headers["Location"]
    response = send("GET", url, If_None_Match=form.format(book.headers["ETag"]))
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == book.headers["ETag"]
    assert "Content-Type" not in response.headers


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("form", "is_allowed"),
    [
        ("{}", True),
        ('"other", {}', True),
        ("*", True),
        ("W/{}", False),
        ('"other"', False),
        ("", False),
    ],
)
def test_if_match(send, book, method, form, is_allowed):
    url = book.headers["Location"]
    response = send(method, url, {}, If_Match=form.format(book.headers["ETag"]))
    if is_allowed:
        assert response.status_code == (200 if method == "PATCH" else 204)
    else:
        assert (response.status_code, where(response)) == (412, [])
        assert send("GET", url).json() == book.json()


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_what_is_gone_is_not_found_whatever_the_condition(send, book, method):
    url = book.headers["Location"]
    assert send("DELETE", url).status_code == 204
    for headers in ({}, {"If_Match": "*"}, {"If_Match": book.headers["ETag"]}):
        assert send(method, url, {}, **headers).status_code == 404


def at_once(*calls: Callable[[], requests.Response]) -> list[int]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [answer.result().status_code for answer in [pool.submit(call) for call in calls]]


def test_of_two_deletes_one_finds_nothing(send):
    for _ in range(ROUNDS):
        url = new_book(send).headers["Location"]
        assert sorted(at_once(*[lambda url=url: send("DELETE", url)] * 2)) == [204, 404]


def test_a_change_against_a_delete(send):
    for number in range(ROUNDS):
        url = new_book(send).headers["Location"]
        change, delete = at_once(
            lambda url=url, number=number: send("PATCH", url, {"published": number}),
            lambda url=url: send("DELETE", url),
        )
        assert (change in (200, 404), delete) == (True, 204)


def test_of_writers_who_have_seen_the_same_one_wins(send):
    for _ in range(ROUNDS):
        seen = new_book(send)
        url, tag = seen.headers["Location"], seen.headers["ETag"]
        calls = [
            lambda url=url, tag=tag, year=year: send(
                "PATCH", url, {"published": year}, If_Match=tag
            )
            for year in range(3)
        ]
        assert sorted(at_once(*calls)) == [200, 412, 412]


def test_a_change_of_an_author_and_new_books_do_not_wait_for_each_other_in_a_circle(send):
    author = send("POST", "/api/authors", {"name": "Somebody"}).json()["id"]
    for number in range(ROUNDS):
        book = new_book(send).headers["Location"]
        statuses = at_once(
            lambda book=book: send("PATCH", book, {"author_id": author}),
            lambda number=number: send("PATCH", f"/api/authors/{author}", {"born": number}),
            lambda: send("PATCH", f"/api/authors/{author}", {"born": None}),
        )
        assert statuses == [200, 200, 200]


# Pages


def test_the_pages_of_a_list_that_changes(send):
    for _ in range(5):
        new_book(send)
    total = send("GET", "/api/books?total=true&per_page=1").json()["total"]
    url, seen = "/api/books?per_page=2", []
    while url:
        page = send("GET", url).json()
        assert page.keys() == {"items", "next"}
        seen += [book["id"] for book in page["items"]]
        # A page by number would now leave out a book.
        if len(seen) == 4:
            assert send("DELETE", f"/api/books/{seen[0]}").status_code == 204
        url = page["next"]
    assert (len(seen), seen) == (total, sorted(set(seen)))
    last = send("GET", f"/api/books?after={seen[-1]}").json()
    assert last == {"items": [], "next": None}


def test_the_total_is_counted_once(send):
    page = send("GET", "/api/authors?total=true&per_page=1").json()
    assert page["total"] > 1
    assert "total" not in page["next"]
    assert "per_page=1" in page["next"]


# Strict input


@pytest.mark.parametrize("value", ["1_0", "%EF%BC%91", "%D9%A1", "%201", "1%20", "1.0", "%2B1"])
def test_a_number_is_spelled_in_one_way(send, value):
    for parameter in ("after", "per_page"):
        response = send("GET", f"/api/books?{parameter}={value}")
        assert (response.status_code, where(response)) == (422, [f"query.{parameter}"])
    response = send("GET", f"/api/shelves?height={value}")
    assert (response.status_code, where(response)) == (422, ["query.height"])
    for method in ("GET", "PATCH", "DELETE"):
        assert send(method, f"/api/books/{value}", {}).status_code == 404
    assert send("GET", f"/api/shelves/{value}").status_code == 404


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 10**19, 10**100, "-1", "01"])
def test_an_id_that_no_row_has(send, number):
    for method in ("GET", "PATCH", "DELETE"):
        assert send(method, f"/api/books/{number}", {}).status_code == 404


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("/api/books?pge=1", ["pge"]),
        ("/api/books?page=1&x=2", ["page", "x"]),
        ("/api/books?per_page=1&per_page=1", ["per_page"]),
        ("/api/books?total=1", ["total"]),
        ("/api/books?after=", ["after"]),
        ("/api/books/1?x=1", ["x"]),
        ("/api/shelves?colour=%00", ["colour"]),
        ("/api/shelves?oak=yes&weight=inf", ["oak", "weight"]),
        ("/api/shelves/1?x=", ["x"]),
        ("/api/shelves/rows/1?x=", ["x"]),
        ("/api/shelves/labels?label=a&label=b&size=1&size=2", ["size"]),
    ],
)
def test_a_query_that_nobody_declared(send, path, wrong):
    response = send("GET", path)
    assert (response.status_code, where(response)) == (422, [f"query.{name}" for name in wrong])


def test_a_query_that_a_team_declared(send):
    assert send("GET", "/api/shelves?height=2&oak=true&weight=-1.5e3").status_code == 200
    labels = send("GET", "/api/shelves/labels?label=a&label=b&size=1")
    assert labels.json() == {"label": ["a", "b"], "size": 1}


def test_other_methods_than_those_with_a_body_need_none(send):
    assert send("OPTIONS", "/api/books").status_code == 200
    assert send("PUT", "/api/books").status_code == 405


@pytest.mark.parametrize(
    ("body", "status", "wrong"),
    [
        ("", 400, []),
        ("{", 400, []),
        ('{"name": NaN}', 400, []),
        ('{"name": -Infinity}', 400, []),
        ('{"name": "A", "born": 1e999}', 400, []),
        ('{"name": "A", "name": "A"}', 400, []),
        (b'{"name": "\xed\xa0\x80"}', 400, []),
        ('{"name": "A"}'.encode("utf-16"), 400, []),
        ("[" * 100_000, 400, []),
        ("null", 422, [""]),
        ("[]", 422, [""]),
        ('"A"', 422, [""]),
        ('{"name": "A\\u0000"}', 422, [".name"]),
        ('{"name": "\\ud800"}', 422, [".name"]),
        ('{"name": "\\udC00\\ud800"}', 422, [".name"]),
        ('{"name": "A\\nB"}', 422, [".name"]),
        ('{"name": null}', 422, [".name"]),
        ('{"name": 1}', 422, [".name"]),
        ('{"name": "A", "born": true}', 422, [".born"]),
        ('{"name": "A", "born": "1"}', 422, [".born"]),
        ('{"name": "A", "born": 1.5}', 422, [".born"]),
        ('{"name": "A", "other": 1}', 422, [".other"]),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_body_that_is_refused(send, method, body, status, wrong):
    url = "/api/authors"
    if method == "PATCH":
        url += f"/{send('GET', url).json()['items'][0]['id']}"
    response = send(method, url, body)
    assert (response.status_code, where(response)) == (status, [f"json{each}" for each in wrong])


def test_a_text_somewhere_in_a_body(send):
    body = '{"label": "A", "notes": {"a": "\\ud83d\\ude00", "b": "\\u0000", "\\u0000": "c"}}'
    response = send("POST", "/api/shelves", body)
    assert (response.status_code, where(response)) == (422, ["json.notes.b", "json.notes.\0"])


def test_a_whole_number_may_have_a_point(send):
    response = send("POST", "/api/authors", '{"name": "With a point", "born": 75.0}')
    assert (response.status_code, response.json()["born"]) == (201, 75)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""]
)
def test_a_body_of_another_kind(server, kind):
    for method, path in (("POST", "/api/authors"), ("PATCH", "/api/authors/1")):
        response = requests.request(
            method,
            server.url + path,
            data=b'{"name": "A"}',
            headers={"Content-Type": kind},
            timeout=PATIENCE,
        )
        assert (response.status_code, where(response)) == (415, [])


def test_a_value_that_stands_in_the_way_is_named(send, book):
    again = send("POST", "/api/books", known := wanted(book))
    assert (again.status_code, where(again)) == (409, ["json.isbn"])
    nobody = send("PATCH", book.headers["Location"], {"author_id": 10**15})
    assert (nobody.status_code, where(nobody)) == (409, ["json.author_id"])
    assert str(10**15) in nobody.json()["detail"]
    used = send("DELETE", f"/api/authors/{known['author_id']}")
    assert (used.status_code, where(used)) == (409, [])


def wanted(book: requests.Response) -> dict[str, Any]:
    fields = ("isbn", "title", "genre", "author_id")
    return {name: book.json()[name] for name in fields}


# The OpenAPI document


@pytest.fixture(scope="module")
def document(server) -> dict[str, Any]:
    return server.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_the_document_is_valid(document):
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_does_not_depend_on_who_asks_first(send, document):
    assert send("GET", "/openapi.json", Host="evil.example").json() == document
    assert document["servers"] == [{"url": "/"}]


def test_every_operation_is_complete(document):
    names = []
    for method, _, operation in operations(document):
        names.append(operation["operationId"])
        assert operation["summary"]
        assert operation["tags"]
        answers = operation["responses"]
        assert {"400", "422", "500", "503"} <= answers.keys()
        assert ("requestBody" in operation) == ({"413", "415"} <= answers.keys())
        assert ("304" in answers) == (method == "get")
        assert ("409" in answers) == (method != "get")
        for status, answer in answers.items():
            assert answer["description"]
            if status >= "400":
                schema = {"$ref": "#/components/schemas/Problem"}
                assert answer["content"] == {PROBLEM: {"schema": schema}}
        if "requestBody" in operation:
            assert operation["requestBody"]["required"] is True
    assert len(names) == len(set(names))
    assert {"list_books", "get_author", "change_book", "find", "create_shelf"} <= set(names)
    assert {"get_books_get_book", "get_shelves_get_book", "get_shelves_row"} <= set(names)


def test_the_examples_are_valid(server, send, document):
    for method, path, operation in operations(document):
        if "/api/books" not in path and "/api/authors" not in path:
            continue
        content = operation.get("requestBody", {}).get("content", {})
        if method == "post":
            answer = send(method, path, content["application/json"]["example"])
            assert answer.status_code in (201, 409), answer.text
        for status in ("200", "201"):
            if status in operation["responses"]:
                assert "example" in operation["responses"][status]["content"]["application/json"]


def test_single_resources_say_that_they_have_versions(document):
    book = document["paths"]["/api/books/{book_id}"]
    assert "ETag" in book["get"]["responses"]["200"]["headers"]
    assert "ETag" in book["patch"]["responses"]["200"]["headers"]
    for method in ("patch", "delete"):
        assert "412" in book[method]["responses"]
        assert "If-Match" in book[method]["description"]
    created = document["paths"]["/api/books"]["post"]["responses"]["201"]
    assert created["headers"].keys() == {"ETag", "Location"}
    assert "412" not in document["paths"]["/api/shelves/rows/{row}"]["put"]["responses"]


def test_no_schema_is_there_twice(document):
    schemas = document["components"]["schemas"]
    assert {"Problem", "Genre", "BookOut", "ShelfIn", "Labels"} <= schemas.keys()
    texts = [json.dumps(schema, sort_keys=True) for schema in schemas.values()]
    assert len(texts) == len(set(texts))
    assert "default" not in schemas["BookChange"]["properties"]["title"]


def test_every_tag_is_described(document):
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert tags["Shelves"] == "/api/shelves: where books stand."
    assert {"Authors", "Books"} <= tags.keys()


def test_schemathesis_finds_nothing(server, tmp_path):
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    found = run(
        *[*command, "--checks", "all", "--seed", "1", "--max-examples", "15"],
        *["--no-color", "--exclude-path", "/api/shelves/labels"],
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stdout
    assert "No issues found" in found.stdout
