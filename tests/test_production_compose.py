"""Production on one machine: what docs/deploying.md prints under Docker, done on a real engine."""

import gzip
import io
import json
import os
import re
import secrets
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml
from conftest import PATIENCE, Project, copy_project, free_port, run, wait_until
from production import Load

pytestmark = pytest.mark.docker

# What nobody may find in an image.
CANARY = secrets.token_hex(20)
NGINX = """
FROM debian:trixie-slim
RUN apt-get update -qq && apt-get install -qq --no-install-recommends nginx-light >/dev/null \
    && useradd --system --uid 101 nginx
"""


def docker(*command: str | Path, **options: str) -> str:
    result = run("docker", *command, **options)
    assert result.returncode == 0, f"docker {command}\n{result.stdout}"
    return result.stdout


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The image nginx:1, or where no registry can be reached, Debian's nginx by that name."""
    if run("docker", "compose", "version").returncode or run("docker", "info").returncode:
        pytest.skip("no Docker engine with compose")
    have = run("docker", "image", "inspect", "nginx:1").returncode == 0
    if have or run("docker", "pull", "--quiet", "nginx:1").returncode == 0:
        yield
        return
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "Dockerfile").write_text(NGINX)
    docker("build", "--quiet", "--tag", "nginx:1", folder)
    yield
    docker("rmi", "--force", "nginx:1")


@dataclass
class Production:
    """The stack of compose.production.yaml, under a name and on ports of its own."""

    project: Project
    name: str
    http: str
    https: str

    @property
    def path(self) -> Path:
        return self.project.path

    @property
    def commands(self) -> dict[str, list[str]]:
        """The blocks of the section Docker, by what they do."""
        page = (self.path / "docs/deploying.md").read_text()
        section = re.search(r"^## Docker\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
        blocks = re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
        names = ["prepare", "start", "password", "roll", "back", "keep", "restore"]
        names += ["start again", "rehearse", "certificate", "proxy"]
        assert len(blocks) == len(names)
        return {
            name: [
                line.replace("https://localhost/", f"{self.https}/")
                for line in block.replace("\\\n", " ").replace("&&\n", "&& ").splitlines()
            ]
            for name, block in zip(names, blocks, strict=True)
        }

    def sh(self, *lines: str) -> str:
        """Run lines as somebody who types them in this folder; all must work."""
        result = self.attempt(*lines)
        assert result.returncode == 0, f"{lines}\n{result.stdout}"
        return result.stdout

    def attempt(self, *lines: str, **environment: str):
        ports = {"HTTP_PORT": self.http.partition("//")[2], "BACKUP_EVERY": "1h"}
        ports["HTTPS_PORT"] = f"127.0.0.1:{self.https.rpartition(':')[2]}"
        script = "\n".join(lines)
        return self.project.run("bash", "-euo", "pipefail", "-c", script, **ports, **environment)

    def compose(self, *words: str) -> str:
        return self.sh(" ".join(["docker compose -f compose.production.yaml", *words]))

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).strip()

    def facts(self, service: str) -> dict:
        return json.loads(docker("inspect", self.container(service)))[0]

    def image(self, service: str) -> str:
        return self.facts(service)["Image"]

    def is_healthy(self, service: str) -> bool:
        state = self.facts(service)["State"]
        return state["Running"] and state["Health"]["Status"] == "healthy"

    def get(self, path: str, **options) -> requests.Response:
        options.setdefault("verify", self.path / "tls/fullchain.pem")
        return requests.get(f"{self.https}{path}", timeout=PATIENCE, **options)

    def post(self, name: str) -> requests.Response:
        return requests.post(
            f"{self.https}/api/authors",
            json={"name": name},
            timeout=PATIENCE,
            verify=self.path / "tls/fullchain.pem",
        )

    def speaks(self, version: str) -> bool:
        """Whether the proxy speaks this version of TLS."""
        where = f"127.0.0.1:{self.https.rpartition(':')[2]}"
        client = f"openssl s_client -tls{version} -cipher DEFAULT@SECLEVEL=0 -connect {where}"
        return self.attempt(f"{client} </dev/null").returncode == 0

    def in_table(self, row: str) -> str:
        """The command in a row of the table."""
        page = (self.path / "docs/deploying.md").read_text()
        (cell,) = re.findall(rf"^\| {row} \| (.*) \|$", page.split("\n| | Docker |")[1], re.M)[:1]
        (command,) = re.findall(r"`(docker [^`]*)`", cell)
        return command

    def select(self, statement: str) -> list[str]:
        psql = ["psql", "--username", "app", "--tuples-only", "--no-align", "--command"]
        return docker("exec", self.container("db"), *psql, statement).splitlines()

    def revisions(self) -> list[str]:
        return self.select("SELECT version_num FROM alembic_version")

    def load(self) -> Load:
        """Readers and writers, each with a new connection or with one that it keeps."""
        sessions = [requests.Session(), None, requests.Session(), None]

        def ask(client: int) -> object:
            how = {"verify": self.path / "tls/fullchain.pem", "timeout": PATIENCE}
            by = sessions[client] or requests
            if client < 2:
                return by.get(f"{self.https}/api/authors", **how).status_code
            author = {"name": uuid.uuid4().hex}
            return by.post(f"{self.https}/api/authors", json=author, **how).status_code

        return Load(len(sessions), ask)


