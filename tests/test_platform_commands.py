"""The commands of Heroku, systemd, kubectl, aws and PgBouncer, in the project's own environment."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import (
    Project,
    clean_environment,
    commit,
    copy_project,
    free_port,
    run,
)
from platforms import (
    SLUG,
    aws_starts,
    blocks,
    heroku_starts,
    rendered_answers,
    section,
    unit_of,
)
from production import SECRET, Database, Load, Relay, producing, running


@pytest.fixture(scope="module")
def rendered(shared: Path) -> dict[str, Path]:
    return rendered_answers(shared)


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
        # The line in cron, with the settings in a file, as there.
        file = tmp_path / "settings.env"
        file.write_text(f"DATABASE_URL={settings['DATABASE_URL']}\nSECRET_KEY={SECRET}\n")
        (cron,) = blocks(rendered["none"], "A machine with systemd", "crontab")
        nightly = cron.removeprefix("15 3 * * * ").replace(f"/srv/{SLUG}", str(place))
        nightly = nightly.replace(f"/var/backups/{SLUG}", str(tmp_path / "kept"))
        # Without the tools of development, PostgreSQL's client is the machine's.
        (client,) = (project.path / ".venv/lib").glob(
            "python*/site-packages/*/pginstall18/bin/pg_dump"
        )
        path = f"{client.parent}:{os.environ['PATH']}"
        result = run("sh", "-c", nightly.replace(f"/etc/{SLUG}.env", str(file)), PATH=path)
        assert result.returncode == 0, result.stdout
        assert len([*(tmp_path / "kept").glob("*.dump")]) == 1
        # Back: the folder of the earlier release, and the loop; one port will do.
        link, loop = script[script.index("ln -sfn") :].split("\n", 1)
        loop = loop.replace(f" {ports[1]}", "")
        result = run("sh", "-euc", f"{link}\n{loop}", TAG="v1", **settings)
        assert result.returncode == 0, result.stdout
        assert (place / "current").resolve() == place / "v1"
        # A release that does not start stops the first instance, not the second.
        second = int((tmp_path / f"pid.{ports[1]}").read_text())
        impatient = script[script.index("for port") :].replace("--retry 60", "--retry 1")
        (place / "v1/app/__init__.py").write_text("a mistake")
        result = run("sh", "-uc", impatient, TAG="v1", **settings)
        assert int((tmp_path / f"pid.{ports[1]}").read_text()) == second
        os.kill(second, 0)
    finally:
        for file in tmp_path.glob("pid.*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), 9)
                os.killpg(int(file.read_text()), 9)


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

    (script,) = blocks_of_part(project.path, "Rolling out", "### Going back")
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
    once, private, release, *restoring = blocks(project.path, "Kubernetes", "sh")
    nowhere = tmp_path / "config"
    cluster = {"name": "x", "cluster": {"server": f"http://127.0.0.1:{free_port()}"}}
    context = {"name": "x", "context": {"cluster": "x"}}
    nowhere.write_text(
        json.dumps({"clusters": [cluster], "contexts": [context], "current-context": "x"})
    )
    settings = {"KUBECONFIG": str(nowhere), "DATABASE_URL": "postgresql://u:p@h/d"}
    settings |= {"IMAGE": "r:5000/x", "REGISTRY_USER": "u", "REGISTRY_PASSWORD": "p"}
    private, patch = private.split("kubectl patch ")
    dry = "kubectl create --dry-run=client --output=json"
    result = project.run("sh", "-euc", (once + private).replace("kubectl create", dry), **settings)
    assert result.returncode == 0, result.stdout
    for name in (SLUG, "DATABASE_URL", "SECRET_KEY", "registry"):
        assert f'"{name}"' in result.stdout
    assert f"namespace: {SLUG}" in nowhere.read_text()
    # It finds nothing wrong with them but that nobody is there.
    lines = [f"kubectl patch {patch.strip()}", *"".join(restoring).splitlines()]
    lines += re.findall("`(kubectl .*?)`", section(project.path, "Kubernetes"))
    script = "\n".join(f"{line} --request-timeout=2s" for line in lines)
    script = script.replace(" -- flask", " --request-timeout=2s -- flask")
    result = project.run("sh", "-c", script, **settings)
    assert result.stdout.count("was refused - did you") == len(lines), result.stdout
    result = project.run("sh", "-euc", release, TAG="1.10", **settings)
    assert "connection refused" in result.stdout
    made = project.run("kubectl", "kustomize", "k8s/production").stdout
    assert "name: migrate-1.10\n" in made
    assert made.count(f"image: registry.example.com/{SLUG}:1.10\n") == 4


# What `kubectl` answers to k8s/deploy.sh, about a Job that ends as the variable JOB says.
KUBECTL = """#!/bin/sh
echo "kubectl $*" >&2
case "$*" in
*"get job "*) echo "$JOB" ;;
*"get pods "*) echo "$POD" ;;
esac
"""


@pytest.mark.parametrize(
    ("tag", "job", "pod", "said"),
    [
        ("1e5", "SuccessCriteriaMet Complete", "", ""),
        ("20261126", "FailureTarget Failed", "", "did not succeed (FailureTarget Failed). The"),
        ("v1.2-rc.1", "", "ImagePullBackOff", "did not succeed (ImagePullBackOff). The"),
        *[
            (tag, "Complete", "", "after the tag")
            for tag in ("V1_2", "latest", "-v", "v1.", "v" * 56)
        ],
    ],
)
def test_kubernetes_rolls_only_what_has_migrated(rendered, tmp_path, tag, job, pod, said):
    shutil.copytree(rendered["Kubernetes"] / "k8s", tmp_path / "k8s")
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB": job, "POD": pod}
    result = run(tmp_path / "k8s/deploy.sh", tag, **settings)
    assert (result.returncode == 0) == (said == ""), result.stdout
    assert said in result.stdout
    assert ("rollout status" in result.stdout) == (said == "")
    assert (f"logs job/migrate-{tag}" in result.stdout) == ("did not succeed" in said)
    if "after the tag" not in said:
        text = (tmp_path / "k8s/production/kustomization.yaml").read_text()
        assert f'newTag: "{tag}"' in text


# What `aws` does in aws-deploy.sh and aws-run.sh, with the task run here.
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
        assert option("--query") == "tasks[0].taskArn || to_string(failures)"
        if "NOTHING_STARTS" in os.environ:
            print('[{"reason":"RESOURCE:MEMORY"}]')
            sys.exit()
        command = json.loads(option("--overrides"))["containerOverrides"][0]["command"]
        with (folder / "log").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log).returncode
        (folder / "code").write_text(str(code))
        print("arn:aws:ecs:a-run/1")
    case ["ecs", "describe-tasks"]:
        if option("--query").endswith("lastStatus") and not (folder / "asked").exists():
            (folder / "asked").touch()
            sys.exit("ThrottlingException")
        answers = {"lastStatus": "STOPPED", "stoppedReason": "it ended"}
        answers["containers[0].exitCode"] = (folder / "code").read_text()
        print(answers[option("--query").removeprefix("tasks[0].")])
    case ["logs", "get-log-events"]:
        assert option("--log-group-name") == "log-of-the-stack"
        assert option("--log-stream-name") == "service/backend/1"
        print((folder / "log").read_text(), end="")
"""


