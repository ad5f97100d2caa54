"""No answer breaks a generation: it arrives as data, or is refused with a better one."""

import ast
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from conftest import (
    COOKIECUTTER,
    DEFAULTS,
    FREE_TEXT,
    QUESTIONS,
    TEMPLATE,
    TYPED,
    Project,
    commit,
    copy_template,
    corrected_command,
    files,
    generate,
    replay,
    run,
)
from cookiecutter.environment import StrictEnvironment
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import FileSystemLoader
from markdown_it import MarkdownIt
from markupsafe import Markup

SHOWN_IN = [".choices/LICENSE-BSD-3-Clause", ".choices/LICENSE-MIT", "README.md", "pyproject.toml"]

HOOKS = ["post_gen_project.py", "pre_gen_project.py"]

# What a person could type: no NUL, no half characters.
TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
        st.sampled_from("{}%#\"'\\`$<\n"),
    ),
    min_size=1,
    max_size=200,
).filter(str.strip)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def render():
    """Render as Cookiecutter does, but only the files that show free text, and in memory."""
    folder = TEMPLATE / "{{cookiecutter.project_slug}}"
    environment = StrictEnvironment(
        context={"cookiecutter": QUESTIONS},
        keep_trailing_newline=True,
        loader=FileSystemLoader([folder, TEMPLATE / "hooks"]),
    )
    templates = {name: environment.get_template(name) for name in [*SHOWN_IN, *HOOKS]}

    def render(**answers: str) -> dict[str, str]:
        context = {"cookiecutter": {**DEFAULTS, **answers}}
        return {name: template.render(**context) for name, template in templates.items()}

    return render


def test_free_text_is_shown_in_these_files_only():
    folder = TEMPLATE / "{{cookiecutter.project_slug}}"
    questions = re.compile(r"cookiecutter\.(" + "|".join(FREE_TEXT) + r")\b")
    shown = [name for name, content in files(folder).items() if questions.search(content.decode())]
    assert sorted(shown) == SHOWN_IN


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(name=TEXT, description=TEXT, author=TEXT)
@example(*["{{ cookiecutter }}"] * 3)
def test_free_text_is_data_in_every_file(render, name, description, author):
    answers = dict(zip(FREE_TEXT, (name, description, author), strict=True))
    rendered = render(**answers)

    project = tomllib.loads(rendered["pyproject.toml"])
    lines = description.replace("\r\n", "\n").replace("\r", "\n")
    assert project["tool"]["service"]["title"] == name
    assert project["project"]["description"] == lines
    assert project["project"]["authors"] == [{"name": one_line(author)}]

    tokens = MarkdownIt().parse(rendered["README.md"])
    heading, paragraph = [token for token in tokens if token.type == "inline"][:2]
    for token, text in ((heading, name), (paragraph, description)):
        assert {child.type for child in token.children} <= {"text", "text_special"}
        assert "".join(child.content for child in token.children) == one_line(text).replace(
            "\x00", "\ufffd"
        )

    for license in SHOWN_IN[:2]:
        assert one_line(author) in rendered[license].splitlines()[2] or "\n" in author
    for hook in HOOKS:
        calls = [
            node for node in ast.walk(ast.parse(rendered[hook])) if isinstance(node, ast.Assign)
        ]
        passed = next(node.value.args[0].value for node in calls if node.targets[0].id == "ANSWERS")
        assert json.loads(passed) == {**DEFAULTS, **answers}