@pytest.fixture(scope="module")
def production(
    nginx: None, generated: Path, seeded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Production]:
    """Prepared and started by the commands of the page."""
    name = f"service-{uuid.uuid4().hex[:8]}"
    project = copy_project(generated, tmp_path_factory.mktemp("production") / name)
    shutil.copytree(seeded, project.path / ".postgres")
    for file in ("compose.production.yaml", "docs/deploying.md", ".github/workflows/ci.yml"):
        text = (project.path / file).read_text()
        (project.path / file).write_text(text.replace("book-service", name))
    (project.path / "production.env").write_text(f"WEB_CONCURRENCY=1\n# {CANARY}\n")
    with (project.path / ".env").open("a") as env:
        env.write(f"# {CANARY}\n")
    stack = Production(
        project, name, f"http://127.0.0.1:{free_port()}", f"https://localhost:{free_port()}"
    )
    try:
        stack.sh(*stack.commands["prepare"])
        (stack.path / "secrets/notes").write_text(CANARY)
        (stack.path / "tls/notes").write_text(CANARY)
        try:
            stack.sh(*stack.commands["start"])
        except AssertionError:
            print(stack.compose("logs"))
            raise
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "1", "--remove-orphans")
        left = [docker("volume", "ls"), docker("ps", "--all"), docker("network", "ls")]
        assert name not in " ".join(left)
        images = docker("images", "--quiet", name).split()
        docker("rmi", "--force", *set(images))


def test_it_answers_over_tls_and_nothing_else_is_open(production: Production):
    answer = production.get("/api/books")
    assert (answer.status_code, answer.json()["items"]) == (200, [])
    assert answer.headers["Strict-Transport-Security"]
    for path in ("/healthz", "/readyz"):
        hidden = production.get(path)
        assert (hidden.status_code, hidden.json()["title"]) == (404, "Not Found")

    plain = requests.get(f"{production.http}/api/books?a=b", timeout=30, allow_redirects=False)
    assert plain.status_code == 308
    assert plain.headers["Location"] == "https://127.0.0.1/api/books?a=b"
    wrong = requests.get(
        production.https.replace("https", "http"), timeout=30, allow_redirects=False
    )
    assert wrong.status_code == 308
    proof = production.path / "tls/acme/.well-known/acme-challenge/proof"
    proof.parent.mkdir(parents=True)
    proof.write_text("proof")
    url = f"{production.http}/.well-known/acme-challenge/proof"
    assert requests.get(url, timeout=30).text == "proof"

    names = production.compose("config", "--services").split()
    assert sorted(names) == ["backend-a", "backend-b", "backup", "db", "proxy"]
    open_ports = {name: production.facts(name)["HostConfig"]["PortBindings"] for name in names}
    assert {name for name, ports in open_ports.items() if ports} == {"proxy"}
    inside = f"{production.name}-production_inside"
    assert docker("network", "inspect", "--format", "{{.Internal}}", inside) == "true\n"

    versions = {version: production.speaks(version) for version in ("1", "1_1", "1_2", "1_3")}
    assert versions == {"1": False, "1_1": False, "1_2": True, "1_3": True}
    for line in production.sh(production.in_table("logs")).splitlines():
        assert json.loads(line)["event"]


def test_each_container_can_do_little(production: Production):
    for name in ("proxy", "backend-a", "backend-b", "backup", "db"):
        facts = production.facts(name)
        host = facts["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert host["Memory"] > 0
        assert host["PidsLimit"] > 0
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}
        assert facts["Config"]["Labels"]["service"] == production.name
        if name == "backend-a":  # gunicorn and one worker, as production.env says
            assert len(docker("top", facts["Id"]).splitlines()[1:]) == 2
        users = docker("top", facts["Id"], "-o", "pid,uid").splitlines()[1:]
        assert not [line for line in users if line.split()[1] == "0"], (name, users)


