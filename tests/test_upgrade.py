"""Projects from every release move to the newest version with the commands of docs/upgrading.md."""

import hashlib
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import COOKIECUTTER, QUESTIONS, TEMPLATE, Project, commit, copy_template, files, run

CRUFT = [sys.executable, "-m", "cruft"]
RELEASES = sorted(
    (TEMPLATE / "tests/releases").glob("*.tar.gz"),
    key=lambda archive: [int(number) for number in re.findall(r"\d+", archive.name)],
)
VERSIONS = [archive.name.removesuffix(".tar.gz") for archive in RELEASES]
NEWEST = "99.0.0"  # the version of the next release, were it made now
NEW_FILES = {
    "app/models/orders.py": """
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
""",
    "app/routes/orders.py": """
from apiflask import APIBlueprint

from app.core.errors import NotPaidError

orders = APIBlueprint("orders", __name__)


@orders.get("/api/orders")
def count() -> dict[str, int]:
    return {"total": 0}


@orders.get("/api/orders/<int:number>")
def show(number: int) -> dict[str, int]:
    raise NotPaidError(f"Order {number} is not paid.")
""",
    "tests/test_orders.py": """
from flask.testing import FlaskClient, FlaskCliRunner


def test_orders(client: FlaskClient) -> None:
    assert client.get("/api/orders").json == {"total": 0}


def test_an_order_that_nobody_paid(client: FlaskClient) -> None:
    response = client.get("/api/orders/1")
    assert (response.status_code, response.mimetype) == (402, "application/problem+json")


def test_the_own_command(cli: FlaskCliRunner) -> None:
    assert cli.invoke(args=["greet"]).output == "hello\\n"
""",
}
# What a team adds to files of the template: the line of the template before it, and its own lines;
# without a line before it, at the end.
ADDITIONS = {
    "app/core/errors.py": [
        (
            "    app.register_error_handler(RecursionError, _nested_too_deeply)\n",
            "    app.register_error_handler(NotPaidError, _not_paid)\n",
        ),
        (
            'MEDIA_TYPE = "application/problem+json"\n',
            '\n\nclass NotPaidError(Exception):\n    """First the money."""\n\n',
        ),
        (
            '    return _problem(400, "The body is nested too deeply.")\n',
            "\n\ndef _not_paid(error: NotPaidError) -> Response:\n"
            "    return _problem(402, str(error))\n",
        ),
    ],
    "app/core/commands.py": [
        (
            '    app.cli.command("prepare")(prepare)\n',
            '    app.cli.command("greet")(greet)\n',
        ),
        (
            "",
            '\n\ndef greet() -> None:\n    """Say hello."""\n    click.echo("hello")\n',
        ),
    ],
    # Before 0.3.0 a module; since then a package has its name.
    "app/core/migrations.py": [("ATTEMPTS = 12\n", "# Ours: more patience.\n")],
    ".flaskenv": [("SCHEMA=books\n", "\n# Ours\nFEATURES=none\n")],
    "pyproject.toml": [
        ('    "structlog>=25",\n', '    "click>=8",\n'),
        ('"SIM", "UP", "W"]\n', 'exclude = ["scripts"]\n'),
    ],
}
FILL = """
from app.core.backfill import backfill


def upgrade() -> None:
    backfill("books", "title = 'none'", where="title = ''")


def downgrade() -> None:
    pass
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the template: its tags are the releases, its head is the current state."""
    folder = tmp_path_factory.mktemp("template") / "repository"
    for archive, version in zip(RELEASES, VERSIONS, strict=True):
        with tarfile.open(archive) as tree:
            tree.extractall(folder, filter="data")
        commit(folder, version)
        assert run("git", "tag", f"v{version}", cwd=folder).returncode == 0
        clear(folder)
    copy_template(folder)
    questions = folder / "cookiecutter.json"
    questions.write_text(questions.read_text().replace(QUESTIONS["_version"], NEWEST))
    commit(folder, "newest")
    return folder


def clear(folder: Path) -> None:
    for part in folder.iterdir():
        if part.is_dir() and part.name != ".git":
            shutil.rmtree(part)
        elif part.is_file():
            part.unlink()


def create(repository: Path, folder: Path, checkout: str, **answers: object) -> Project:
    """`cruft create` with that version of the template."""
    created = run(
        *[*CRUFT, "create", repository, "--default-config", "--no-input", "--output-dir", folder],
        *["--checkout", checkout, "--extra-context", json.dumps(answers)],
    )
    assert created.returncode == 0, created.stdout
    assert "not done" not in created.stdout, created.stdout
    return Project(folder / "book-service")


