"""Every command that the files of the platforms name, run in the image or environment it is for."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import (
    PATIENCE,
    Project,
    clean_environment,
    commit,
    copy_project,
    free_port,
    run,
    wait_until,
)
from platforms import (
    SLUG,
    Start,
    aws_starts,
    blocks,
    fly_starts,
    heroku_starts,
    kubernetes_starts,
    render_starts,
    rendered_answers,
    section,
    unit_of,
)
from production import SECRET, Database, Load, producing, running

BEHIND = "The database is behind the code."


@pytest.fixture(scope="module")
def rendered(shared: Path) -> dict[str, Path]:
    return rendered_answers(shared)


# In the image, on a server that only takes connections with TLS


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
        docker("run", "--detach", "--name", name, *self.options(start), self.name, *start.command)
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


READY = """
import http.client
service = http.client.HTTPConnection("127.0.0.1", 5000, timeout=5)
service.request("GET", "/readyz")
answer = service.getresponse()
print(answer.status, answer.read().decode())
"""


def readiness(container: str) -> str:
    """Status and body of /readyz, or nothing if there is no answer yet."""
    try:
        return docker("exec", container, "python", "-c", READY)
    except AssertionError:
        return ""


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
def engine(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if shutil.which("docker") is None or run("docker", "info").returncode:
        pytest.skip("no Docker engine")
    here = Engine(f"platforms-{uuid.uuid4().hex[:12]}")
    folder = tmp_path_factory.mktemp("image")
    project = copy_project(generated, folder / SLUG)
    tls = folder / "tls"
    tls.mkdir()
    certificates(tls)
    # As docs/deploying.md says for AWS.
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


@pytest.mark.docker
def test_render_in_the_image(engine: Engine, rendered):
    """With a command before the rollout, and without, as in the free plan."""
    before, service = render_starts(rendered["Render"])
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


@pytest.mark.docker
def test_aws_in_the_image_with_verified_tls(engine: Engine, rendered):
    before, service = aws_starts(rendered["AWS"])
    with engine.service(service) as container:
        wait_until(lambda: readiness(container), "the service answers")
        assert BEHIND in readiness(container)
        assert "Running upgrade  -> 0001" in engine.job(before)
        until_ready(container)
        used = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        assert engine.sql(f"{used} WHERE client_addr IS NOT NULL") == "t"
        lines = docker("logs", container).splitlines()
        assert [line for line in lines if not json.loads(line)["event"]] == []
    wrong = before.settings["DATABASE_URL"].replace("@db:", f"@{engine.name}-db:")
    with pytest.raises(AssertionError, match="does not match host name"):
        engine.job(before, DATABASE_URL=wrong, DATABASE_WAIT_SECONDS="1")


@pytest.mark.docker
def test_kubernetes_in_the_image(engine: Engine, rendered):
    """A rollout without its Job gets nobody ready; the Job does; then the nightly backup."""
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
    assert engine.job(backup)


@pytest.mark.docker
def test_fly_in_the_image(engine: Engine, rendered):
    before, service = fly_starts(rendered["none"])
    engine.job(before)
    with engine.service(service) as container:
        until_ready(container)


# In the project's own environment


@pytest.fixture(scope="module")
def project(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(generated, tmp_path_factory.mktemp("platforms") / SLUG)


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Database]:
    with running(project) as database:
        yield database


def on_path(project: Project) -> str:
    return f"{project.path / '.venv/bin'}:{os.environ['PATH']}"


def test_heroku_in_twenty_connections(project: Project, server: Database, rendered):
    """Two dynos at a rollover and the release phase, under load."""
    release, web = heroku_starts(rendered["none"])
    server.sql(
        "CREATE ROLE heroku LOGIN CONNECTION LIMIT 20", "CREATE DATABASE heroku OWNER heroku"
    )
    url = f"postgres://heroku@/heroku?host={server.host}"
    settings = web.settings | {"DATABASE_URL": url, "PATH": on_path(project)}
    # On this server, there is a socket but no TLS.
    del settings["PGSSLMODE"]
    settings |= {"HOST": "127.0.0.1", "DRAIN_SECONDS": "0"}
    released = project.run(*release.command, **settings)
    assert released.returncode == 0, released.stdout
    with contextlib.ExitStack() as dynos:
        serving = [
            dynos.enter_context(project.serving(*web.command, until="/readyz", **settings))
            for _ in range(2)
        ]
        # GETs that count all rows, from more clients than there are connections.
        ask = lambda n: serving[n % 2].get("/api/authors?total=true").status_code  # noqa: E731
        with Load(24, ask) as load:
            load.until(200)
            assert project.run(*release.command, **settings).returncode == 0
            load.until(200)
        assert set(load.results) == {"200"}, load.results
        logs = "".join(each.log.read_text() for each in serving)
        assert "too many connections" not in logs
        assert json.loads(logs.splitlines()[-1])["event"]


def test_a_plan_with_tls_is_not_reached_without(project: Project, server: Database, rendered):
    """PGSSLMODE holds beside the URL."""
    release, _ = heroku_starts(rendered["none"])
    port = free_port()
    settings = release.settings | {"DATABASE_URL": f"postgres://a@127.0.0.1:{port}/a"}
    settings |= {"PATH": on_path(project), "DATABASE_WAIT_SECONDS": "1"}
    relay = f"import socket; s = socket.create_server(('127.0.0.1', {port}))\n"
    relay += "while True:\n    c, _ = s.accept(); c.recv(8); c.sendall(b'N'); c.close()"
    with subprocess.Popen(["python3", "-c", relay]) as without_tls:
        try:
            result = project.run(*release.command, **settings)
        finally:
            without_tls.kill()
    assert result.returncode == 1
    assert "server does not support SSL" in result.stdout


def test_systemd_rolls_one_instance_after_the_other(
    project: Project, server: Database, rendered, tmp_path: Path
):
    """The commands of the page, with a `systemctl` that starts what the unit says."""
    server.sql("CREATE DATABASE systemd")
    ports = [free_port(), free_port()]
    unit = unit_of(rendered["none"])
    place = tmp_path / "srv"
    place.mkdir()
    commit(project.path, "all")
    run("git", "tag", "--force", "v1", cwd=project.path)
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin/systemctl"
    command = unit["ExecStart"].replace(f"/srv/{SLUG}", str(place))
    environment = unit["Environment"].replace("%i", "${2#*@}")
    systemctl.write_text(
        f"#!/bin/sh\nset -eu\n[ $1 = restart ]\npid={tmp_path}/pid.${{2#*@}}\n"
        f"if [ -f $pid ]; then kill -TERM $(cat $pid); fi\n"
        f"while [ -f $pid ] && kill -0 $(cat $pid) 2>/dev/null; do sleep 0.1; done\n"
        f"export {environment}\nset -m\n"
        f"{command} >{tmp_path}/log.${{2#*@}} 2>&1 </dev/null &\necho $! >$pid\n"
    )
    systemctl.chmod(0o755)
    script = blocks(rendered["none"], "A machine with systemd", "sh")[0]
    script = script.replace("5000 5001", " ".join(map(str, ports))).replace(
        f"/srv/{SLUG}", str(place)
    )
    settings = {
        "DATABASE_URL": f"postgresql://postgres@/systemd?host={server.host}",
        "SECRET_KEY": SECRET,
        "DRAIN_SECONDS": "0",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "REPOSITORY": f"file://{project.path}",
    }
    try:
        for tag in ("v1", "v2"):
            run("git", "tag", "--force", tag, cwd=project.path)
            result = run("sh", "-euc", script, TAG=tag, **settings)
            assert result.returncode == 0, result.stdout
            for port in ports:
                pid = int((tmp_path / f"pid.{port}").read_text())
                assert os.readlink(f"/proc/{pid}/cwd") == str(place / tag)
                assert b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert json.loads((tmp_path / f"log.{ports[0]}").read_text().splitlines()[0])["event"]
        # Back: the folder of the earlier release, and the loop.
        link, loop = script[script.index("ln -sfn") :].split("\n", 1)
        result = run("sh", "-euc", f"{link}\n{loop}", TAG="v1", **settings)
        assert result.returncode == 0, result.stdout
        assert (place / "current").resolve() == place / "v1"
    finally:
        for file in tmp_path.glob("pid.*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), 9)
                os.killpg(int(file.read_text()), 9)


GOING_BACK = "### Going back"


def test_going_back_where_a_command_runs_first(generated: Path, server: Database, tmp_path: Path):
    """The old code's `flask db upgrade` refuses; the code goes back, its revision stays."""
    project = copy_project(generated, tmp_path / SLUG)
    server.sql("CREATE DATABASE back")
    settings = {
        "DATABASE_URL": f"postgresql://postgres@/back?host={server.host}",
        "SECRET_KEY": SECRET,
    }
    production = settings | {"APP_ENV": "production"}
    commit(project.path, "the release before")
    assert project.flask("db", "upgrade", **production).returncode == 0
    old = tmp_path / "old"
    run("git", "clone", "--quiet", project.path, old)
    (old / ".venv").symlink_to(project.path / ".venv")

    model = project.path / "app/models/authors.py"
    born = "    born: Mapped[int | None]\n"
    model.write_text(model.read_text().replace(born, f"{born}    died: Mapped[int | None]\n"))
    assert project.flask("db", "migrate", "-m", "died", **settings).returncode == 0
    commit(project.path, "a release")
    assert project.flask("db", "upgrade", **production).returncode == 0

    refused = Project(old).flask("db", "upgrade", **production)
    assert refused.returncode == 1
    assert "Nothing was changed" in refused.stdout
    with producing(Project(old), settings["DATABASE_URL"]) as service:
        assert "ahead of the code" in service.get("/readyz").text

    (script,) = blocks_of_part(project.path, "Rolling out", GOING_BACK)
    result = project.run("sh", "-euc", script)
    assert result.returncode == 0, result.stdout
    assert "died" not in model.read_text()
    assert project.flask("db", "upgrade", **production).returncode == 0
    assert "died" in project.flask("db", "check", **settings).stdout
    with producing(project, settings["DATABASE_URL"]) as service:
        assert service.get("/api/authors").status_code == 200