def test_no_secret_is_in_an_image_or_in_what_docker_shows(production: Production, tmp_path: Path):
    values = [
        (production.path / f"secrets/{name}").read_text().strip()
        for name in ("secret_key", "database_password", "database_url")
    ]
    values.append(CANARY)
    shown = docker("inspect", *production.compose("ps", "--all", "--quiet").split())
    shown += docker("history", "--no-trunc", production.name)
    assert not [value for value in values if value in shown]

    docker("save", "--output", tmp_path / "image.tar", production.name)
    needles = [value.encode() for value in values]
    seen = 0
    with tarfile.open(tmp_path / "image.tar") as image:
        for part in filter(tarfile.TarInfo.isfile, image):
            seen += 1
            found = image.extractfile(part)
            assert isinstance(found, io.BufferedReader)
            # A layer is a tar itself, which some engines compress.
            compressed = found.peek(2)[:2] == b"\x1f\x8b"
            with gzip.open(found) if compressed else found as layer:
                rest = b""
                while block := layer.read(1 << 22):
                    assert not [value for value in needles if value in rest + block], part.name
                    rest = block[-128:]
    assert seen > 5

    for folder in ("secrets", "tls"):
        assert (production.path / folder).stat().st_mode & 0o777 == 0o700
    given = {"backend-a": ["database_url", "secret_key"], "db": ["database_password"]}
    for service, files in given.items():
        said = production.compose("exec", "-T", service, "ls", "/run/secrets")
        assert said.split() == files
    again = production.attempt(*production.commands["prepare"])
    assert "File exists" in again.stdout
    assert (production.path / "secrets/secret_key").read_text().strip() == values[0]
    ignored = ["production.env", "secrets/secret_key", "tls/privkey.pem", ".env"]
    production.sh(f"git check-ignore {' '.join(ignored)}")


def test_a_replica_that_dies_comes_back(production: Production):
    before = production.facts("backend-a")["RestartCount"]
    production.compose("exec", "-T", "backend-a", "sh", "-c", "'kill 1'")
    wait_until(lambda: production.facts("backend-a")["RestartCount"] > before, "it is restarted")
    assert production.get("/api/books").status_code == 200
    wait_until(lambda: production.is_healthy("backend-a"), "it is healthy")


def test_a_new_version_and_back_under_load(production: Production):
    model = production.path / "app/models/authors.py"
    born = "    born: Mapped[int | None]\n"
    model.write_text(model.read_text().replace(born, f"{born}    died: Mapped[int | None]\n"))
    migrate = production.project.flask("db", "migrate", "-m", "authors die")
    assert migrate.returncode == 0, migrate.stdout
    (written,) = (production.path / "migrations/versions").glob("*_authors_die.py")
    revision = written.name.split("_")[0]
    roll, back = production.commands["roll"], production.commands["back"]
    old = production.image("backend-a")
    proxy = production.container("proxy")

    with production.load() as load:
        load.until(20)
        production.sh(*roll)
        load.until(20)
        new = production.image("backend-a")
        assert new == production.image("backend-b") != old
        assert production.revisions() == [revision]
        assert "backup before the migration: /backups/" in production.compose("logs", "backend-a")

        # A version that does not start stops the rollout; the other replica serves.
        broken = f'FROM {production.name}:1\nCMD ["false"]\n'
        (production.path / "broken").write_text(broken)
        production.sh(f"docker build --tag {production.name}:3 --tag {production.name} - < broken")
        failed = production.attempt(*roll[1:])
        assert failed.returncode != 0
        assert "unhealthy" in failed.stdout or "exited" in failed.stdout, failed.stdout
        assert production.image("backend-b") == new
        load.until(20)

        production.sh(*back)
        load.until(20)
        assert production.image("backend-a") == production.image("backend-b") == old
        assert production.revisions() == [revision]
    assert set(load.results) <= {"200", "201"}, load.results
    assert production.container("proxy") == proxy


def test_a_rollout_in_one_command_makes_requests_wait(production: Production):
    """Compose stops both replicas before it starts one."""
    production.sh(
        f"echo 'FROM {production.name}' | docker build --label more=1 -t {production.name} -"
    )
    up = production.commands["roll"][-1]
    assert up.endswith("--wait")
    with production.load() as load:
        load.until(20)
        production.sh(up)
        load.until(20)
    assert set(load.results) <= {"200", "201"}, load.results


UPGRADE = "docker compose -f compose.production.yaml run --rm --no-deps backup flask db upgrade"