def lived_in(project: Project) -> dict[str, list[tuple[str, str]]]:
    """Do what a team does: new files, changed lines, settings.

    Return the additions to files that this version has.
    """
    for name, text in NEW_FILES.items():
        (project.path / name).write_text(text.lstrip())
    models = project.path / "app/models/__init__.py"
    text = models.read_text().replace(
        "\n__all__ = [", "from app.models.orders import Order\n\n__all__ = ["
    )
    models.write_text(text.replace('"db"', '"Order", "db"'))
    routes = project.path / "app/routes/__init__.py"
    text = routes.read_text().replace(
        "\nBLUEPRINTS", "from app.routes.orders import orders\n\nBLUEPRINTS"
    )
    routes.write_text(text.replace("authors, books]", "authors, books, orders]"))
    readme = project.path / "README.md"
    text = readme.read_text().replace("# Book Service", "# Our books", 1)
    readme.write_text(text + "\n## Who we are\n\nThree people.\n")
    with (project.path / ".env").open("a") as env:
        env.write("LOG_LEVEL=WARNING\n")
    (project.path / "docs/deploying.md").unlink()
    made = {name: each for name, each in ADDITIONS.items() if (project.path / name).exists()}
    for name, additions in made.items():
        file = project.path / name
        text = file.read_text()
        for before, ours in additions:
            assert not before or text.count(before) == 1, before
            text = text.replace(before, before + ours) if before else text + ours
        file.write_text(text)
    return made


def migrated(project: Project) -> None:
    """Write migrations, one by hand, and plant rows."""
    for words in (["migrate", "-m", "orders"], ["revision", "-m", "fill"]):
        result = project.flask("db", *words)
        assert result.returncode == 0, result.stdout
        project.flask("db", "upgrade")
    (file,) = (project.path / "migrations/versions").glob("*_fill.py")
    file.write_text(file.read_text().split("\n\ndef upgrade")[0] + "\n" + FILL)
    for words in (["db", "upgrade"], ["seed", "all"]):
        result = project.flask(*words)
        assert result.returncode == 0, result.stdout


def untouched(project: Project) -> dict[str, str]:
    """Hashes of what an update must leave as it is, by path."""
    parts = [project.path / name for name in (".env", ".venv", "migrations", "uv.lock")]
    found = [file for part in parts for file in ([part] if part.is_file() else part.rglob("*"))]
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in found
        if file.is_file() and "__pycache__" not in file.parts
    }


def update(project: Project) -> None:
    """Run the first command of docs/upgrading.md, with cruft from this environment."""
    before = untouched(project)
    # PWD as a shell sets it.
    result = project.run(*CRUFT, "update", "--skip-apply-ask", PWD=str(project.path))
    assert result.returncode == 0, result.stdout
    assert not re.search("conflict|Failed", result.stdout), result.stdout
    assert untouched(project) == before
    changed = project.run("git", "status", "--porcelain").stdout.splitlines()
    assert changed
    assert not [line for line in changed if line.startswith(("U", "AA", "??"))], changed
    commit(project.path, "updated")


def tracked(project: Project) -> set[str]:
    """The files in git that an update may add, change or remove."""
    names = project.run("git", "ls-files").stdout.splitlines()
    return {name for name in names if not name.startswith(("migrations/", "uv.lock", ".cruft"))}


def commands_of_the_page(project: Project) -> list[str]:
    page = (project.path / "docs/upgrading.md").read_text()
    block = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert block
    return block[1].splitlines()


def is_newest(project: Project) -> None:
    for name in ("README.md", "pyproject.toml"):
        assert f"cookiecutter-flask-postgres {NEWEST}" in (project.path / name).read_text(), name
    recorded = json.loads((project.path / ".cruft.json").read_text())["context"]["cookiecutter"]
    assert recorded["_version"] == NEWEST
    again = project.run(*CRUFT, "update", "--skip-apply-ask")
    assert "up to date" in again.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_update_of_a_project_that_was_lived_in(repository, tmp_path, version):
    answers = {"description": "Our {{ 'own' }} books", "db_schema": "books"}
    # An installation takes long: with one the oldest and the newest release, else files alone.
    installed = version in (VERSIONS[0], VERSIONS[-1])
    project = create(repository, tmp_path, f"v{version}", install=installed, **answers)
    additions_made = lived_in(project)
    if installed:
        migrated(project)
    commit(project.path, "ours")
    update(project)
    first, *others = commands_of_the_page(project)
    assert first == "uvx cruft update --skip-apply-ask"
    for command in others if installed else ():
        result = project.run("sh", "-euc", command)
        assert result.returncode == 0, f"{command}\n{result.stdout}"
    commit(project.path, "installed")

    is_newest(project)
    readme = (project.path / "README.md").read_text()
    assert readme.startswith("# Our books\n\nOur own books\n")
    assert readme.endswith("Three people.\n")
    assert not (project.path / "docs/deploying.md").exists()
    assert (project.path / ".github/workflows/ci.yml").exists()
    for name, additions in additions_made.items():
        file = project.path / name
        kept = file if file.exists() else file.with_name(f"{file.name}.ours")
        assert all(ours in kept.read_text() for _, ours in additions), name
    newest = create(repository, tmp_path / "newest", "HEAD", install=False, **answers)
    own = {*NEW_FILES, "app/core/migrations.py.ours"}
    assert tracked(project) - own == tracked(newest) - {"docs/deploying.md"}
    if not installed:
        return

    assert project.sql("SELECT count(*) FROM orders") == "[(0,)]"
    for words in (["db", "upgrade"], ["db", "check"], ["db", "lint", "base:head"]):
        result = project.flask(*words)
        assert result.returncode == 0, result.stdout
    for tool in (["mypy"], ["ruff", "check"]):
        result = project.run(project.python, "-m", *tool)
        assert result.returncode == 0, result.stdout


