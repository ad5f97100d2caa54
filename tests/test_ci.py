"""What keeps a generated project in order: its CI, its git hooks, its proposed updates."""

import re
import shutil

import jinja2
import pytest
import yaml
from conftest import DEFAULTS, QUESTIONS, TEMPLATE, Project, commit, generate, run

SCHEMAS = {
    "GitHub Actions": {
        ".github/workflows/ci.yml": "github-workflows",
        ".github/workflows/template.yml": "github-workflows",
        ".github/dependabot.yml": "dependabot",
        "compose.yaml": "compose-spec",
    },
    "GitLab CI": {".gitlab-ci.yml": "gitlab-ci", "renovate.json": "renovate"},
}
FILES = {
    "GitHub Actions": ("github-ci.yml", "github-workflows"),
    "GitLab CI": ("gitlab-ci.yml", "gitlab-ci"),
}
WORKFLOWS = [*TEMPLATE.glob(".github/workflows/*.yml"), *TEMPLATE.glob("{{*/.choices/github-*.yml")]
PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


WRONG_REVISION = """
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.execute("UPDATE books SET title = title")
"""


def validate(file, schema: str) -> None:
    transform = ["--data-transform", "gitlab-ci"] if schema == "gitlab-ci" else []
    result = run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *transform, file)
    assert result.returncode == 0, result.stdout


def rendered(name: str, **answers: str) -> str:
    """A file as the template makes it, in a moment."""
    text = (TEMPLATE / "{{cookiecutter.project_slug}}" / name).read_text()
    return jinja2.Template(text).render(cookiecutter={**DEFAULTS, **answers})


@pytest.mark.parametrize("ci", SCHEMAS)
def test_files_match_their_public_schemas(tmp_path, ci):
    assert generate(tmp_path, "install=no", f"ci={ci}").returncode == 0
    for name, schema in SCHEMAS[ci].items():
        validate(tmp_path / "book-service" / name, schema)


@pytest.mark.parametrize("deploy", QUESTIONS["deploy"])
def test_both_ci_scan_and_deploy_by_the_same_commands(tmp_path, deploy):
    jobs = {}
    for ci, (name, schema) in FILES.items():
        file = tmp_path / name
        file.write_text(rendered(f".choices/{name}", ci=ci, deploy=deploy))
        validate(file, schema)
        jobs[ci] = yaml.safe_load(file.read_text())
        page = rendered("docs/deploying.md", ci=ci, deploy=deploy)
        _, _, section = page.partition("\n## From CI\n")
        cells = re.findall(r"^\| ([^|]*) \|", section.partition("\n## ")[0], re.MULTILINE)
        told = set(re.findall(r"[A-Z_]{5,}", " ".join(cells)))
    github, gitlab = jobs["GitHub Actions"]["jobs"], jobs["GitLab CI"]

    scans = [step["run"] for step in github["image"]["steps"] if "run" in step][:4]
    others = [line.replace("$CI_PROJECT_DIR", "$PWD") for line in gitlab["container"]["script"]]
    assert scans == others[:4]
    # The image of this job has no git, which knows the last release.
    assert re.search(r"apt-get install .*\bgit\b", gitlab["checks"]["before_script"][0])
    kept = [line for line in gitlab["container"]["script"] if "image.tar.gz" in line]
    assert all(line.startswith('if [ -n "$CI_COMMIT_TAG" ]; then ') for line in kept)
    for tool in ("gitleaks", "trivy", "trivy"):
        assert any(re.search(rf"/{tool}:v?\d+\.\d+\.\d+ ", line) for line in scans)

    assert ("deploy" in github) == ("deploy" in gitlab) == (deploy != "none") == bool(told)
    if deploy != "none":
        *_, last = github["deploy"]["steps"]
        assert last["run"].splitlines() == gitlab["deploy"]["script"]
        used = set(re.findall(r"\$\{?([A-Z_]{4,})", last["run"]))
        given = set(github["deploy"]["env"])
        assert used <= given
        assert given - {"TAG", "COMMIT"} == told
        for line in gitlab["deploy"]["script"]:
            assert run("sh", "-nc", line).returncode == 0


def test_what_is_secret_is_ignored_by_git_and_docker(generated, tmp_path):
    ignored = (generated / ".gitignore").read_text().splitlines()
    assert {".env", "production.env", "/secrets/", "/tls/"} <= set(ignored)
    first, *rest = [
        line for line in (generated / ".dockerignore").read_text().splitlines() if line[:1] != "#"
    ]
    assert first == "*"
    assert not {"!.env", "!production.env", "!secrets", "!tls", "!."} & set(rest)


def test_the_dockerfile_follows_hadolint(generated):
    # :latest of uv, and a pipe and words that are meant to be split.
    ignored = ["DL3007", "DL4006", "SC2086"]
    options = [word for rule in ignored for word in ("--ignore", rule)]
    result = run("hadolint", *options, generated / "Dockerfile")
    assert result.returncode == 0, result.stdout


