"""What the answers to `deploy` bring: files that fit their platform's schema, and the service.

test_platform_images.py and test_platform_commands.py run what they name.
"""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import PATIENCE, Project, run
from platforms import (
    ANSWERS,
    CONSOLE,
    PODS,
    SLUG,
    CloudFormation,
    all_starts,
    aws_starts,
    blocks,
    kubernetes_starts,
    kustomized,
    page,
    pod_of,
    render_blueprint,
    render_starts,
    rendered_answers,
    section,
    unit_of,
)
from schemas import FLY, RENDER

# libpq reads these beside DATABASE_URL, boto3 those of AWS, and the build of the image its groups.
OF_OTHERS = {"PGPASSWORD", "PGSSLMODE", "DEPENDENCY_GROUPS"}
OF_OTHERS |= {"AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
IN_PRODUCTION = "from app.config import load_settings; s = load_settings(app_env='production', "
IN_PRODUCTION += "secret_key='0123456789abcdef', database_url='postgresql:///x'); "


@pytest.fixture(scope="module")
def rendered(shared: Path) -> dict[str, Path]:
    return rendered_answers(shared)


# Files and their schemas


def test_a_page_has_its_answers_section_and_no_other(rendered):
    platforms = set(ANSWERS[:-1])
    for answer, project in rendered.items():
        headings = set(re.findall("^## (.*)$", page(project), re.MULTILINE))
        assert headings & platforms == {answer} - {"none"}
        assert {"Heroku", "Fly.io", "A machine with systemd"} <= headings
        if answer != "none":
            named = re.findall(r"`([\w./-]+\.(?:ya?ml|conf|sh))`", section(project, answer))
            assert [name for name in named if not (project / name).exists()] == []


def test_files_match_their_schemas(rendered):
    jsonschema.validate(yaml.safe_load((rendered["Render"] / "render.yaml").read_text()), RENDER)
    blueprint = render_blueprint(rendered["Render"])
    jsonschema.validate(blueprint, RENDER)
    for change in ({"plan": "free"}, {"healthCheckpath": "/"}, {"maxShutdownDelaySeconds": 301}):
        wrong = {**blueprint, "services": [{**blueprint["services"][0], **change}]}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, RENDER)
    (fly,) = blocks(rendered["none"], "Fly.io", "toml")
    jsonschema.validate(tomllib.loads(fly), FLY)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(fly.replace("SIGTERM", "SIGHUP")), FLY)


def test_names_in_a_blueprint_fit_together(rendered):
    blueprint = render_blueprint(rendered["Render"])
    (database,) = blueprint["databases"]
    for service in blueprint["services"]:
        (source,) = [each["fromDatabase"] for each in service["envVars"] if "fromDatabase" in each]
        assert source["name"] == database["name"]
    clients = re.findall(r"postgres:(\d+)", (rendered["Render"] / "Dockerfile").read_text())
    assert set(clients) == {database["postgresMajorVersion"]}


def test_cloudformation_is_clean(rendered, tmp_path):
    text = (rendered["AWS"] / "aws.yaml").read_text()
    files = []
    for version in ("16", "17", "18"):
        files.append(tmp_path / f"{version}.yaml")
        chosen = text.replace('EngineVersion: "18"', f'EngineVersion: "{version}"')
        files[-1].write_text(chosen.replace("postgres18", f"postgres{version}"))
    result = run("cfn-lint", "--", *files)
    assert result.returncode == 0, result.stdout
    files[-1].write_text(text.replace("HealthCheckPath", "HealthPath"))
    assert "HealthPath" in run("cfn-lint", "--", files[-1]).stdout


def with_pgbouncer(rendered: dict[str, Path], folder: Path) -> Path:
    """Do what the page says to switch the component on."""
    shutil.copytree(rendered["Kubernetes"] / "k8s", folder / "k8s")
    (line,) = re.findall("`(components: .*?)`", section(rendered["Kubernetes"], "Kubernetes"))
    file = folder / "k8s/production/kustomization.yaml"
    file.write_text(f"{file.read_text()}{line}\n")
    return folder / "k8s/production"