def test_a_project_of_cookiecutter_is_linked(repository, tmp_path):
    version = VERSIONS[-1]
    generated = run(
        *[*COOKIECUTTER[:-1], f"git+file://{repository}", "--checkout", f"v{version}"],
        *["--no-input", "--default-config", "--output-dir", tmp_path, "install=no"],
        HOME=str(tmp_path),
    )
    assert generated.returncode == 0, generated.stdout
    project = Project(tmp_path / "book-service")
    linked = project.run(
        *[*CRUFT, "link", repository, "--checkout", f"v{version}", "--no-input"],
        *["--default-config", "--extra-context", '{"install": false}'],
    )
    assert linked.returncode == 0, linked.stdout
    commit(project.path, "linked")
    result = project.run(*CRUFT, "update", "--skip-apply-ask")
    assert result.returncode == 0, result.stdout
    commit(project.path, "updated")
    is_newest(project)


def test_conflicts_are_marked(repository, tmp_path):
    """A line that both sides changed is left to the reader, and nothing is committed."""
    project = create(repository, tmp_path, f"v{VERSIONS[-1]}", install=False)
    file = project.path / "pyproject.toml"
    file.write_text(re.sub("^template = .*", 'template = "ours"', file.read_text(), flags=re.M))
    commit(project.path, "ours")
    project.run(*CRUFT, "update", "--skip-apply-ask")
    assert "UU pyproject.toml" in project.run("git", "status", "--porcelain").stdout
    assert 'template = "ours"' in file.read_text()
    assert project.run("git", "log", "--format=%s").stdout.splitlines()[0] == "ours"


def test_a_shallow_clone_is_merged_too(repository, tmp_path):
    """The hook gives git the base to merge from; changes to neighbouring lines do not conflict."""
    project = create(repository, tmp_path, "HEAD", install=False)
    file = project.path / "pyproject.toml"
    file.write_text(file.read_text().replace('title = "Book Service"', 'title = "Ours"'))
    commit(project.path, "ours")
    later = tmp_path / "later"
    run("git", "clone", "--quiet", repository, later)
    questions = later / "cookiecutter.json"
    questions.write_text(questions.read_text().replace(NEWEST, "99.0.1"))
    commit(later, "later")

    clone = Project(tmp_path / "clone")
    run("git", "clone", "--quiet", "--depth", "1", f"file://{project.path}", clone.path)
    state = clone.path / ".cruft.json"
    state.write_text(state.read_text().replace(str(repository), str(later)))
    commit(clone.path, "from later on")
    update(clone)
    text = (clone.path / "pyproject.toml").read_text()
    assert 'title = "Ours"' in text
    assert 'template = "cookiecutter-flask-postgres 99.0.1"' in text


def test_every_release_has_its_tree():
    """`make release` makes it, so that updates can be tested even where there are no tags."""
    tags = run("git", "tag", "--list", "v*", cwd=TEMPLATE).stdout.split()
    assert {tag.removeprefix("v") for tag in tags} <= set(VERSIONS)
    changelog = (TEMPLATE / "CHANGELOG.md").read_text()
    released = re.findall(r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$", changelog, re.MULTILINE)
    assert set(released) == set(VERSIONS)
    assert re.search(rf"^## {re.escape(QUESTIONS['_version'])} \(", changelog, re.MULTILINE)


def test_a_released_version_does_not_change(tmp_path):
    """After a release, any change needs the next version in cookiecutter.json."""
    archive = TEMPLATE / f"tests/releases/{QUESTIONS['_version']}.tar.gz"
    if not archive.exists():
        pytest.skip("this version is not released")
    with tarfile.open(archive) as tree:
        tree.extractall(tmp_path / "released", filter="data")
    copy_template(tmp_path / "now")
    assert files(tmp_path / "now") == files(tmp_path / "released")