def blocks_of_part(project: Path, heading: str, part: str) -> list[str]:
    text = section(project, heading).split(part)[1]
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# Kubernetes and AWS: what their programs do with our commands


def test_kubectl_takes_the_commands_of_the_page(rendered, tmp_path):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    project = Project(tmp_path / SLUG)
    shutil.copytree(rendered["Kubernetes"], project.path)
    once, release = blocks(project.path, "Kubernetes", "sh")
    nowhere = tmp_path / "config"
    cluster = {"name": "x", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}}
    context = {"name": "x", "context": {"cluster": "x"}}
    nowhere.write_text(
        json.dumps({"clusters": [cluster], "contexts": [context], "current-context": "x"})
    )
    settings = {"KUBECONFIG": str(nowhere), "TAG": "1.4.0", "DATABASE_URL": "postgresql://u:p@h/d"}
    dry = once.replace("kubectl create", "kubectl create --dry-run=client --output=json")
    result = project.run("sh", "-euc", dry, **settings)
    assert result.returncode == 0, result.stdout
    for name in (SLUG, "DATABASE_URL", "SECRET_KEY"):
        assert f'"{name}"' in result.stdout
    lines = release.splitlines()
    assert project.run("sh", "-euc", lines[0], **settings).returncode == 0
    made = project.run("kubectl", "kustomize", "k8s/production").stdout
    assert "name: migrate-1.4.0" in made
    assert made.count(f"image: registry.example.com/{SLUG}:1.4.0") == 3
    for line in lines[1:]:
        result = project.run("sh", "-euc", f"{line} --request-timeout=2s", **settings)
        # It found nothing wrong with them but that nobody is there.
        assert "connection refused" in result.stdout, f"{line}\n{result.stdout}"