def test_yesterdays_backup_comes_back(production: Production):
    assert production.post("of yesterday").status_code == 201
    said = production.compose("exec", "-T", "backup", "flask backup create")
    (yesterdays,) = re.findall(r"[^/\s]+\.dump", said)[-1:]
    assert production.post("of today").status_code == 201
    assert yesterdays in production.sh(*production.commands["keep"])
    assert f"`{UPGRADE}`" in (production.path / "docs/deploying.md").read_text()
    restore = [line.replace("NAME", yesterdays) for line in production.commands["restore"]]
    # Requests wait in the proxy while nobody serves.
    with production.load() as load:
        load.until(20)
        assert "is whole" in production.sh(*restore)
        # It may be of newer code: an earlier test went back to an old image.
        production.attempt(UPGRADE)
        production.sh(*production.commands["start again"])
        load.until(20)
    assert set(load.results) == {"200", "201"}, load.results
    found = production.select("SELECT name FROM authors WHERE name LIKE 'of %'")
    assert found == ["of yesterday"]

    # It may say as well that newer code has migrated the database: an earlier test went back.
    assert "2 replicas" in production.attempt(production.in_table("pooling")).stdout
    production.sh(production.in_table("backups"))
    assert (production.path / "backups" / yesterdays).exists()
    path = f"{production.path}/.venv/bin"
    rehearsal = [line.removeprefix("uv run ") for line in production.commands["rehearse"]]
    assert "nothing to fix" in production.sh(f'PATH="{path}:$PATH"', *rehearsal)


def test_a_renewed_certificate_is_served(production: Production):
    def served() -> str:
        port = production.https.rpartition(":")[2]
        return production.sh(
            f"openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null | openssl x509"
        )

    before = served()
    (prepare,) = production.commands["prepare"]
    (renew,) = re.findall(r"openssl req .*?(?= &&)", prepare)
    production.sh("mkdir -p renewed", renew.replace("tls/", "renewed/"), "cp renewed/*.pem tls/")
    production.sh(*production.commands["certificate"])
    wait_until(lambda: served() != before, "the new one is served")
    assert production.get("/api/books").status_code == 200


SSH = """#!/bin/sh
# The machine is this one, and its home a folder of the test.
test "$1" = deploy@example.com && shift && cd "$HOME_OF_DEPLOY" && exec sh -c "$*"
"""


def test_a_new_password_and_a_new_configuration_of_the_proxy(production: Production):
    before = production.facts("backend-b")["Id"]
    production.sh(*production.commands["password"])
    assert production.post("with a new password").status_code == 201
    assert production.facts("backend-b")["Id"] != before
    test, recreate = production.commands["proxy"]
    conf = production.path / "nginx.conf"
    text = conf.read_text()
    conf.write_text(text.replace(";", "", 1))
    assert production.attempt(test).returncode == 1
    assert production.get("/api/authors").status_code == 200
    conf.write_text(text.replace("server_tokens off;", "server_tokens off; # changed"))
    production.sh(test, recreate)
    assert production.get("/api/authors").status_code == 200


def test_the_job_of_ci_deploys(production: Production, tmp_path: Path):
    jobs = yaml.safe_load((production.path / ".github/workflows/ci.yml").read_text())["jobs"]
    script = jobs["deploy"]["steps"][-1]["run"]
    home = tmp_path / "home"
    home.mkdir()
    (home / production.name).symlink_to(production.path)
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "deploy")
    # As the job `image` leaves it, but for gzip, which takes long; `docker load` reads both.
    production.sh(
        f"echo 'FROM {production.name}' | docker build --label more=2 -t {production.name} -",
        f"docker tag {production.name} {production.name}:v2",
        f"docker save {production.name}:latest {production.name}:v2 > image.tar.gz",
        f"docker tag {production.name}:1 {production.name}",
        f"docker rmi {production.name}:v2",
        "mv Dockerfile Dockerfile.away",
    )
    try:
        result = production.attempt(
            f"trap 'ssh-agent -k' EXIT\n{script}",
            HOME=str(tmp_path),
            HOME_OF_DEPLOY=str(home),
            PATH=f"{tmp_path}:{os.environ['PATH']}",
            DEPLOY_HOST="deploy@example.com",
            DEPLOY_KNOWN_HOSTS="example.com ssh-ed25519 AAAA",
            DEPLOY_KEY=(tmp_path / "deploy").read_text(),
        )
    finally:
        production.sh("mv Dockerfile.away Dockerfile", "rm image.tar.gz")
    assert result.returncode == 0, result.stdout
    deployed = docker("image", "inspect", "--format", "{{.Id}}", f"{production.name}:v2").strip()
    assert production.image("backend-a") == production.image("backend-b") == deployed
