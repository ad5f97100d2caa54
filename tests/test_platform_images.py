"""The commands of Render, AWS, Kubernetes and Fly.io in the image, on a server that speaks TLS."""

import contextlib
import json
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from conftest import PATIENCE, copy_project, run, wait_until
from platforms import (
    SLUG,
    Start,
    aws_starts,
    console_commands,
    fly_starts,
    kubernetes_starts,
    render_starts,
    rendered_answers,
)

pytestmark = pytest.mark.docker
BEHIND = "The database is behind the code."


@pytest.fixture(scope="module")
def rendered(shared: Path) -> dict[str, Path]:
    return rendered_answers(shared)


def docker(*words: object, timeout: int = 2 * PATIENCE) -> str:
    result = subprocess.run(
        ["docker", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, f"docker {shlex.join(map(str, words))}\n{result.stdout}"
    return result.stdout


@dataclass(frozen=True)
class Engine:
    """An image of the default project, and a network with a server `db`."""

    name: str

    def options(self, start: Start) -> list[str]:
        """As confined as in Kubernetes."""
        words = ["--network", self.name, "--read-only", "--memory", "512m", "--cap-drop", "ALL"]
        words += ["--security-opt", "no-new-privileges", "--tmpfs", "/backups:uid=1000"]
        for name, value in start.settings.items():
            words += ["--env", f"{name}={value}"]
        return words

    def job(self, start: Start, **settings: str) -> str:
        """Run a command to its end."""
        start = Start(start.where, start.command, start.settings | settings)
        return docker("run", "--rm", *self.options(start), self.name, *start.command)

    @contextlib.contextmanager
    def service(self, start: Start) -> Iterator[str]:
        """The container of a service, stopped as its platform stops it."""
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"
        words = ["run", "--detach", "--name", name, "--publish", "127.0.0.1::5000"]
        docker(*words, *self.options(start), self.name, *start.command)
        try:
            yield name
            docker("stop", "--timeout", start.grace, name)
            assert docker("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "0"
        except BaseException:
            print(docker("logs", name))
            raise
        finally:
            docker("rm", "--force", "--volumes", name)

    def sql(self, statement: str, database: str = "app") -> str:
        psql = ["psql", "-U", "app", "-d", database, "-Atc", statement]
        return docker("exec", f"{self.name}-db", *psql).strip()


def readiness(container: str) -> str:
    """Status and body of /readyz, or nothing if there is no answer yet."""
    address = docker("port", container, "5000/tcp").split()[-1]
    try:
        answer = requests.get(f"http://{address}/readyz", timeout=PATIENCE)
    except requests.RequestException:
        return ""
    return f"{answer.status_code} {answer.text}"


def until_ready(container: str) -> None:
    wait_until(lambda: readiness(container).startswith("200"), f"{container} is ready")


def certificates(folder: Path) -> None:
    """A CA of our own, and the certificate of the host `db`, signed by it."""
    for name, subject in (("ca", "a CA"), ("server", "db")):
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-subj", f"/CN={subject}"]
        signed = ["-x509", "-days", "2"] if name == "ca" else []
        out = f"{name}.crt" if signed else f"{name}.csr"
        result = run("openssl", "req", *key, *signed, "-out", out, cwd=folder)
        assert result.returncode == 0, result.stdout
    (folder / "names").write_text("subjectAltName=DNS:db")
    sign = ["-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
    sign += ["-days", "2", "-extfile", "names", "-out", "server.crt"]
    assert run("openssl", "x509", *sign, cwd=folder).returncode == 0
    for file in folder.iterdir():
        file.chmod(0o644)


SERVE_TLS = """
set -e
install -o postgres -m 600 /tls/server.key /tmp/server.key
exec docker-entrypoint.sh postgres -c ssl=on -c ssl_cert_file=/tls/server.crt \
    -c ssl_key_file=/tmp/server.key
"""


@pytest.fixture(scope="module")
def engine(
    generated: Path, rendered: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    if shutil.which("docker") is None or run("docker", "info").returncode:
        pytest.skip("no Docker engine")
    here = Engine(f"platforms-{uuid.uuid4().hex[:12]}")
    folder = tmp_path_factory.mktemp("image")
    project = copy_project(generated, folder / SLUG)
    tls = folder / "tls"
    tls.mkdir()
    certificates(tls)
    # As docs/deploying.md says for AWS; its image has the group for buckets too.
    shutil.copy(rendered["AWS"] / "Dockerfile", project.path)
    (project.path / "certs").mkdir()
    shutil.copy(tls / "ca.crt", project.path / "certs/rds.pem")
    database = f"{here.name}-db"
    account = [f"POSTGRES_{name}" for name in ("USER=app", "DB=app", "PASSWORD=secret")]
    try:
        docker("build", "--quiet", "--tag", here.name, project.path, timeout=600)
        docker("network", "create", here.name)
        words = ["run", "--detach", "--name", database, "--network", here.name]
        words += ["--network-alias", "db", "--volume", f"{tls}:/tls:ro", "--entrypoint", "sh"]
        words += [word for name in account for word in ("--env", name)]
        docker(*words, "postgres:18", "-c", SERVE_TLS)
        over_tcp = ["exec", database, "pg_isready", "-h", "127.0.0.1", "-U", "app", "-d", "app"]
        wait_until(lambda: run("docker", *over_tcp).returncode == 0, "the server is there")
        here.sql("SELECT 1")
        for name in ("render", "kubernetes", "fly"):
            here.sql(f"CREATE DATABASE {name}")
        yield here
    finally:
        for words in (["rm", "--force", "--volumes", database], ["network", "rm", here.name]):
            run("docker", *words)
        run("docker", "rmi", "--force", here.name)


def test_render_in_the_image(engine: Engine, rendered):
    """With a command before the rollout, and without, as in the free plan."""
    before, service, nightly = render_starts(rendered["Render"])
    assert "Running upgrade  -> 0001" in engine.job(before)
    with engine.service(service) as container:
        until_ready(container)
    # A second service in the same database.
    orders = Start("free", [], service.settings | {"SCHEMA": "orders"}, service.grace)
    with engine.service(orders) as container:
        until_ready(container)
        assert "Running upgrade  -> 0001" in docker("logs", container)
    found = "SELECT schemaname FROM pg_tables WHERE tablename = 'books' ORDER BY 1"
    assert engine.sql(found, "render").split() == ["orders", "public"]
    backs_up(engine, nightly)


def backs_up(engine: Engine, nightly: Start) -> None:
    """Into a folder in place of the bucket; the image has what it takes for a bucket."""
    assert "in 3 tables, revision 0001" in engine.job(nightly, BACKUP_DIR="/backups")
    nowhere = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1"}
    nowhere |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with pytest.raises(AssertionError, match="Could not connect to the endpoint"):
        engine.job(nightly, **nowhere)


def test_aws_in_the_image_with_verified_tls(engine: Engine, rendered):
    before, nightly, service = aws_starts(rendered["AWS"])
    with engine.service(service) as container:
        wait_until(lambda: readiness(container), "the service answers")
        assert BEHIND in readiness(container)
        assert "Running upgrade  -> 0001" in engine.job(before)
        until_ready(container)
        used = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        assert engine.sql(f"{used} WHERE client_addr IS NOT NULL") == "t"
        lines = docker("logs", container).splitlines()
        assert [line for line in lines if not json.loads(line)["event"]] == []
    backs_up(engine, nightly)
    wrong = before.settings["DATABASE_URL"].replace("@db:", f"@{engine.name}-db:")
    with pytest.raises(AssertionError, match="does not match host name"):
        engine.job(before, DATABASE_URL=wrong, DATABASE_WAIT_SECONDS="1")


def test_kubernetes_in_the_image(engine: Engine, rendered):
    """A rollout without its Job gets nobody ready; the Job does; then a backup, and back to it."""
    before, backup, service = kubernetes_starts(rendered["Kubernetes"])
    with pytest.raises(AssertionError, match="DATABASE_URL"):
        engine.job(
            before, DATABASE_URL="postgresql://app:secret@db/none", DATABASE_WAIT_SECONDS="1"
        )
    with engine.service(service) as container:
        wait_until(lambda: readiness(container), "the service answers")
        assert BEHIND in readiness(container)
        engine.job(before)
        until_ready(container)
        assert "Running upgrade" not in engine.job(before)
    # One container, since its volume ends with it.
    *_, restore, upgrade = console_commands(rendered["Kubernetes"])
    script = f"{backup.command[-1]} && {restore.replace('NAME', 'latest')} && {upgrade}"
    assert "restored /backups/" in engine.job(
        Start("console", ["sh", "-c", script], backup.settings)
    )


def test_fly_in_the_image(engine: Engine, rendered):
    before, service = fly_starts(rendered["none"])
    engine.job(before)
    with engine.service(service) as container:
        until_ready(container)