@settings(max_examples=12, deadline=None, database=None, derandomize=True)
@given(name=TEXT, description=TEXT, author=TEXT)
def test_any_text_passes_the_hooks(name, description, author):
    """Text without a visible character is refused; any other gives a whole, committed project."""
    answers = dict(zip(FREE_TEXT, (name, description, author), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        result = replay(Path(folder), **answers)
        project = Path(folder, "out/book-service")
        if result.returncode:
            refused = re.findall(r"  (\w+) is .*\n    It must not be empty", result.stdout)
            assert refused, result.stdout
            assert not any(re.search(r"\w", str(answers[question])) for question in refused)
            assert not project.exists()
        else:
            written = tomllib.loads((project / "pyproject.toml").read_text())
            assert written["tool"]["service"]["title"] == name
            assert run("git", "status", "--short", cwd=project).stdout == ""
            assert run("git", "log", cwd=project).returncode == 0


# Runs in the project's own environment: what its first page and its API say about it.
PAGES = """
import json
from app import create_app

client = create_app().test_client()
print(json.dumps([client.get("/").text, client.get("/openapi.json").json["info"]]))
"""


@pytest.mark.parametrize("text", TYPED)
def test_typed_text_comes_out_as_it_was(generated, tmp_path, text):
    result = replay(tmp_path, project_slug="typed", **dict.fromkeys(FREE_TEXT, text))
    assert result.returncode == 0, result.stdout
    project = Project(tmp_path / "out/typed")
    assert one_line(text) in " ".join((project.path / "LICENSE").read_text().split())
    for words in (["check"], ["format", "--check"]):
        linted = project.run("ruff", *words, "--no-cache")
        assert linted.returncode == 0, linted.stdout
    (project.path / ".venv").symlink_to(generated / ".venv")
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    shown = project.run(project.python, "-c", PAGES, DATABASE_URL=nowhere, LOG_LEVEL="ERROR")
    assert shown.returncode == 0, shown.stdout
    page, info = json.loads(shown.stdout.splitlines()[-1])
    assert info["title"] == text
    assert info["description"] == text.replace("\r\n", "\n")
    assert f"<h1>{Markup.escape(text)}</h1>" in page
    assert f"<p>{Markup.escape(info['description'])}</p>" in page


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("2048", "service-2048"),
        ("🎉", "service"),
        ("Ünïcode  Näme", "unicode-name"),
        ("x" * 90, "x" * 55),
    ],
)
def test_a_slug_is_made_of_any_name(cookies, name, slug):
    result = cookies.bake(extra_context={"project_name": name, "install": False})
    assert result.project_path.name == slug


REFUSED = [
    ("project_slug", "My Service", "my-service"),
    ("project_slug", "1st", "service-1st"),
    ("project_slug", "a--b", "a-b"),
    ("project_slug", "../up", "up"),
    ("project_slug", "$(id)", "id"),
    ("project_slug", "", "service"),
    ("project_slug", "x" * 64, "x" * 55),
    ("project_slug", "class", "class-service"),
    ("project_slug", "none", "none-service"),
    ("project_slug", "email", "email-service"),
    ("project_slug", "flask", "flask-service"),
    ("project_slug", "flask-sqlalchemy", "flask-sqlalchemy-service"),
    ("project_slug", "typing_extensions", "typing-extensions-service"),
    ("project_slug", "app", "app-service"),
    ("project_slug", "tests", "tests-service"),
    ("project_slug", "migrations", "migrations-service"),
    ("project_slug", "con", "con-service"),
    ("db_schema", "Orders", "orders"),
    ("db_schema", "pg_orders", "orders"),
    ("db_schema", "pg_", "pg"),
    ("db_schema", "information_schema", "service_information_schema"),
    ("db_schema", "order-items", "order_items"),
    ("db_schema", "x" * 64, "x" * 55),
    ("db_schema", "", "service"),
    ("postgres_version", "12", "18"),
    ("python_version", "2.7", "3.13"),
    ("license", "WTFPL", "MIT"),
    ("deploy", "Netlify", "Docker"),
    ("project_name", " ", "Book Service"),
    ("description", "\n", "A Flask and PostgreSQL service."),
    ("author_name", None, "The team"),
    ("author_name", "A\0da", "Ada"),
    ("author_name", "\0" * 1001, "The team"),
    ("author_name", "\u202e\u200b", "The team"),
    ("author_name", "A\udcffda", "Ada"),
    ("description", "word " * 2000, "word " * 15 + "word"),
    ("install", "perhaps", True),
    ("install", "no", False),
]


@pytest.mark.parametrize(("question", "answer", "better"), REFUSED)
def test_a_bad_answer_is_refused_with_a_better_one(tmp_path, question, answer, better):
    result = replay(tmp_path, **{question: answer})
    assert result.returncode != 0
    assert f"  {question} is " in result.stdout
    assert f"    For example: {better!r}" in result.stdout
    assert result.stdout.count("For example: ") == 1
    assert not list(tmp_path.glob("out/*"))


def test_text_typed_at_the_prompts(tmp_path):
    """One line for each question; an empty line takes the default."""
    lines = ["{{ 7*7 }}", "", "{% raw %} 'it' \"s\"", "O'Neil \\ {#", *[""] * 6, "n", ""]
    command = [*COOKIECUTTER, "--default-config", "--output-dir", str(tmp_path)]
    result = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    project = tomllib.loads((tmp_path / "service-7-7/pyproject.toml").read_text())
    assert project["tool"]["service"]["title"] == lines[0]
    assert project["project"]["description"] == lines[2]
    assert project["project"]["authors"] == [{"name": lines[3]}]


