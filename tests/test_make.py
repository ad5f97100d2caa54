"""`make demo` serves, says if its port is taken, and leaves nothing behind after Ctrl-C."""

import os
import shutil
import signal
import socket
import subprocess

import pytest
from conftest import (
    PATIENCE,
    TEMPLATE,
    Project,
    Server,
    clean_environment,
    free_port,
    run,
    wait_until,
)


@pytest.fixture
def clone(tmp_path):
    """A copy of this repository's tracked and new files, with the tools already in place."""
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=TEMPLATE)
    for name in names.stdout.splitlines():
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TEMPLATE / name, target)
    (tmp_path / "clone/.venv").symlink_to(TEMPLATE / ".venv")
    os.utime(TEMPLATE / ".venv/ready")
    return tmp_path / "clone"


def test_demo(clone):
    port = free_port()
    log = clone / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["make", "demo", f"PORT={port}"],
            cwd=clone,
            env=clean_environment(DATABASE_URL="postgresql://127.0.0.1:1/not-for-the-demo"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until(server.answers, "the demo serves")
        assert server.get("/readyz").status_code == 200
        assert len(server.get("/api/books").json()["items"]) == 4
        taken = run("make", "demo", f"PORT={port}", cwd=clone)
        assert taken.returncode != 0
        assert f"Port {port} is in use" in taken.stdout
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
    assert Project(clone / f".demo/{port}/book-service").postgres_pid() is None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert run("git", "status", "--short", "--", ".demo", cwd=TEMPLATE).stdout == ""