# What `aws` does in aws-deploy.sh, with the task run here.
AWS = """#!/usr/bin/env python3
import json, os, pathlib, subprocess, sys

words = sys.argv[1:]
folder = pathlib.Path(os.environ["CALLS"])
option = lambda name: words[words.index(name) + 1]
with (folder / "calls").open("a") as calls:
    print(json.dumps(words), file=calls)
match words[:2]:
    case ["cloudformation", "describe-stacks"]:
        print(option("--query").split("'")[1].lower() + "-of-the-stack")
    case ["ecs", "run-task"]:
        command = json.loads(option("--overrides"))["containerOverrides"][0]["command"]
        code = subprocess.run(command, stdout=sys.stderr).returncode
        (folder / "code").write_text(str(code))
        print("a-run")
    case ["ecs", "describe-tasks"]:
        answers = {"lastStatus": "STOPPED", "stoppedReason": "it ended"}
        answers["containers[0].exitCode"] = (folder / "code").read_text()
        print(answers[option("--query").removeprefix("tasks[0].")])
"""


def test_aws_rolls_only_what_has_migrated(
    project: Project, server: Database, rendered, tmp_path: Path
):
    server.sql("CREATE DATABASE aws")
    for name in ("aws.yaml", "aws-deploy.sh"):
        shutil.copy(rendered["AWS"] / name, project.path)
    program = tmp_path / "aws"
    program.write_text(AWS)
    program.chmod(0o755)
    _, service = aws_starts(rendered["AWS"])
    url = f"postgresql://postgres@/aws?host={server.host}"
    settings = service.settings | {"APP_ENV": "production", "DATABASE_URL": url}
    settings |= {"PATH": f"{tmp_path}:{on_path(project)}", "CALLS": str(tmp_path)}
    result = project.run("./aws-deploy.sh", "image:v1", "Vpc=vpc-1", **settings)
    assert result.returncode == 0, result.stdout
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    deployed = [
        call[call.index("--parameter-overrides") + 1 :] for call in calls if "deploy" in call
    ]
    assert deployed == [["Image=image:v1", "Vpc=vpc-1"], ["Serving=task-of-the-stack"]]
    (ran,) = [call for call in calls if "run-task" in call]
    assert ran[ran.index("--network-configuration") + 1] == "network-of-the-stack"
    assert server.__class__(server.host, "aws").sql("SELECT count(*) FROM books") == [(0,)]

    (tmp_path / "calls").unlink()
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "DATABASE_WAIT_SECONDS": "1"}
    result = project.run("./aws-deploy.sh", "image:v2", **settings | nowhere)
    assert result.returncode == 1
    assert "The migration ended with 1 (it ended). The service was not touched." in result.stdout
    assert "Serving=" not in (tmp_path / "calls").read_text()
    assert "Usage: ./aws-deploy.sh IMAGE" in project.run("./aws-deploy.sh", **settings).stdout


