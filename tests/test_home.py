"""The first page of a real service: in every state of its database, and in a real browser."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from chromium import PROGRAM, Page, browsing
from conftest import Project, Server, copy_project, save_until, wait_until
from production import Database, frozen, processes, running

ROUTES = """
from apiflask import APIBlueprint

many = APIBlueprint("many", __name__)

for number in range(200):
    many.add_url_rule(f"/many/{number:03}/<int:item>", f"many{number}", lambda item: {})
many.add_url_rule("/many/<b>", "odd", lambda b: {})
many.add_url_rule("/many/a b", "space", lambda: {"it": "works"})
"""
# The least contrast of a text with what is behind it, and the text.
CONTRAST = """
(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number)
  const light = color => {
    const [r, g, b] = numbers(color).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = element => {
    while (element && (numbers(getComputedStyle(element).backgroundColor)[3] ?? 1) === 0)
      element = element.parentElement
    return element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)"
  }
  let least = [99, ""]
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort()
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)
    if (ratio < least[0]) least = [ratio, element.textContent.trim()]
  }
  return least
})()
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
FOCUS = """
(() => {
  const box = document.activeElement.getBoundingClientRect()
  const seen = box.left >= 0 && box.top >= 0 && box.bottom <= innerHeight
  const outline = getComputedStyle(document.activeElement).outlineStyle
  return [document.activeElement.textContent, seen && outline !== "none"]
})()
"""