def test_all_bad_answers_are_refused_at_once_with_the_right_command_line(tmp_path):
    bad = {
        "project_name": " ",
        "project_slug": "A b",
        "db_schema": "PG",
        "author_name": "x" * 10_000,
    }
    good = {
        "project_name": "Book Service",
        "project_slug": "a-b",
        "db_schema": "pg",
        "author_name": "x" * 80,
    }
    kept = {
        "description": "It's \n$HOME `id`",
        "license": "Proprietary",
        "postgres_version": "16",
    }
    folder = tmp_path / "with a space"
    asked = [f"{question}={answer}" for question, answer in {**bad, **kept}.items()]
    result = generate(folder, "install=no", *asked)
    assert result.returncode != 0
    for question in bad:
        assert f"  {question} is " in result.stdout
    assert not list(folder.iterdir())

    home = tmp_path / "home"
    repeated = run("sh", "-c", f"cd / && {corrected_command(result.stdout)}", HOME=str(home))
    assert repeated.returncode == 0, repeated.stdout
    replayed = json.loads(next((home / ".cookiecutter_replay").iterdir()).read_text())[
        "cookiecutter"
    ]
    assert {question: replayed[question] for question in [*good, *kept]} == {**good, **kept}
    assert (folder / "a-b/compose.yaml").exists()
    assert not (folder / "a-b/.venv").exists()


def test_a_refusal_under_uvx_names_the_python_that_runs_it(tmp_path):
    """uvx puts its programs on the PATH only for itself; the variable UV shows that it runs."""
    result = generate(tmp_path, "project_slug=X", UV="/usr/bin/uv")
    assert f"  {sys.executable} -m cookiecutter {TEMPLATE} " in result.stdout


def test_the_command_line_of_a_refusal_keeps_jinja(tmp_path):
    """Cookiecutter renders answers on the command line, so braces are printed as a Jinja string."""
    text = f"{TYPED[1]} {TYPED[3]} {TYPED[6]} {TYPED[11]}"
    result = replay(tmp_path, project_slug="X", description=text)
    repeated = run("sh", "-c", corrected_command(result.stdout), HOME=str(tmp_path))
    assert repeated.returncode == 0, repeated.stdout
    project = tomllib.loads((tmp_path / "out/x/pyproject.toml").read_text())
    assert project["project"]["description"] == text


def test_no_dependency_is_a_slug(generated):
    """The list in the hook is complete: everything that is locked or can be imported."""
    taken = set(re.findall(r"[a-z0-9_]+", (TEMPLATE / "hooks/pre_gen_project.py").read_text()))
    locked = tomllib.loads((generated / "uv.lock").read_text())["package"]
    names = {package["name"].replace("-", "_") for package in locked} - {"book_service"}
    packages = next((generated / ".venv/lib").glob("python3*/site-packages"))
    names |= {path.name.split(".")[0] for path in packages.iterdir() if "info" not in path.suffix}
    assert {name for name in names if re.fullmatch("[a-z][a-z0-9_]*", name)} <= taken


def test_a_replay_gives_the_same_project(tmp_path):
    home = {"HOME": str(tmp_path / "home")}
    text = f"description={TYPED[0]}"
    assert generate(tmp_path / "first", "install=no", text, **home).returncode == 0
    again = run(*COOKIECUTTER, "--replay", "--output-dir", tmp_path / "second", **home)
    assert again.returncode == 0, again.stdout
    first, second = files(tmp_path / "first/book-service"), files(tmp_path / "second/book-service")
    assert first.pop(".env") != second.pop(".env")
    assert first == second


