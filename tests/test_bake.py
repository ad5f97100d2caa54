"""What comes out for each answer: files, syntax, no leftover of the template."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import QUESTIONS, TEMPLATE, Project, files, generate, run

FILES = """
.dockerignore .editorconfig .env .env.example .flaskenv .gitattributes .gitignore
Dockerfile LICENSE README.md compose.yaml gunicorn.conf.py init.sh pyproject.toml
app/__init__.py app/config.py app/templates/home.html
app/core/__init__.py app/core/api.py app/core/autogenerate.py app/core/backfill.py
app/core/catalog.py app/core/commands.py app/core/database.py app/core/doctor.py
app/core/dry_run.py app/core/embedded.py app/core/errors.py app/core/hazards.py
app/core/history.py app/core/lint.py app/core/logs.py app/core/migrations.py
app/core/safe_forms.py app/core/seeding.py app/core/sql.py
app/core/alembic/alembic.ini.mako app/core/alembic/env.py app/core/alembic/script.py.mako
app/models/__init__.py app/models/authors.py app/models/base.py app/models/books.py
app/routes/__init__.py app/routes/authors.py app/routes/books.py app/routes/health.py
app/routes/home.py
app/seeds/__init__.py app/seeds/authors.py app/seeds/books.py
docs/deploying.md docs/migrations.md docs/recovery.md docs/upgrading.md
tests/conftest.py tests/test_authors.py tests/test_books.py tests/test_config.py
tests/test_errors.py tests/test_health.py tests/test_lint.py tests/test_migrations.py
tests/test_seeds.py
"""

INSTALLED = """
uv.lock
migrations/alembic.ini migrations/env.py migrations/script.py.mako
migrations/versions/0001_initial.py
"""

# Every answer that differs from the default, and the files in which it must show.
ANSWERS = [
    ("project_name", "Order Desk", {"README.md", "pyproject.toml"}),
    ("description", "It takes orders.", {"README.md", "pyproject.toml"}),
    ("author_name", "Ada", {"LICENSE", "pyproject.toml"}),
    ("db_schema", "orders", {".env.example", ".flaskenv", "docs/deploying.md"}),
    ("postgres_version", "17", {"README.md", "compose.yaml"}),
    ("postgres_version", "16", {"README.md", "compose.yaml"}),
    ("python_version", "3.12", {"Dockerfile"}),
    ("python_version", "3.14", {"Dockerfile"}),
    ("license", "BSD-3-Clause", {"LICENSE", "README.md", "pyproject.toml"}),
    ("license", "Apache-2.0", {"LICENSE", "README.md", "pyproject.toml"}),
    ("license", "Proprietary", {"LICENSE", "README.md", "pyproject.toml"}),
]


def bake(cookies, **answers) -> Path:
    result = cookies.bake(extra_context={"install": False, **answers})
    assert result.exit_code == 0, result.exception
    return result.project_path


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("default")
    result = generate(folder, "install=false")
    assert result.returncode == 0, result.stdout
    return files(folder / "book-service")


def test_the_exact_list_of_files(default):
    assert set(default) == set(FILES.split())


def test_the_exact_list_of_files_when_installed(generated):
    found = {name for name in files(generated) if "__pycache__" not in name}
    assert found == set(FILES.split()) | set(INSTALLED.split())


@pytest.mark.parametrize(("question", "answer", "shows_in"), ANSWERS)
def test_an_answer_shows_where_it_should(cookies, default, question, answer, shows_in):
    baked = files(bake(cookies, **{question: answer, "project_slug": "book-service"}))
    changed = {
        name for name in default.keys() | baked.keys() if default.get(name) != baked.get(name)
    }
    assert changed == shows_in | {".env"}


def test_every_question_is_asked_for_a_reason():
    asked = [name for name in QUESTIONS if not name.startswith("_")]
    assert len(asked) <= 9
    assert set(QUESTIONS["__prompts__"]) == set(asked)
    tested = {question for question, _, _ in ANSWERS} | {"project_slug", "install"}
    assert tested == set(asked)
    for name in ("postgres_version", "python_version", "license"):
        others = {answer for question, answer, _ in ANSWERS if question == name}
        assert others == set(QUESTIONS[name][1:])


@pytest.mark.parametrize("answers", [{}] + [{question: answer} for question, answer, _ in ANSWERS])
def test_every_file_parses_and_no_tag_is_left(cookies, answers):
    folder = bake(cookies, **answers)
    for name, content in files(folder).items():
        text = content.decode()
        assert "cookiecutter." not in text, name
        assert text.endswith("\n"), name
        if name != "app/templates/home.html":
            assert not re.search(r"{%|%}|{{ ", text), name
        match Path(name).suffix:
            case ".py":
                ast.parse(text, name)
            case ".toml":
                tomllib.loads(text)
            case ".yaml":
                yaml.safe_load(text)
            case ".sh":
                subprocess.run(["sh", "-n", folder / name], check=True)
    assert (folder / "init.sh").stat().st_mode & 0o111
    assert run("ruff", "check", "--no-cache", ".", cwd=folder).returncode == 0
    assert run("ruff", "format", "--no-cache", "--check", ".", cwd=folder).returncode == 0


def test_python_stays_python():
    for file in (TEMPLATE / "{{cookiecutter.project_slug}}").rglob("*.py"):
        assert not re.search("{%|{{", file.read_text()), file


def test_two_generations_are_the_same_but_for_env(generated, tmp_path):
    assert generate(tmp_path).returncode == 0
    first, second = files(generated), files(tmp_path / "book-service")
    assert first.pop(".env") != second.pop(".env")
    assert first == second


def test_types_and_lint_are_clean_in_a_generated_project(project: Project):
    for tool in (["mypy"], ["ruff", "check"], ["ruff", "format", "--check"]):
        result = project.run(project.python, "-m", *tool)
        assert result.returncode == 0, result.stdout


def test_the_templates_own_code_is_clean():
    for words in (["check"], ["format", "--check"]):
        result = run("ruff", *words, "--no-cache", ".", cwd=TEMPLATE)
        assert result.returncode == 0, result.stdout