@pytest.fixture(scope="module")
def home(generated: Path, seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that is migrated and seeded, with 200 more routes."""
    project = copy_project(generated, tmp_path_factory.mktemp("home") / "book-service")
    shutil.copytree(seeded, project.path / ".postgres")
    (project.path / "app/routes/many.py").write_text(ROUTES)
    file = project.path / "app/routes/__init__.py"
    routes = file.read_text().replace("books]", "books, many]")
    file.write_text("from app.routes.many import many\n" + routes)
    return project


@pytest.fixture(scope="module")
def database(home: Project) -> Iterator[Database]:
    with running(home) as database:
        yield database


def words(server: Server) -> str:
    """What a person reads on the page."""
    response = server.get("/")
    assert response.status_code == 200
    return " ".join(unescape(re.sub("<[^>]*>", " ", response.text)).split())


def pasted(server: Server) -> list[str]:
    """The commands that the page gives."""
    return [unescape(each) for each in re.findall("<pre>(.*?)</pre>", server.get("/").text, re.S)]


def test_every_state_of_the_database(home: Project, database: Database):
    database.sql(
        "CREATE ROLE app LOGIN",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO app",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app",
        "CREATE TABLE visits AS SELECT n FROM generate_series(1, 12345) AS n",
        "CREATE TABLE secret AS SELECT 1 AS n",
        "GRANT SELECT ON visits TO app",
        "ANALYZE",
    )
    service = {
        "DATABASE_URL": database.url.replace("postgres@", "app@"),
        "WEB_CONCURRENCY": "1",
        "RUN_MIGRATIONS": "0",
        "RUN_SEEDS": "0",
    }
    with home.serving(until="/healthz", **service) as server:
        cannot = (
            "Not known: The models cannot be built in a dry run: a dry run works in a schema of"
        )
        wait_until(lambda: cannot in words(server), "the comparison has been tried")
        page = words(server)
        assert "CREATE SCHEMA public_dry_run AUTHORIZATION app;" in page
        for each in (
            "Ready Database and code are at the same revision.",
            "Server PostgreSQL 18",
            "Role app",
            "authors 4 rows ",
            "visits about 12,345 rows, no model",
            "secret this role may not read it, no model",
            "books 4 of 4 rows in app/seeds/books.py",
            "/api/books/<int:book_id> DELETE GET PATCH",
        ):
            assert each in page
        assert "alembic_version" not in page
        assert pasted(server) == []

        with database.holding("LOCK TABLE books"):
            page = words(server)
            assert "books about 4 rows (locked)" in page
            assert "authors 4 rows " in page
        database.sql("DELETE FROM books WHERE seeded")
        assert "books 0 of 4 rows" in words(server)
        assert pasted(server) == ["uv run flask seed all"]

        database.sql("REVOKE ALL ON books FROM app")
        assert "Not ready Role app lacks SELECT, INSERT, UPDATE, DELETE on table" in words(server)
        assert "Revision not known" in words(server)
        (grant,) = pasted(server)
        database.sql(grant)
        assert "Not ready" not in words(server)

        database.sql("UPDATE alembic_version SET version_num = 'later'")
        page = words(server)
        assert "Ready The database is ahead of the code." in page
        assert "None that this code knows of." in page
        database.sql("DELETE FROM alembic_version")
        page = words(server)
        assert "Not ready The database is behind the code." in page
        assert "1 revision to apply. 0001 initial" in page
        assert pasted(server)[0] == "uv run flask db upgrade"
        database.sql(
            "INSERT INTO alembic_version VALUES ('0001')", "ALTER SCHEMA public RENAME TO x"
        )
        assert "Schema public, which does not exist yet, is at revision none" in words(server)
        assert "books not in the database yet" in words(server)
        database.sql("ALTER SCHEMA x RENAME TO public")

        broken = home.path / "migrations/versions/0002_broken.py"
        broken.write_text("def (")
        assert "The revision files cannot be read." in words(server)
        broken.unlink()
        with frozen(home):
            page = words(server)
            assert "Not ready The database does not answer" in page
            assert "Tables Not known: the database does not answer." in page
            assert "/api/books" in page
        assert "Not ready" not in words(server)
    database.sql("DROP TABLE visits, secret", "DROP OWNED BY app", "DROP ROLE app")


def test_a_model_that_has_changed(ready: Project):
    """In development, whose own database also comes back after a crash."""
    model = ready.path / "app/models/books.py"
    title = "    title: Mapped[str]"
    changed = model.read_text().replace(title, f"    subtitle: Mapped[str | None]\n{title}")
    with ready.serving(WEB_CONCURRENCY="1") as server:
        agree = "None: models, revisions and database agree."
        wait_until(lambda: agree in words(server), "they are compared")
        seen = "The models have changed, and no revision says so yet."
        save_until(model, changed, lambda: seen in words(server), "the change is seen")
        wait_until(lambda: "books.subtitle" in words(server), "it is named")
        assert pasted(server)[-1].startswith("uv run flask db migrate -m ")
        for pid in processes(ready):
            os.kill(pid, signal.SIGKILL)
        words(server)
        wait_until(lambda: seen in words(server), "the database is back")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    if PROGRAM is None:
        pytest.skip("Chromium is not installed")
    with browsing(tmp_path / "profile") as page:
        yield page


def look_closely(page: Page, url: str) -> None:
    """In both colours and three widths: all can be read, and the browser has no objection."""
    page.open(url)
    for scheme in ("light", "dark"):
        for width in (320, 360, 1200):
            page.look(width, 800, scheme)
            ratio, text = page.value(CONTRAST)
            assert ratio >= 4.5, f"{scheme}: {text}"
            assert page.value(OVERFLOW) <= 0, f"{width} pixels"
    assert page.complaints() == []
    assert all(each.startswith((url, "data:")) for each in page.requests())


@pytest.mark.browser
def test_in_a_browser(home: Project, database: Database, page: Page):
    names = [f"table_{number}_{'x' * 40}" for number in range(200)] + ['"<b>alert(1)</b>"']
    database.sql(*(f"CREATE TABLE {name} ()" for name in names))
    settings = {"RUN_SEEDS": "0", "RUN_MIGRATIONS": "0", "DATABASE_URL": database.url}
    with home.serving(until="/healthz", **settings) as server:
        url = f"{server.url}/"
        look_closely(page, url)
        tables = page.value("document.querySelectorAll('#tables li').length")
        assert tables == len(names) + 2
        headings = page.value("[...document.querySelectorAll('h1, h2')].map(h => h.tagName)")
        assert headings == ["H1"] + ["H2"] * 6

        page.press("Tab")
        assert page.value(FOCUS) == ["Skip to the state of the service", True]
        links = page.value("[...document.querySelectorAll('a')].map(a => a.textContent)")
        for link in links[1:]:
            page.press("Tab")
            assert page.value(FOCUS) == [link, True]
        page.press("Tab")
        assert page.value("document.activeElement === document.body")
        page.value("document.querySelector('nav a:last-child').focus()")
        page.press("Enter")
        page.wait("location.hash === '#routes'")
        page.value("[...document.querySelectorAll('a')].find(a => a.text === '/many/a b').focus()")
        page.press("Enter")
        page.wait("document.body.textContent.includes('works')")

        database.sql("DELETE FROM alembic_version")
        look_closely(page, url)
        database.sql("INSERT INTO alembic_version VALUES ('0001')")
    database.sql(*(f"DROP TABLE {name}" for name in names))
    with (
        home.in_production() as production,
        home.serving(until="/readyz", SHOW_PAGES="true", **production) as server,
    ):
        look_closely(page, f"{server.url}/")
        assert page.value("document.body.innerText.trim()") == "Book Service\nReady"