def test_the_component_with_a_real_pgbouncer(
    project: Project, server: Database, rendered, tmp_path: Path
):
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    server.sql("CREATE DATABASE pooled")
    direct = f"postgresql://postgres@/pooled?host={server.host}"
    migrated = project.flask("db", "upgrade", DATABASE_URL=direct)
    assert migrated.returncode == 0, migrated.stdout
    port = free_port()
    text = (rendered["Kubernetes"] / "k8s/pgbouncer/pgbouncer.ini").read_text()
    for there, here in (
        ("host=database.example.com port=5432", f"host={server.host} port=5432"),
        ("listen_addr = 0.0.0.0", "listen_addr = 127.0.0.1"),
        ("listen_port = 6432", f"listen_port = {port}"),
        ("/etc/pgbouncer", str(tmp_path)),
        # A socket has none.
        ("server_tls_sslmode = require", "server_tls_sslmode = disable"),
    ):
        assert there in text
        text = text.replace(there, here)
    (tmp_path / "pgbouncer.ini").write_text(text)
    (tmp_path / "userlist.txt").write_text('"postgres" "secret"\n')
    for part in (tmp_path, *tmp_path.parents[:-2]):
        part.chmod(0o755)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [*(user if os.getuid() == 0 else []), program, str(tmp_path / "pgbouncer.ini")]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=clean_environment()) as pooler,
    ):
        try:
            url = f"postgresql://postgres:secret@127.0.0.1:{port}/pooled"
            with producing(project, url, DATABASE_POOLED="true", RUN_MIGRATIONS="false") as service:
                for _ in range(20):
                    assert service.get("/api/authors").status_code == 200
        finally:
            pooler.kill()
    assert "login attempt" in (tmp_path / "log").read_text()
