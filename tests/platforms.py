"""What the answers to `deploy` bring, read from the files and from docs/deploying.md."""

import json
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import generate, made_once, run
from production import SECRET

ANSWERS = ["Docker", "Render", "AWS", "Kubernetes", "none"]
SLUG = "book-service"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def rendered_answers(shared: Path) -> dict[str, Path]:
    """A project for each answer, not installed, once for all tests."""
    folder = shared / "answers"
    with made_once(folder) as here:
        for answer in ANSWERS if here else []:
            result = generate(folder / answer, "install=no", f"deploy={answer}")
            assert result.returncode == 0, result.stdout
    return {answer: folder / answer / SLUG for answer in ANSWERS}


@dataclass(frozen=True)
class Start:
    """What a file starts: a command (none: the image's own), and the settings it gives to it."""

    where: str
    command: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    grace: int = 30


class CloudFormation(yaml.SafeLoader):
    """Reads `!Ref x` as {"Ref": "x"}."""

    def tag(self, name: str, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return {name: self.construct_scalar(node)}
        if isinstance(node, yaml.SequenceNode):
            return {name: self.construct_sequence(node, deep=True)}
        return {name: self.construct_mapping(node, deep=True)}


CloudFormation.add_multi_constructor("!", CloudFormation.tag)


def page(project: Path) -> str:
    return (project / "docs/deploying.md").read_text()


def section(project: Path, heading: str) -> str:
    return page(project).split(f"\n## {heading}\n")[1].split("\n## ")[0]


def blocks(project: Path, heading: str, language: str) -> list[str]:
    """The fenced blocks of a section of docs/deploying.md."""
    found = BLOCK.findall(section(project, heading))
    return [text for name, text in found if name == language]


# What the files start


def render_blueprint(project: Path) -> dict[str, Any]:
    """render.yaml with what docs/deploying.md says to add."""
    text = (project / "render.yaml").read_text()
    backup, groups = blocks(project, "Render", "yaml")
    blueprint = yaml.safe_load(text.replace("\ndatabases:\n", f"{backup}\n{groups}\ndatabases:\n"))
    service, job = blueprint["services"]
    (group,) = [each for each in job["envVars"] if "fromGroup" in each]
    service["envVars"].append(group)
    return blueprint


def render_starts(project: Path) -> list[Start]:
    """The migration, the service, the backup of each night."""
    blueprint = render_blueprint(project)
    service, backup = blueprint["services"]
    groups = {each["name"]: each["envVars"] for each in blueprint["envVarGroups"]}
    grace = service["maxShutdownDelaySeconds"]
    before = shlex.split(service["preDeployCommand"])
    nightly = shlex.split(backup["dockerCommand"])
    return [
        Start("Render", command, _given_by_render(each, groups), grace)
        for command, each in ((before, service), ([], service), (nightly, backup))
    ]


def _given_by_render(service: dict[str, Any], groups: dict[str, Any]) -> dict[str, str]:
    given = {"fromDatabase": "postgresql://app:secret@db/render", "generateValue": SECRET}
    return {
        each["key"]: each.get("value") or next(given[source] for source in given if source in each)
        for one in service["envVars"]
        for each in groups.get(one.get("fromGroup"), [one])
    }


def aws_starts(project: Path) -> list[Start]:
    """The migration, the backup of each night, the service."""
    stack = yaml.load((project / "aws.yaml").read_text(), CloudFormation)["Resources"]
    (container,) = stack["Task"]["Properties"]["ContainerDefinitions"]
    settings = {each["Name"]: each["Value"] for each in container["Environment"]}
    url = settings["DATABASE_URL"]["Sub"]
    settings["DATABASE_URL"] = url.replace("${Database.Endpoint.Address}", "db")
    assert settings["BACKUP_DIR"] == {"Sub": "s3://${Backups}"}
    settings |= {"BACKUP_DIR": "s3://bucket", "AWS_DEFAULT_REGION": "eu-central-1"}
    secrets = {"DatabasePassword": "secret", "SecretKey": SECRET}
    settings |= {each["Name"]: secrets[each["ValueFrom"]["Ref"]] for each in container["Secrets"]}
    nightly = json.loads(stack["Nightly"]["Properties"]["Target"]["Input"])
    (override,) = nightly["containerOverrides"]
    assert override["name"] == container["Name"]
    (migration,) = re.findall(
        r"aws-run.sh (flask .*?) \|\|", (project / "aws-deploy.sh").read_text()
    )
    commands = migration.split(), override["command"], []
    return [Start("AWS", command, settings, container["StopTimeout"]) for command in commands]


def kustomized(folder: Path) -> dict[str, dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder, by kind and name."""
    if shutil.which("kubectl") is None or run("kubectl", "kustomize", "--help").returncode:
        pytest.skip("kubectl with kustomize 5 is not installed")
    result = run("kubectl", "kustomize", folder)
    assert result.returncode == 0, result.stdout
    found = list(yaml.safe_load_all(result.stdout))
    return {f"{each['kind']} {each['metadata']['name']}": each for each in found}


def pod_of(thing: dict[str, Any]) -> dict[str, Any]:
    spec = thing["spec"].get("jobTemplate", thing)["spec"]
    return spec["template"]["spec"]


PODS = ["Deployment book-service", "Job migrate-v1", "CronJob backup"]
CONSOLE = "Deployment console"


def kubernetes_starts(project: Path) -> list[Start]:
    found = kustomized(project / "k8s/production")
    secret = {"DATABASE_URL": "postgresql://app:secret@db/kubernetes", "SECRET_KEY": SECRET}
    starts = []
    for pod in (pod_of(found[name]) for name in (*PODS[1:], PODS[0])):
        (container,) = pod["containers"]
        settings = secret | {each["name"]: each["value"] for each in container.get("env", [])}
        grace = pod.get("terminationGracePeriodSeconds", 30)
        starts.append(Start("Kubernetes", container.get("command", []), settings, grace))
    return starts


def console_commands(project: Path) -> list[str]:
    """What the page runs in the Deployment `console`."""
    return re.findall("kubectl exec deployment/console -- (.*)", section(project, "Kubernetes"))


def fly_starts(project: Path) -> list[Start]:
    file = tomllib.loads(blocks(project, "Fly.io", "toml")[0])
    urls = dict.fromkeys(
        ["DATABASE_URL", "DATABASE_URL_MIGRATIONS"], "postgresql://app:secret@db/fly"
    )
    settings = file["env"] | urls | {"SECRET_KEY": SECRET}
    before = shlex.split(file["deploy"]["release_command"])
    grace = file["kill_timeout"]
    return [Start("Fly.io", before, settings, grace), Start("Fly.io", [], settings, grace)]


def heroku_starts(project: Path) -> list[Start]:
    lines = dict(line.split(": ") for line in blocks(project, "Heroku", "procfile")[0].splitlines())
    words = shlex.split(blocks(project, "Heroku", "sh")[0], comments=True)
    settings = dict(word.split("=", 1) for word in words if re.match("[A-Z_]+=", word))
    settings |= {"SECRET_KEY": SECRET, "DATABASE_URL": "postgres://app:secret@db/heroku"}
    return [Start("Heroku", shlex.split(lines[name]), settings) for name in ("release", "web")]


def unit_of(project: Path) -> dict[str, str]:
    """The [Service] of the unit for systemd; of settings that occur twice, all."""
    (text,) = blocks(project, "A machine with systemd", "ini")
    lines = text.split("[Service]\n")[1].split("\n[")[0].splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def systemd_starts(project: Path) -> list[Start]:
    unit = unit_of(project)
    settings = dict(word.split("=") for word in unit["Environment"].replace("%i", "5000").split())
    settings |= {"SECRET_KEY": SECRET, "DATABASE_URL": "postgresql:///app?host=/run/postgresql"}
    grace = int(unit["TimeoutStopSec"])
    return [Start("systemd", shlex.split(unit["ExecStart"]), settings, grace)]


def all_starts(rendered: dict[str, Path]) -> list[Start]:
    return [
        *render_starts(rendered["Render"]),
        *aws_starts(rendered["AWS"]),
        *kubernetes_starts(rendered["Kubernetes"]),
        *fly_starts(rendered["none"]),
        *heroku_starts(rendered["none"]),
        *systemd_starts(rendered["none"]),
    ]
