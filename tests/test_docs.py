"""Do to the letter, in a generated project, what README.md and docs/ tell people to do."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import TEMPLATE, Project, run

SUBTITLE = "    subtitle: Mapped[str | None] = mapped_column(String(300))"
EXAMPLE = re.compile(r"import (Author|Book|authors|books|AUTHORS|BOOKS)\b|/api/")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(file: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, as language and text."""
    return BLOCK.findall(file.read_text())


def shell(project: Project, script: str) -> str:
    result = project.run("sh", "-euc", script)
    assert result.returncode == 0, result.stdout
    return result.stdout


def put_into_book(project: Project, line: str) -> None:
    """Add the line to `class Book`, or replace the column of that name with it."""
    model = project.path / "app/models/books.py"
    name = line.split(":")[0].strip()
    if unused := re.search(r'__unused_columns__ = [(]"(.*?)"', line):
        name = unused[1]
    lines = [text for text in model.read_text().splitlines() if not text.startswith(f"    {name}:")]
    place = next(number for number, text in enumerate(lines) if "title:" in text)
    model.write_text("\n".join([*lines[: place + 1], line.rstrip(), *lines[place + 1 :], ""]))


def newest_revision(project: Project) -> Path:
    return max((project.path / "migrations/versions").glob("*.py"))


def test_every_command_of_the_migrations_page(ready: Project):
    """Run the commands and write the models in the order of the page."""
    project = ready
    parts = (project.path / "docs/migrations.md").read_text().split("\n## ")[1:]
    commands = 0
    for part in parts:
        for section in part.split("\n### "):
            versions = project.path / "migrations/versions"
            if section.startswith("Day to day"):
                put_into_book(project, SUBTITLE)
            for language, text in BLOCK.findall(section):
                if language == "python" and text.startswith("# app/"):
                    file = project.path / text.split("\n")[0].removeprefix("# ")
                    file.write_text(text.split("\n", 1)[1])
                    models = project.path / "app/models/__init__.py"
                    models.write_text(
                        models.read_text() + f"\nfrom app.models.{file.stem} import *  # noqa\n"
                    )
                elif language == "python" and "def upgrade" in text:
                    revision = newest_revision(project)
                    upgrade = re.compile(r"def upgrade.*?(?=def downgrade)", re.DOTALL)
                    body, count = upgrade.subn(
                        lambda _, text=text: text + "\n\n", revision.read_text()
                    )
                    assert count == 1
                    revision.write_text(body)
                elif language == "python":
                    put_into_book(project, text)
                elif language == "sh":
                    shell(project, text)
                    commands += 1
            if section.startswith("Day to day"):
                downgrade = re.search("`(uv run flask db downgrade)`", section)
                assert downgrade
                shell(project, downgrade[1])
                newest_revision(project).unlink()
            assert versions.exists()
    assert commands >= 9
    assert shell(project, "uv run flask db check")
    assert project.sql("SELECT DISTINCT pages, language FROM books") == "[(0, 'en')]"
    model = project.path / "app/models/books.py"
    model.write_text(re.sub("    __unused_columns__.*\n", "", model.read_text()))
    shell(project, "uv run flask db migrate -m 'drop pages' && uv run flask db upgrade")
    assert "drop_column('books', 'pages')" in newest_revision(project).read_text()
    shell(project, "uv run flask db check && uv run flask db lint base:head")
    shell(project, "uv run pytest -q tests/test_migrations.py")