def test_aws_rolls_only_what_has_migrated(
    project: Project, server: Database, rendered, tmp_path: Path
):
    server.sql("CREATE DATABASE aws")
    for name in ("aws.yaml", "aws-deploy.sh", "aws-run.sh"):
        shutil.copy(rendered["AWS"] / name, project.path)
    program = tmp_path / "aws"
    program.write_text(AWS)
    program.chmod(0o755)
    *_, service = aws_starts(rendered["AWS"])
    url = f"postgresql://postgres@/aws?host={server.host}"
    settings = service.settings | {"APP_ENV": "production", "DATABASE_URL": url}
    settings["BACKUP_DIR"] = str(tmp_path / "kept")
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
    assert "Running upgrade  -> 0001" in result.stdout
    assert server.__class__(server.host, "aws").sql("SELECT count(*) FROM books") == [(0,)]

    # Any other command, with words as they were written.
    name = tmp_path / 'kept/a "b" \\c\n$d.dump'
    for words in (["create", str(name)], ["verify", str(name)]):
        result = project.run("./aws-run.sh", "flask", "backup", *words, **settings)
        assert result.returncode == 0, result.stdout
    assert "is whole" in result.stdout
    assert "serving-of-the-stack" in (tmp_path / "calls").read_text()

    (tmp_path / "calls").unlink()
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "DATABASE_WAIT_SECONDS": "1"}
    result = project.run("./aws-deploy.sh", "image:v2", **settings | nowhere)
    assert result.returncode == 1
    assert "It ended with 1: it ended\n" in result.stdout
    assert "The migration was not seen to succeed. The service was not touched." in result.stdout
    assert "Serving=" not in (tmp_path / "calls").read_text()
    result = project.run("./aws-deploy.sh", "image:v2", NOTHING_STARTS="1", **settings)
    assert result.returncode == 1
    assert 'No task started: [{"reason":"RESOURCE:MEMORY"}]\n' in result.stdout
    assert "Serving=" not in (tmp_path / "calls").read_text()
    assert "Usage: ./aws-deploy.sh IMAGE" in project.run("./aws-deploy.sh", **settings).stdout
    assert "Usage: ./aws-run.sh COMMAND" in project.run("./aws-run.sh", **settings).stdout


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
    # Another user than ours may not use the server's socket.
    relay = Relay(server)
    relay.port = relay.listener.getsockname()[1]
    text = (rendered["Kubernetes"] / "k8s/pgbouncer/pgbouncer.ini").read_text()
    for there, here in (
        ("host=database.example.com port=5432", f"host=127.0.0.1 port={relay.port}"),
        ("listen_addr = 0.0.0.0", "listen_addr = 127.0.0.1"),
        ("listen_port = 6432", f"listen_port = {port}"),
        ("/etc/pgbouncer", str(tmp_path)),
        # This server has none.
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
        relay,
    ):
        try:
            url = f"postgresql://postgres:secret@127.0.0.1:{port}/pooled"
            with producing(project, url, DATABASE_POOLED="true", RUN_MIGRATIONS="false") as service:
                for _ in range(20):
                    assert service.get("/api/authors").status_code == 200
        finally:
            pooler.kill()
    assert "login attempt" in (tmp_path / "log").read_text()