def test_the_templates_own_workflows_are_valid():
    for file in TEMPLATE.glob(".github/workflows/*.yml"):
        validate(file, "github-workflows")
    validate(TEMPLATE / ".github/dependabot.yml", "dependabot")


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_pin_actions_and_have_few_permissions(file):
    text = file.read_text()
    for use in re.findall(r"uses: ([^.].*)", text):
        assert PINNED.fullmatch(use), use
    if "jobs:" in text:
        assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)
        assert text.count("runs-on:") == text.count("timeout-minutes:")


def github_commands(project: Project) -> list[str]:
    """The commands of the job that runs the checks, in order."""
    jobs = yaml.safe_load((project.path / ".github/workflows/ci.yml").read_text())["jobs"]
    return [step["run"] for step in jobs["checks"]["steps"] if "run" in step]


def test_its_commands_pass_and_find_what_is_wrong(project: Project, tmp_path):
    assert generate(tmp_path / "gitlab", "install=no", "ci=GitLab CI").returncode == 0
    commands = github_commands(project)
    gitlab = tmp_path / "gitlab/book-service/.gitlab-ci.yml"
    assert yaml.safe_load(gitlab.read_text())["checks"]["script"] == commands
    for command in commands:
        result = project.run("sh", "-euc", command)
        assert result.returncode == 0, f"{command}\n{result.stdout}"
    readme = re.search(
        r"Check with:\n\n```sh\n(.*?)```", (project.path / "README.md").read_text(), re.DOTALL
    )
    assert set(readme[1].splitlines()) < set(commands)

    (project.path / "app/wrong.py").write_text("import os\nx: int = ''\n")
    (project.path / "tests/test_wrong.py").write_text("def test_wrong():\n    assert False\n")
    model = project.path / "app/models/books.py"
    model.write_text(
        model.read_text().replace("    title:", "    new: Mapped[int | None]\n    title:")
    )
    (project.path / "migrations/versions/0002_wrong.py").write_text(WRONG_REVISION)
    failing = [
        command for command in commands if project.run("sh", "-euc", command).returncode != 0
    ]
    assert failing == [
        "uv run ruff check",
        "uv run ruff format --check",
        "uv run mypy",
        "uv run flask db lint",
        "uv run flask db check",
        "uv run flask db rehearse",
        "uv run pytest",
    ]


def test_its_tests_judge_what_is_not_released(project: Project):
    """The last tag or, without tags, the main branch is what is released; without git, nothing."""

    def are_green() -> bool:
        result = project.run(project.python, "-m", "pytest", "-q", "tests/test_migrations.py")
        found = "test_what_is_not_released_is_safe" in result.stdout
        assert (result.returncode != 0) == found == ("whole-table-update:books" in result.stdout)
        return not found

    project.run("git", "branch", "--move", "main")
    assert are_green()
    downgrade = '\n\ndef downgrade():\n    op.execute("SELECT 1")\n'
    revision = project.path / "migrations/versions/0002_wrong.py"
    revision.write_text(WRONG_REVISION + downgrade)
    assert not are_green()
    commit(project.path, "wrong")
    assert are_green()
    project.run("git", "tag", "v1", "HEAD~")
    assert not are_green()
    project.run("git", "tag", "v2")
    assert are_green()
    shutil.rmtree(project.path / ".git")
    assert not are_green()


def test_its_tests_name_the_revision_that_has_no_way_back(project: Project):
    (project.path / "migrations/versions/0002_wrong.py").write_text(
        WRONG_REVISION + '\n\ndef downgrade():\n    op.drop_table("nowhere")\n'
    )
    result = project.run(project.python, "-m", "pytest", "-q", "tests/test_migrations.py")
    assert 'table "nowhere" does not exist' in result.stdout
    assert "Running downgrade 0002 -> 0001" in result.stdout


def test_pre_commit_runs_its_hooks(project: Project):
    assert project.run("uv", "sync").returncode == 0
    home = {"PRE_COMMIT_HOME": str(project.path.parent / "pre-commit")}
    clean = project.run("pre-commit", "run", "--all-files", **home)
    assert clean.returncode == 0, clean.stdout
    for hook in ("ruff check", "ruff format", "mypy", "flask db lint", "uv lock --check"):
        assert re.search(rf"^{hook}\.+Passed$", clean.stdout, re.MULTILINE), clean.stdout

    (project.path / "app/routes/home.py").write_text("import os\nx: int = ''\n")
    project.run("git", "add", "--all")
    wrong = project.run("pre-commit", "run", **home)
    assert wrong.returncode != 0
    assert re.search(r"^ruff check\.+Failed$", wrong.stdout, re.MULTILINE), wrong.stdout
    assert re.search(r"^mypy\.+Failed$", wrong.stdout, re.MULTILINE), wrong.stdout
