"""Who runs a command reads plain lines; the service and production's jobs write log records."""

import json

from conftest import Project, free_port

UPGRADED = "Running upgrade  -> 0001, initial\n"
NOWHERE = {"DATABASE_URL": "postgresql://127.0.0.1:1/nowhere", "DATABASE_WAIT_SECONDS": "0.5"}
PRODUCTION = {"APP_ENV": "production", "SECRET_KEY": "0123456789abcdef"}


def streams(project: Project, command: str, **environment: str) -> tuple[str, str]:
    """What a command writes to standard output and to standard error."""
    script = f"{project.python} -m flask {command} 2>errors"
    result = project.run("sh", "-c", script, **environment)
    return result.stdout, (project.path / "errors").read_text()


def test_what_a_person_reads(project: Project):
    assert streams(project, "db upgrade") == ("", UPGRADED)
    output, errors = streams(project, "db upgrade nonsense")
    assert output == ""
    assert errors == "Error: Can't locate revision identified by 'nonsense'\n"
    output, errors = streams(project, "db upgrade", **NOWHERE)
    assert output == ""
    assert errors.startswith("waiting for the database at 127.0.0.1:1/nowhere, 0 s: connection")


def test_what_a_job_of_production_writes(project: Project):
    output, errors = streams(project, "db upgrade", **PRODUCTION, **NOWHERE)
    assert output == ""
    record = json.loads(errors.splitlines()[0])
    assert record["event"].startswith("waiting for the database")
    assert {"timestamp", "level"} <= record.keys()


def test_what_the_start_of_the_service_writes(project: Project):
    _, errors = streams(project, "prepare", PORT=str(free_port()))
    (record,) = [line for line in errors.splitlines() if UPGRADED.strip() in line]
    assert "[info" in record