def test_answers_from_a_configuration_file(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
        replay_dir: {tmp_path}
        default_context:
          project_name: "7 'Seas'"
          description: 42
          postgres_version: "17"
          install: false
        """
    )
    words = ["--no-input", "--config-file", config, "--output-dir", tmp_path]
    result = run(*COOKIECUTTER, *words)
    assert result.returncode == 0, result.stdout
    folder = tmp_path / "service-7-seas"
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["tool"]["service"]["title"] == "7 'Seas'"
    assert project["project"]["description"] == "42"
    assert "postgres:17" in (folder / "compose.yaml").read_text()


@pytest.fixture
def repository(tmp_path) -> str:
    """This template as a git repository with a tag, at an address like those of `gh:`."""
    folder = tmp_path / "git/ORG/cookiecutter-flask-postgres.git"
    copy_template(folder)
    (tmp_path / "config.yaml").write_text(
        f"cookiecutters_dir: {tmp_path}/cloned\nreplay_dir: {tmp_path}\n"
        f"abbreviations: {{gh: 'file://{tmp_path}/git/{{0}}.git'}}\n"
    )
    commit(folder, "1")
    run("git", "tag", "v1", cwd=folder)
    (folder / "{{cookiecutter.project_slug}}/newer").write_text("x\n")
    commit(folder, "2")
    return "gh:ORG/cookiecutter-flask-postgres"


def test_a_checked_out_tag_of_a_repository(repository, tmp_path):
    words = ["--config-file", tmp_path / "config.yaml", "--no-input", "--output-dir", tmp_path]
    for options, newer in (["--checkout", "v1"], False), ([], True):
        slug = "newer" if newer else "tagged"
        answers = [f"project_slug={slug}", "install=no"]
        result = run(*COOKIECUTTER[:-1], repository, *words, *options, *answers)
        assert result.returncode == 0, result.stdout
        assert (tmp_path / slug / "newer").exists() == newer
        assert (tmp_path / slug / "LICENSE").exists()


def test_a_refusal_repeats_the_repository_and_the_tag(repository, tmp_path):
    words = ["--config-file", tmp_path / "config.yaml", "--no-input", "--checkout", "v1"]
    result = run(*COOKIECUTTER[:-1], repository, *words, "project_slug=X", cwd=tmp_path)
    assert (
        f"  cookiecutter {repository} --no-input --output-dir {tmp_path} --checkout v1 "
        in result.stdout
    )


@pytest.mark.parametrize("option", ["--overwrite-if-exists", "--skip-if-file-exists"])
def test_files_that_git_can_bring_back_may_be_overwritten(tmp_path, option):
    """-f alone overwrites existing files; -f with -s only adds new ones."""
    folder = tmp_path / "book-service"
    folder.mkdir()
    for name, text in {"README.md": "mine", "LICENSE": "mine", ".gitignore": ".env\n"}.items():
        (folder / name).write_text(text)
    commit(folder, "mine")
    (folder / ".env").write_text("mine")
    result = generate(tmp_path, "install=no", "--overwrite-if-exists", option)
    assert result.returncode == 0, result.stdout
    for name in ("LICENSE", ".env"):
        assert (folder / name).read_text() == "mine"
        assert f"{name}: kept as it was" in result.stdout
    assert ((folder / "README.md").read_text() == "mine") == (option == "--skip-if-file-exists")
    assert run("git", "show", "HEAD:README.md", cwd=folder).stdout == "mine"
    assert not (folder / ".choices").exists()
    assert (folder / "app/config.py").exists()


def untracked(folder: Path) -> None:
    (folder / "README.md").write_text("mine")


def hidden_by_configuration(folder: Path) -> None:
    (folder / "other").write_text("other")
    commit(folder, "mine")
    run("git", "config", "status.showUntrackedFiles", "no", cwd=folder)
    (folder / "README.md").write_text("mine")


def ignored(folder: Path) -> None:
    (folder / ".gitignore").write_text("README.md\n")
    commit(folder, "mine")
    (folder / "README.md").write_text("mine")


def changed(folder: Path) -> None:
    (folder / "README.md").write_text("theirs")
    commit(folder, "mine")
    (folder / "README.md").write_text("mine")


def a_link_elsewhere(folder: Path) -> None:
    (folder.parent / "elsewhere").write_text("mine")
    (folder / "README.md").symlink_to("../elsewhere")
    commit(folder, "mine")


@pytest.mark.parametrize(
    "prepare", [untracked, hidden_by_configuration, ignored, changed, a_link_elsewhere]
)
def test_files_that_git_cannot_bring_back_are_not_overwritten(tmp_path, prepare):
    folder = tmp_path / "book-service"
    folder.mkdir()
    prepare(folder)
    before = files(folder)
    refused = generate(tmp_path, "install=no", "--overwrite-if-exists")
    assert refused.returncode != 0
    assert "already has files: README.md" in refused.stdout
    assert files(folder) == before
    assert (folder / "README.md").read_text() == "mine"


def test_an_empty_repository_is_an_empty_folder(tmp_path):
    run("git", "init", "--quiet", tmp_path / "book-service")
    result = generate(tmp_path, "install=no", "--overwrite-if-exists", "db_schema=PG")
    result = run("sh", "-c", corrected_command(result.stdout), HOME=str(tmp_path))
    assert result.returncode == 0, result.stdout
    assert (tmp_path / "book-service/LICENSE").exists()


@pytest.mark.parametrize("name", ["100%", 'a"b', "a$b", "a`b"])
def test_a_folder_in_which_nothing_can_work_is_refused(tmp_path, name):
    result = generate(tmp_path / name, "install=no")
    assert result.returncode != 0
    assert "cannot hold the project" in result.stdout
    assert not list((tmp_path / name).iterdir())