def test_every_hazard_has_its_line():
    project = TEMPLATE / "{{cookiecutter.project_slug}}"
    code = ast.parse((project / "app/core/safety/hazards.py").read_text())
    (hazards,) = (
        [ast.literal_eval(key) for key in node.value.keys]
        for node in code.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HAZARDS"
    )
    page = (project / "docs/migrations.md").read_text()
    lines = re.findall(r"^\| `([\w-]+)` \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE)
    assert sorted(hazards) == sorted(lines)


def test_two_heads_are_joined_as_the_page_says(ready: Project):
    project = ready
    for name in ("one", "two"):
        shell(project, f"uv run flask db revision -m {name} --head 0001 --splice")
    refused = project.flask("db", "upgrade")
    assert refused.returncode == 1
    assert "several heads" in refused.stdout
    page = (project.path / "docs/migrations.md").read_text()
    command = re.search(r"^uv run flask db merge .*$", page, re.MULTILINE)
    assert command
    shell(project, command[0])
    shell(project, "uv run flask db upgrade")
    names = sorted(file.name for file in (project.path / "migrations/versions").glob("*.py"))
    assert names[-1].endswith("join_two_branches.py")
    shell(project, "uv run pytest -q tests/test_migrations.py")


def test_the_loops_of_the_readme(ready: Project):
    project = ready
    put_into_book(project, SUBTITLE)
    readme = (project.path / "README.md").read_text()
    scripts = [text for language, text in BLOCK.findall(readme) if language == "sh"]
    for script in scripts:
        if "init.sh" not in script and "docker" not in script and "pytest" not in script:
            shell(project, script)
    for command in re.findall(r"^\| `(uv run flask seed .*?)`", readme, re.MULTILINE):
        shell(project, command)
    (statement,) = re.findall(r"`(uv run flask db shell -c .*?)`", readme)
    assert re.search(r"\b4\b", shell(project, f"uv run flask seed all && {statement}"))
    (expression,) = re.findall(r"`(session\..*?)`", readme)
    assert "models.books.Book object" in shell(
        project, f"echo 'print({expression})' | uv run flask shell"
    )


def test_a_fresh_clone_starts_by_the_readme(project: Project, tmp_path):
    clone = Project(tmp_path / "clone")
    run("git", "clone", "--quiet", project.path, clone.path)
    readme = (clone.path / "README.md").read_text()
    first = next(text for language, text in BLOCK.findall(readme) if language == "sh")
    assert first == "uv sync\n./init.sh\n"
    shell(clone, "uv sync")
    with clone.serving() as server:
        assert server.get("/readyz").status_code == 200


def test_the_example_is_deleted_as_the_readme_says(ready: Project):
    project = ready
    for room in ("app/models", "app/routes", "app/seeds"):
        for noun in ("authors", "books"):
            (project.path / room / f"{noun}.py").unlink()
    for noun in ("authors", "books", "seeds"):
        (project.path / f"tests/test_{noun}.py").unlink()
    for room in ("models", "routes", "seeds"):
        file = project.path / f"app/{room}/__init__.py"
        lines = file.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not EXAMPLE.search(line)]
        text = "".join(kept).replace('"Author", ', "").replace('"Book", "Genre", ', "")
        file.write_text(text.replace(", authors, books]", "]").replace("[AUTHORS, BOOKS]", "[]"))
    readme = (project.path / "README.md").read_text()
    migrate = re.search(r"`(uv run flask db migrate .* --acknowledge .*)`", readme)
    assert migrate
    shell(project, f"{migrate[1]} && uv run flask db upgrade")
    shell(project, "uv run pytest -q && uv run mypy && uv run ruff check")
    with project.serving(until="/readyz") as server:
        assert server.get("/").status_code == 200


def test_the_tree_in_the_readme_is_the_tree(generated: Path):
    tree = (TEMPLATE / "README.md").read_text().split("```")[5]
    for name in re.findall(r"── ([\w./]+)", tree):
        places = [name, f"app/{name}", f"app/core/{name}"]
        assert any(list(generated.glob(place)) for place in places), name


@pytest.mark.browser
def test_the_pages_in_a_browser(project: Project, tmp_path):
    """They are complete, and the browser has no objection: see app/core/headers.py."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    # No name resolves, so the page must get everything from the service.
    options += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path / 'profile'}"]
    pages = []
    with project.serving() as server:
        for path in ("/", "/docs"):
            result = subprocess.run(
                [chromium, *options, server.url + path], capture_output=True, text=True, timeout=300
            )
            assert "CONSOLE" not in result.stderr, result.stderr
            pages.append(result.stdout)
    first, page = pages
    assert "Revision" in first
    for words in ("Book Service", "/api/books", "Create an author"):
        assert words in page
