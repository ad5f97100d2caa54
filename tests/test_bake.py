"""What each answer produces: the right files, valid syntax, nothing left of the template."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from allpairspy import AllPairs
from conftest import QUESTIONS, TEMPLATE, files, generate, run

FILES = """
.dockerignore .editorconfig .env .env.example .flaskenv .gitattributes .gitignore
.pre-commit-config.yaml Dockerfile README.md compose.yaml gunicorn.conf.py init.sh pyproject.toml
.devcontainer/devcontainer.json
app/__init__.py app/config.py
app/core/__init__.py app/core/api.py app/core/backfill.py app/core/capacity.py
app/core/commands.py app/core/cors.py app/core/database.py app/core/database_errors.py
app/core/docs.py app/core/doctor.py app/core/drain.py app/core/embedded.py app/core/errors.py
app/core/etags.py app/core/examples.py app/core/extensions.py app/core/headers.py
app/core/history.py app/core/hosts.py app/core/inputs.py app/core/logs.py app/core/metrics.py
app/core/openapi.py app/core/overload.py app/core/overview.py app/core/pool.py app/core/pooled.py
app/core/privileges.py app/core/refusals.py app/core/releases.py app/core/requests.py
app/core/rows.py app/core/sentry.py app/core/session.py app/core/shell.py app/core/sql.py
app/core/tracing.py app/core/waiting.py
app/core/backups/__init__.py app/core/backups/advice.py app/core/backups/before.py
app/core/backups/bucket.py app/core/backups/cli.py app/core/backups/clients.py
app/core/backups/content.py app/core/backups/dump.py app/core/backups/errors.py
app/core/backups/folder.py app/core/backups/functions.py app/core/backups/manifest.py
app/core/backups/places.py app/core/backups/progress.py
app/core/backups/renaming.py app/core/backups/restore.py app/core/backups/retention.py
app/core/backups/scratch.py app/core/backups/script.py app/core/backups/snapshot.py
app/core/backups/source.py app/core/backups/store.py app/core/words.py
app/core/migrations/__init__.py app/core/migrations/autogenerate.py app/core/migrations/cli.py
app/core/migrations/differences.py app/core/migrations/drops.py app/core/migrations/environment.py
app/core/migrations/failures.py app/core/migrations/lock.py app/core/migrations/looks.py
app/core/migrations/model_checks.py app/core/migrations/naming.py app/core/migrations/offline.py
app/core/migrations/ownership.py app/core/migrations/reversible.py
app/core/migrations/revision_text.py app/core/migrations/safe_operations.py
app/core/migrations/server_defaults.py app/core/migrations/types.py app/core/migrations/unseen.py
app/core/migrations/template/alembic.ini.mako app/core/migrations/template/env.py
app/core/migrations/template/script.py.mako
app/core/rehearsal/__init__.py app/core/rehearsal/cli.py app/core/rehearsal/fill.py
app/core/rehearsal/judge.py app/core/rehearsal/load.py app/core/rehearsal/models.py
app/core/rehearsal/previous.py app/core/rehearsal/report.py app/core/rehearsal/revisions.py
app/core/rehearsal/run.py app/core/rehearsal/scratch.py app/core/rehearsal/tables.py
app/core/rehearsal/watch.py
app/core/safety/__init__.py app/core/safety/catalog.py app/core/safety/checks.py
app/core/safety/concurrently.py app/core/safety/copy.py app/core/safety/dry_run.py
app/core/safety/hazards.py app/core/safety/lint.py app/core/safety/listener.py
app/core/safety/objects.py app/core/safety/observed.py app/core/safety/offline.py
app/core/safety/one_transaction.py app/core/safety/own_schema.py app/core/safety/proxies.py
app/core/safety/report.py app/core/safety/run_settings.py app/core/safety/scratch.py
app/core/safety/squawk.py app/core/safety/statements.py app/core/safety/whole_tables.py
app/core/seeding/__init__.py app/core/seeding/cli.py app/core/seeding/planting.py
app/core/seeding/removal.py app/core/seeding/seed.py app/core/seeding/stage.py
app/core/seeding/values.py
app/models/__init__.py app/models/authors.py app/models/base.py app/models/books.py
app/routes/__init__.py app/routes/authors.py app/routes/books.py app/routes/health.py
app/routes/home.py
app/seeds/__init__.py app/seeds/authors.py app/seeds/books.py
app/templates/home.html
docs/backups.md docs/deploying.md docs/migrations.md docs/operating.md docs/recovery.md
docs/upgrading.md
tests/conftest.py tests/test_authors.py tests/test_books.py tests/test_config.py
tests/test_errors.py tests/test_headers.py tests/test_health.py tests/test_home.py
tests/test_migrations.py tests/test_requests.py tests/test_seeds.py tests/test_session.py
tests/test_shell.py
app/static/home.css
app/core/server/__init__.py app/core/server/bodies.py app/core/server/connections.py
app/core/server/worker.py
"""

LICENSE_FILES = {
    "MIT": {"LICENSE"},
    "BSD-3-Clause": {"LICENSE"},
    "Apache-2.0": {"LICENSE"},
    "Proprietary": set(),
}
CI_FILES = {
    "GitHub Actions": {
        ".github/dependabot.yml",
        ".github/workflows/ci.yml",
        ".github/workflows/template.yml",
    },
    "GitLab CI": {".gitlab-ci.yml", "renovate.json"},
    "none": set(),
}

DEPLOY_FILES = {
    "Docker": {"compose.production.yaml", "nginx.conf"},
    "Render": {"render.yaml"},
    "AWS": {"aws.yaml", "aws-deploy.sh", "aws-run.sh"},
    "Kubernetes": {
        "k8s/base/backup.yaml",
        "k8s/base/console.yaml",
        "k8s/base/kustomization.yaml",
        "k8s/base/migration.yaml",
        "k8s/base/network.yaml",
        "k8s/base/service.yaml",
        "k8s/deploy.sh",
        "k8s/pgbouncer/kustomization.yaml",
        "k8s/pgbouncer/pgbouncer.ini",
        "k8s/pgbouncer/pgbouncer.yaml",
        "k8s/production/kustomization.yaml",
        "k8s/production/scaling.yaml",
    },
    "none": set(),
}

INSTALLED = """
uv.lock
migrations/alembic.ini migrations/env.py migrations/script.py.mako
migrations/versions/0001_initial.py
"""

GITHUB_CI = ".github/workflows/ci.yml"
DEVCONTAINER = ".devcontainer/devcontainer.json"
BOTH_PAGES = {"README.md", "docs/deploying.md"}
# What every other answer than Docker changes.
DEPLOYED = BOTH_PAGES | {GITHUB_CI, "docs/backups.md"} | DEPLOY_FILES["Docker"]

WITH_POSTGRES = {"README.md", "compose.yaml", "compose.production.yaml", GITHUB_CI}
WITH_POSTGRES |= {"Dockerfile", "docs/backups.md"}

# Every answer that differs from the default, and the files that must show it.
ANSWERS = [
    ("project_name", "Order Desk", {"README.md", "pyproject.toml"}),
    ("description", "It takes orders.", {"README.md", "pyproject.toml"}),
    ("author_name", "Ada", {"LICENSE", "pyproject.toml"}),
    ("db_schema", "orders", {".env.example", ".flaskenv", "docs/deploying.md", "docs/recovery.md"}),
    ("postgres_version", "17", WITH_POSTGRES),
    ("postgres_version", "16", WITH_POSTGRES),
    ("python_version", "3.12", {"Dockerfile", "docs/deploying.md", DEVCONTAINER, GITHUB_CI}),
    ("python_version", "3.14", {"Dockerfile", "docs/deploying.md", DEVCONTAINER, GITHUB_CI}),
    ("license", "BSD-3-Clause", {"LICENSE", "README.md", "pyproject.toml"}),
    ("license", "Apache-2.0", {"LICENSE", "README.md", "pyproject.toml"}),
    ("license", "Proprietary", {"LICENSE", "README.md", "pyproject.toml"}),
    ("ci", "GitLab CI", BOTH_PAGES | CI_FILES["GitHub Actions"] | CI_FILES["GitLab CI"]),
    ("ci", "none", BOTH_PAGES | CI_FILES["GitHub Actions"]),
    ("deploy", "Render", DEPLOYED | DEPLOY_FILES["Render"]),
    ("deploy", "AWS", DEPLOYED | DEPLOY_FILES["AWS"] | {"Dockerfile"}),
    ("deploy", "Kubernetes", DEPLOYED | DEPLOY_FILES["Kubernetes"]),
    ("deploy", "none", DEPLOYED),
]
CHOICES = {name: choices for name, choices in QUESTIONS.items() if isinstance(choices, list)}


def bake(cookies, **answers) -> Path:
    result = cookies.bake(extra_context={"install": False, **answers})
    assert result.exit_code == 0, result.exception
    return result.project_path


def expected_files(
    license: str = "MIT", ci: str = "GitHub Actions", deploy: str = "Docker", **_: object
) -> set[str]:
    return set(FILES.split()) | LICENSE_FILES[license] | CI_FILES[ci] | DEPLOY_FILES[deploy]


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("default")
    result = generate(folder, "install=false")
    assert result.returncode == 0, result.stdout
    return files(folder / "book-service")


def test_the_exact_list_of_files(default):
    assert set(default) == expected_files()


def test_the_exact_list_of_files_when_installed(generated):
    assert set(files(generated)) == expected_files() | set(INSTALLED.split())


@pytest.mark.parametrize(("question", "answer", "shows_in"), ANSWERS)
def test_an_answer_shows_where_it_should(cookies, default, question, answer, shows_in):
    baked = files(bake(cookies, **{question: answer, "project_slug": "book-service"}))
    changed = {
        name for name in default.keys() | baked.keys() if default.get(name) != baked.get(name)
    }
    assert changed == shows_in | {".env"}


def test_every_question_is_asked_for_a_reason():
    asked = [name for name in QUESTIONS if not name.startswith("_")]
    assert len(asked) <= 11
    assert set(QUESTIONS["__prompts__"]) == set(asked)
    tested = {question for question, _, _ in ANSWERS} | {"project_slug", "install"}
    assert tested == set(asked)
    for name, choices in CHOICES.items():
        others = {answer for question, answer, _ in ANSWERS if question == name}
        assert others == set(choices[1:])


def test_the_hooks_know_every_choice():
    def table(hook: str) -> dict[str, object]:
        tree = ast.parse((TEMPLATE / "hooks" / hook).read_text())
        return next(
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHOICES"
        )

    assert table("pre_gen_project.py") == CHOICES
    files_of = table("post_gen_project.py")
    for question, answers in files_of.items():
        assert list(answers) == CHOICES[question]
    known = {name for answers in files_of.values() for names in answers.values() for name in names}
    assert known == set(files(TEMPLATE / "{{cookiecutter.project_slug}}/.choices"))


PAIRS = [dict(zip(CHOICES, answers, strict=True)) for answers in AllPairs(list(CHOICES.values()))]


@pytest.mark.parametrize("answers", [{}, {"db_schema": "orders"}, *PAIRS], ids=str)
def test_every_pair_of_answers_gives_whole_files(cookies, answers):
    """The exact list of files; each parses and has no template tag left."""
    folder = bake(cookies, **answers)
    found = files(folder)
    assert set(found) == expected_files(**answers)
    for name, content in found.items():
        text = content.decode()
        assert not re.search(r"cookiecutter\.\w", text.replace("cookiecutter.readthedocs", "")), (
            name
        )
        assert text.endswith("\n"), name
        if name not in ("app/templates/home.html", "docs/upgrading.md"):
            assert not re.search(r"{%|%}|(?<!\$){{ ", text), name
        match Path(name).suffix:
            case ".py":
                ast.parse(text, name)
            case ".toml":
                tomllib.loads(text)
            case ".yaml" | ".yml":
                # Not loaded: a file may have several documents, or tags of CloudFormation.
                assert list(yaml.compose_all(text)), name
            case ".json":
                json.loads(text)
            case ".sh":
                subprocess.run(["sh", "-n", folder / name], check=True)
                assert (folder / name).stat().st_mode & 0o111, name


@pytest.mark.parametrize("answers", [{}, {"project_slug": "a", "license": "Proprietary"}], ids=str)
def test_the_projects_own_code_is_clean(cookies, answers):
    """Once for all: no answer changes a file of Python."""
    folder = bake(cookies, **answers)
    for tool in (["check"], ["format", "--check"]):
        assert run("ruff", *tool, "--no-cache", ".", cwd=folder).returncode == 0


def test_python_stays_python():
    for file in (TEMPLATE / "{{cookiecutter.project_slug}}").rglob("*.py"):
        assert not re.search("{%|{{", file.read_text()), file


def imports(folder: Path) -> set[str]:
    """What the files import, by its full name."""
    nodes = [
        node for file in folder.rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))
    ]
    plain = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    named = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in named), "a relative import"
    return {*plain, *(f"{node.module}.{name.name}" for node in named for name in node.names)}


@pytest.mark.parametrize(
    ("part", "foreign"),
    [
        ("core/safety", ["app.core.migrations"]),
        ("models", ["app.core.migrations", "app.core.safety"]),
        ("routes", ["app.core.migrations", "app.core.safety"]),
        ("seeds", ["app.core.migrations", "app.core.safety"]),
    ],
)
def test_imports_go_one_way(part, foreign):
    """`migrations` imports `safety`, never the other way; what serves requests touches neither."""
    found = imports(TEMPLATE / "{{cookiecutter.project_slug}}/app" / part)
    assert found
    wrong = {name for name in found for other in foreign if f"{name}.".startswith(f"{other}.")}
    assert not wrong


def test_two_generations_are_the_same_but_for_env(generated, tmp_path):
    assert generate(tmp_path).returncode == 0
    again = tmp_path / "book-service"
    assert not [*(again / "app").rglob("__pycache__")]
    first, second = files(generated), files(again)
    assert first.pop(".env") != second.pop(".env")
    assert first == second


def test_the_templates_own_code_is_clean():
    for words in (["check"], ["format", "--check"]):
        result = run("ruff", *words, "--no-cache", ".", cwd=TEMPLATE)
        assert result.returncode == 0, result.stdout