@pytest.mark.parametrize("version", ["1.33.0", "1.37.0"])
def test_kubernetes_files_match_the_api(rendered, tmp_path, version):
    for folder in (rendered["Kubernetes"] / "k8s/production", with_pgbouncer(rendered, tmp_path)):
        for thing in kustomized(folder).values():
            kubernetes_validate.validate(thing, version, strict=True)
    thing["spec"]["maxSkew"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(thing, version, strict=True)


def test_a_systemd_unit_is_valid_and_confined(rendered, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    (text,) = blocks(rendered["none"], "A machine with systemd", "ini")
    unit = tmp_path / f"{SLUG}@5000.service"
    unit.write_text(text)
    result = run("systemd-analyze", "verify", "--man=no", unit)
    assert unit.name not in result.stdout, result.stdout
    confined = ["systemd-analyze", "security", "--offline=yes", "--threshold=45"]
    result = run(*confined, unit)
    assert result.returncode == 0, result.stdout[-500:]
    unit.write_text(text.replace("KillMode", "KillMoed"))
    assert "KillMoed" in run("systemd-analyze", "verify", "--man=no", unit).stdout


# Files and the service


def test_every_setting_in_a_file_is_one_of_the_service(rendered, generated):
    """By its name, and by its value in production; a bucket needs packages that are not here."""
    starts = all_starts(rendered)
    for start in starts:
        if start.settings.get("BACKUP_DIR", "").startswith("s3:"):
            start.settings["BACKUP_DIR"] = "backups"
    script = (
        "import json, os, sys; from app.config import SETTING_NAMES, load_settings\n"
        "for where, settings in json.load(sys.stdin):\n"
        f"    unknown = settings.keys() - SETTING_NAMES - {OF_OTHERS}\n"
        "    assert not unknown, (where, unknown)\n"
        "    os.environ.update(settings, APP_ENV='production')\n"
        "    load_settings()\n"
        "    [os.environ.pop(name, None) for name in settings]\n"
    )
    given = json.dumps([(start.where, start.settings) for start in starts])
    project = Project(generated)
    with project.popen(project.python, "-c", script) as process:
        said, _ = process.communicate(given, PATIENCE)
    assert process.returncode == 0, said


def test_the_platforms_wait_for_running_requests(rendered, generated):
    project = Project(generated)
    longest = IN_PRODUCTION + "print(s.request_seconds + 6 + 5)"
    seconds = int(project.run(project.python, "-c", longest).stdout)
    assert seconds == 25
    for start in all_starts(rendered):
        assert start.grace > seconds, start
    assert tomllib.loads(blocks(rendered["none"], "Fly.io", "toml")[0])["kill_signal"] == "SIGTERM"
    assert unit_of(rendered["none"])["KillMode"] == "mixed"
    (probe,) = pod_of(kustomized(rendered["Kubernetes"] / "k8s/production")[PODS[0]])["containers"]
    probe = probe["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < 5  # DRAIN_SECONDS


def test_probes_ask_for_paths_and_ports_that_are_there(rendered, generated):
    paths = {"/healthz", "/readyz"}
    blueprint = yaml.safe_load((rendered["Render"] / "render.yaml").read_text())
    assert blueprint["services"][0]["healthCheckPath"] == "/readyz"
    stack = yaml.load((rendered["AWS"] / "aws.yaml").read_text(), CloudFormation)["Resources"]
    targets = stack["Targets"]["Properties"]
    assert targets["HealthCheckPath"] == "/readyz"
    ports = {
        targets["Port"],
        stack["ServiceGroup"]["Properties"]["SecurityGroupIngress"][0]["ToPort"],
    }
    fly = tomllib.loads(blocks(rendered["none"], "Fly.io", "toml")[0])["http_service"]
    assert {check["path"] for check in fly["checks"]} == {"/readyz"}
    found = kustomized(rendered["Kubernetes"] / "k8s/production")
    (container,) = pod_of(found[PODS[0]])["containers"]
    (port,) = container["ports"]
    asked = {
        container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert asked == paths
    assert {container[f"{name}Probe"]["httpGet"]["port"] for name in ("liveness", "readiness")} == {
        port["name"]
    }
    assert found[f"Service {SLUG}"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert found[f"NetworkPolicy {SLUG}"]["spec"]["ingress"] == [
        {"ports": [{"port": port["name"]}]}
    ]
    image = (generated / "Dockerfile").read_text()
    assert ports | {fly["internal_port"], port["containerPort"]} == {5000}
    assert "PORT=5000" in image
    # Until the database has answered.
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > 60  # DATABASE_WAIT_SECONDS


def test_selectors_find_pods_and_secrets_have_names(rendered, tmp_path):
    plain = kustomized(rendered["Kubernetes"] / "k8s/production")
    pooled = kustomized(with_pgbouncer(rendered, tmp_path))
    for found in (plain, pooled):
        templates = {
            name: (thing["spec"].get("jobTemplate", thing)["spec"]["template"])
            for name, thing in found.items()
            if name.split()[0] in ("Deployment", "Job", "CronJob")
        }
        labels = {name: each["metadata"]["labels"] for name, each in templates.items()}

        def chosen(selector: dict[str, Any], labels: Any = labels) -> set[str]:
            wanted = selector.get("matchLabels", selector).items()
            return {name for name, each in labels.items() if wanted <= each.items()}

        service = {f"Deployment {SLUG}"}
        assert chosen(found[f"Deployment {SLUG}"]["spec"]["selector"]) == service
        assert chosen(found[f"Service {SLUG}"]["spec"]["selector"]) == service
        assert chosen(found[f"PodDisruptionBudget {SLUG}"]["spec"]["selector"]) == service
        spread = pod_of(found[PODS[0]])["topologySpreadConstraints"][0]["labelSelector"]
        assert chosen(spread) == service
        assert chosen(found[f"NetworkPolicy {SLUG}"]["spec"]["podSelector"]) == {*PODS, CONSOLE}
        target = found[f"HorizontalPodAutoscaler {SLUG}"]["spec"]["scaleTargetRef"]
        assert f"{target['kind']} {target['name']}" in service
        for name, template in templates.items():
            for container in template["spec"]["containers"]:
                confined = container["securityContext"]
                assert confined["readOnlyRootFilesystem"], name
                assert confined["capabilities"] == {"drop": ["ALL"]}, name
                assert template["spec"]["securityContext"]["runAsNonRoot"], name
                assert container["resources"]["limits"]["memory"], name
                for source in container.get("envFrom", []):
                    assert source["secretRef"]["name"] == SLUG
                mounted = {each["name"] for each in container.get("volumeMounts", [])}
                assert mounted == {each["name"] for each in template["spec"].get("volumes", [])}
    assert pod_of(plain[PODS[2]])["volumes"] == pod_of(plain[CONSOLE])["volumes"]
    claim = pod_of(plain[PODS[2]])["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert f"PersistentVolumeClaim {claim}" in plain
    assert plain[CONSOLE]["spec"]["replicas"] == 0
    assert chosen(pooled["Service pgbouncer"]["spec"]["selector"]) == {"Deployment pgbouncer"}
    assert {"ports": [{"port": 6432}]} in pooled[f"NetworkPolicy {SLUG}"]["spec"]["egress"]
    # Only the service goes through the pooler.
    assert plain[PODS[1]] == pooled[PODS[1]]
    assert plain[PODS[2]] == pooled[PODS[2]]
    assert plain[CONSOLE] == pooled[CONSOLE]


def connections(settings: dict[str, str]) -> int:
    """Those of one replica, by the rule in docs/operating.md."""
    size = int(settings.get("DATABASE_POOL_SIZE", 8)) + int(
        settings.get("DATABASE_POOL_OVERFLOW", 7)
    )
    return int(settings.get("WEB_CONCURRENCY", 2)) * (size + 1)


def test_connections_are_counted_right(rendered):
    """A rollout has both releases; the numbers are those of the page."""
    _, render, _ = render_starts(rendered["Render"])
    assert f"at most {connections(render.settings)} connections" in section(
        rendered["Render"], "Render"
    )
    *_, aws = aws_starts(rendered["AWS"])
    stack = yaml.load((rendered["AWS"] / "aws.yaml").read_text(), CloudFormation)
    replicas = stack["Parameters"]["Replicas"]["Default"]
    most = stack["Resources"]["Service"]["Properties"]["DeploymentConfiguration"]["MaximumPercent"]
    one = replicas * connections(aws.settings)
    assert f"at most {one} connections, {one * most // 100} during" in section(
        rendered["AWS"], "AWS"
    )
    found = kustomized(rendered["Kubernetes"] / "k8s/production")
    *_, service = kubernetes_starts(rendered["Kubernetes"])
    replicas = found[f"HorizontalPodAutoscaler {SLUG}"]["spec"]["maxReplicas"]
    more = found[PODS[0]]["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    one = connections(service.settings)
    said = section(rendered["Kubernetes"], "Kubernetes")
    assert f"opens at most {one} connections" in said
    assert f"for a rollout {one * (replicas + more)}" in said
    assert one * (replicas + more) < 97  # max_connections less those for superusers


# Cells of the page


TOPICS = [
    "connection string",
    "TLS",
    "pooling",
    "migrations",
    "backups",
    "logs",
    "scaling",
    "rollback",
    "costly mistakes",
]
ROLLBACK = "test_old_code_serves_from_a_newer_database"
BACK = "test_going_back_where_a_command_runs_first"
NUMBERS = "test_connections_are_counted_right"
SHUTDOWN = "test_the_platforms_wait_for_running_requests"
# The test of each cell, in the order of TOPICS; what no test here can show says so in the cell.
CELLS = {
    "Render": ["test_render_in_the_image"] * 2
    + [NUMBERS]
    + ["test_render_in_the_image"] * 3
    + [NUMBERS, BACK, "test_render_in_the_image"],
    "AWS": ["test_aws_in_the_image_with_verified_tls"] * 2
    + [NUMBERS, "test_aws_rolls_only_what_has_migrated"]
    + ["test_aws_in_the_image_with_verified_tls"] * 2
    + [NUMBERS, ROLLBACK, "test_aws_in_the_image_with_verified_tls"],
    "Kubernetes": ["test_kubernetes_in_the_image", "test_aws_in_the_image_with_verified_tls"]
    + ["test_the_component_with_a_real_pgbouncer"]
    + ["test_kubernetes_in_the_image"] * 3
    + [NUMBERS, ROLLBACK, "test_kubernetes_in_the_image"],
    "Heroku": ["test_heroku_in_twenty_connections", "test_a_plan_with_tls_is_not_reached_without"]
    + ["test_heroku_in_twenty_connections"] * 5
    + [BACK, "test_heroku_in_twenty_connections"],
    "Fly.io": ["test_fly_in_the_image"] * 2
    + ["test_the_component_with_a_real_pgbouncer"]
    + ["test_fly_in_the_image"] * 4
    + [BACK, SHUTDOWN],
    "systemd": ["test_systemd_rolls_one_instance_after_the_other"] * 8 + [SHUTDOWN],
}
# The files that test the other tables of the page.
OTHER_TABLES = {
    "Docker": ["test_production_compose.py"],
    "Connection strings and TLS": ["test_connections.py"],
    "Deploying": ["test_platform_images.py", "test_deploys.py"],
    "Settings": ["test_limits.py", "test_logs.py", "test_metrics.py", "test_first_day.py"],
    "Behind a proxy": ["test_limits.py"],
    "Limits": ["test_limits.py"],
    "Behind a pooler": ["test_pooler.py"],
    "From CI": ["test_ci.py", "test_production_compose.py"],
    "Two roles": ["test_roles.py"],
    "Health": ["test_first_day.py", "test_trouble.py", "test_deploys.py"],
    "Rolling out": ["test_deploys.py", "test_platforms.py"],
}


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a text: their rows, as cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    rows = [[line.strip("| ").split(" | ") for line in table.splitlines()] for table in found]
    return [table[:1] + table[2:] for table in rows]


def test_every_cell_of_the_page_has_a_test_or_says_that_it_has_none(rendered):
    here = Path(__file__).parent
    tests = {
        name
        for file in here.glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    compared = "Heroku, Fly.io and systemd compared"
    for project in rendered.values():
        headings = re.findall("^##? (.*)$", page(project), re.MULTILINE)
        for heading in headings:
            part = page(project).split(f"# {heading}\n")[1].split("\n## ")[0]
            if heading not in CELLS and heading != compared:
                files = OTHER_TABLES.get(heading, [])
                assert not tables(part) or files, heading
                assert not tables(part) or all((here / name).exists() for name in files), files
                continue
            for head, *rows in tables(part):
                assert [row[0] for row in rows] == TOPICS
                for number, row in enumerate(rows):
                    for platform, cell in zip(head[-len(row) + 1 :], row[1:], strict=True):
                        is_told = re.search(r"not tested here: \w", cell)
                        assert is_told or CELLS[platform][number] in tests, (platform, row[0])
