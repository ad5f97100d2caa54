"""What clients can do to the service on a socket, without and with the proxy of nginx.conf."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, Project, Server, copy_project, free_port, run, wait_until

# More than the threads of all workers.
CROWD = 40
MIB = 1024 * 1024
AUTHOR = b'{"name": "An author"}'
POST = b"POST /api/authors HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH, CHUNKED = b"Content-Length: %d\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def service(generated: Path, seeded: Path, tmp_path_factory) -> Iterator[Server]:
    """The default project, whose clients have 3 s."""
    project = copy_project(generated, tmp_path_factory.mktemp("limits") / "book-service")
    shutil.copytree(seeded, project.path / ".postgres")
    with project.serving(CLIENT_SECONDS="3", PROXY_HOPS="1") as server:
        yield server


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def connect(url: str, *sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port_of(url)), PATIENCE)
    for data in sent:
        client.sendall(data)
    return client


def talk(server: Server, *sent: bytes, end: bool = False) -> list[tuple[int, str, bytes]]:
    """Send this; the answers until the service closes the connection: status, type, body."""
    with connect(server.url) as client, contextlib.suppress(ConnectionError):
        with contextlib.suppress(ConnectionError):
            for data in sent:
                client.sendall(data)
            if end:
                client.shutdown(socket.SHUT_WR)
        text = b""
        while data := client.recv(MIB):
            text += data
    answers = []
    while text:
        head, _, text = text.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = int(headers.get("content-length", 0))
        status = int(lines[0].split()[1])
        answers.append((status, headers.get("content-type", ""), text[:length]))
        text = text[length:]
    return answers


def chunks(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def padded(body: bytes, length: int) -> bytes:
    return b" " * (length - len(body)) + body


# What gunicorn itself answers


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, b"nonsense\r\n\r\n"),
        (400, b"GET /healthz HTTP/1.1\n\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\n"),
        (400, b"GET /healthz HTTP/9.9\r\n\r\n"),
        (400, GET + b"A header\r\n\r\n"),
        (400, POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n12"),
        (400, POST + b"Content-Length: -1\r\n\r\n"),
        (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, POST + CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n"),
        (400, POST + CHUNKED + b"-1\r\nabc\r\n0\r\n\r\n"),
        (400, POST + CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n"),
        (400, POST + CHUNKED + b"\r\n0\r\n\r\n"),
        (400, POST + CHUNKED + b"2\r\nabc\r\n0\r\n\r\n"),
        (414, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n"),
        (414, b"GET /" + b"a" * 100_000),
        (417, POST + b"Expect: a miracle\r\n" + LENGTH % 0),
        (431, GET + b"A: " + b"a" * 9000 + b"\r\n\r\n"),
        (431, GET + b"A: a\r\n" * 200 + b"\r\n"),
        (431, GET + b"A: a\r\n" * 20_000),
        (501, POST + b"Transfer-Encoding: magic\r\n\r\n"),
    ],
)
def test_what_is_not_http_is_a_problem(service: Server, status: int, request_: bytes):
    ((answered, media_type, body),) = talk(service, request_)
    assert (answered, media_type) == (status, PROBLEM)
    assert json.loads(body)["status"] == status
    assert b"<" not in body


@pytest.mark.parametrize(
    "request_",
    [b"GET /hea", GET, POST + LENGTH % 99 + b"{", POST + CHUNKED + b"ff\r\n{"],
)
def test_a_request_without_its_end(service: Server, request_: bytes):
    ((status, media_type, body),) = talk(service, request_, end=True)
    assert (status, media_type) == (400, PROBLEM)
    assert b"ended before" in body


# Bodies


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_body_in_chunks_is_a_body(service: Server, size: int):
    body = b'{"name": "In chunks of %d"}' % size
    ((status, _, _),) = talk(service, POST + b"Connection: close\r\n", CHUNKED, chunks(body, size))
    assert status == 201


def test_a_body_in_chunks_that_arrives_in_pieces(service: Server):
    sent = (
        POST + b"Connection: close\r\n" + CHUNKED + b"3;a=b\r\n{  \r\n1\r\n}\r\n0\r\nX: y\r\n\r\n"
    )
    ((status, _, body),) = talk(service, *[sent[n : n + 1] for n in range(len(sent))])
    assert status == 422, body


@pytest.mark.parametrize("longer", [0, 1])
@pytest.mark.parametrize("size", [None, 64, 4096, 2 * MIB])
def test_the_longest_body(service: Server, size: int | None, longer: int):
    body = padded(b"[]", MIB + longer)
    framed = LENGTH % len(body) + body if size is None else CHUNKED + chunks(body, size)
    ((status, media_type, _),) = talk(service, POST + b"Connection: close\r\n", framed)
    assert (status, media_type) == (413 if longer else 422, PROBLEM)


@pytest.mark.parametrize(
    "sent",
    [
        LENGTH % 10**9 + b"{",
        CHUNKED + b"3b9aca00\r\n{",
        b"Expect: 100-continue\r\n" + LENGTH % 10**9,
        CHUNKED + b"1;" + b"a" * MIB,
        CHUNKED + chunks(b" " * MIB, 1),
    ],
)
def test_nobody_waits_for_a_body_that_is_too_long(service: Server, sent: bytes):
    ((status, media_type, _),) = talk(service, POST, sent)
    assert (status, media_type) == (413, PROBLEM)


def test_who_asks_whether_to_send_a_body_is_told(service: Server):
    with connect(service.url, POST + b"Expect: 100-continue\r\n" + LENGTH % len(AUTHOR)) as client:
        assert client.recv(MIB) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(AUTHOR)
        assert client.recv(MIB).startswith(b"HTTP/1.1 ")


def test_requests_that_arrive_together(service: Server):
    body = b'{"name": 1}'
    sent = POST + LENGTH % len(body) + body + POST + CHUNKED + chunks(body, 3) + GET + b"\r\n"
    statuses = [status for status, _, _ in talk(service, sent * 20, end=True)]
    assert statuses == [422, 422, 200] * 20


def test_who_is_believed(service: Server):
    forged = b"X-Forwarded-Proto: https\r\nSCRIPT_NAME: /docs\r\n"
    ((status, _, body),) = talk(service, GET + forged + b"Connection: close\r\n\r\n")
    assert (status, body) == (200, b'{"status":"alive"}\n')


# Clients that take their time


@contextlib.contextmanager
def crowd(url: str, sent: bytes, number: int = CROWD) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as clients:
        yield [clients.enter_context(connect(url, sent)) for _ in range(number)]


SLOW = {
    "silent": b"",
    "idle": GET + b"\r\n",
    "head": b"GET / HTTP/1.1\r\nX: ",
    "body": POST + LENGTH % 1000 + b"{",
    "chunks": POST + CHUNKED + b"3e8\r\n{",
    "answer": b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n",
}


def drip(clients: list[socket.socket]) -> None:
    for client in clients:
        with contextlib.suppress(OSError):
            client.send(b"a")


@pytest.mark.parametrize("what", SLOW)
def test_slow_clients_cost_nobody_a_second(service: Server, what: str):
    with crowd(service.url, SLOW[what]) as clients:
        for _ in range(20):
            drip(clients if what in ("head", "body", "chunks") else [])
            assert service.get("/healthz").status_code == 200
            assert service.get("/api/authors").status_code == 200


@pytest.mark.faults
@pytest.mark.parametrize("what", ["silent", "head", "body", "chunks"])
def test_a_client_has_its_time_and_no_more(service: Server, what: str):
    """The time is for the whole, so it does not help to send something now and then."""
    with connect(service.url, SLOW[what]) as client:
        client.settimeout(0.2)
        started, said = time.monotonic(), None
        while said is None and time.monotonic() < started + PATIENCE:
            if what != "silent":
                drip([client])
            with contextlib.suppress(TimeoutError):
                said = client.recv(MIB)
        assert time.monotonic() - started > 2.5
    if what == "silent":
        assert said == b""
    else:
        assert said.startswith(b"HTTP/1.1 408 ")
        assert PROBLEM.encode() in said


@pytest.mark.faults
def test_more_connections_than_the_service_takes(service: Server):
    """Those who wait longest make room for the others."""
    with crowd(service.url, SLOW["head"], 2000):
        for _ in range(20):
            assert service.get("/healthz").status_code == 200


@pytest.mark.faults
def test_more_memory_than_the_service_gives(service: Server):
    with crowd(service.url, b"", 300) as clients:
        for client in clients:
            client.settimeout(5)
            with contextlib.suppress(OSError):
                client.sendall(POST + LENGTH % MIB + b" " * (MIB - 1))
        assert service.get("/healthz").status_code == 200
        pages = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
        for worker in pages.read_text().split():
            status = Path(f"/proc/{worker}/status").read_text()
            assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 400_000, status


# The proxy


@contextlib.contextmanager
def proxy(config: Path, upstream: int, folder: Path) -> Iterator[Server]:
    """nginx as in production, without TLS, with other addresses and a folder of this test."""
    if not (nginx := shutil.which("nginx", path="/usr/sbin:/usr/bin")):
        pytest.skip("nginx is not installed")
    port = free_port()
    text = config.read_text()
    for there, here in (
        ("backend:5000", f"127.0.0.1:{upstream}"),
        ("listen 8080", f"listen 127.0.0.1:{free_port()}"),
        ("listen 8443 ssl", f"listen 127.0.0.1:{port}"),
        ("$scheme = http", "$scheme = never"),
        ("(healthz|readyz)", "hidden"),
        ("auth_delay 10s", "auth_delay 1s"),
        ("/tmp/", f"{folder}/"),
    ):
        assert there in text
        text = text.replace(there, here)
    text = re.sub("^ *ssl_.*\n", "", text, flags=re.MULTILINE)
    (folder / "nginx.conf").write_text(text)
    command = [nginx, "-e", "stderr", "-c", folder / "nginx.conf", "-g", "daemon off;"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        server = Server(process, f"http://127.0.0.1:{port}", folder / "log")
        try:
            wait_until(lambda: server.status("/hidden") == 404, "nginx serves")
            yield server
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def proxied(service: Server, generated: Path, tmp_path_factory) -> Iterator[Server]:
    folder = folder_of_nginx(tmp_path_factory)
    with proxy(generated / "nginx.conf", port_of(service.url), folder) as server:
        yield server


def folder_of_nginx(tmp_path_factory) -> Path:
    """A folder that nginx's unprivileged workers may write to."""
    folder: Path = tmp_path_factory.mktemp("nginx")
    for part in (folder, *folder.parents[:-2]):
        part.chmod(0o755)
    folder.chmod(0o777)
    return folder


@pytest.mark.parametrize("what", SLOW)
def test_slow_clients_of_the_proxy_harm_nobody(proxied: Server, what: str):
    with crowd(proxied.url, SLOW[what], 300) as clients:
        for _ in range(20):
            drip(clients if what in ("head", "body", "chunks") else [])
            assert proxied.get("/healthz").status_code == 200
            assert proxied.get("/api/authors").status_code == 200


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, b"nonsense\r\n\r\n"),
        (414, b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n"),
        (413, POST + LENGTH % 10**9),
    ],
)
def test_what_the_proxy_refuses_is_a_problem(proxied: Server, status: int, request_: bytes):
    ((answered, media_type, body),) = talk(proxied, request_)
    assert (answered, media_type) == (status, PROBLEM)
    assert json.loads(body)["status"] == status


def test_the_proxy_passes_on_who_asks(proxied: Server, service: Server):
    sent = (
        b"X-Forwarded-For: 6.6.6.6\r\nX-Request-ID: seen-by-the-proxy\r\nConnection: close\r\n\r\n"
    )
    ((status, _, _),) = talk(proxied, GET + sent)
    assert status == 200
    assert "6.6.6.6" not in service.log.read_text()


def test_requests_wait_for_a_replica_and_none_is_sent_twice(generated: Path, tmp_path_factory):
    port = free_port()
    post = POST.replace(b"Host: x", b"Host: x\r\nConnection: close")
    post += LENGTH % len(AUTHOR) + AUTHOR
    folder = folder_of_nginx(tmp_path_factory)
    with (
        proxy(generated / "nginx.conf", port, folder) as server,
        connect(server.url, post) as one,
        connect(server.url, post) as two,
    ):
        found_nobody = "Connection refused"
        wait_until(lambda: server.log.read_text().count(found_nobody) > 1, "both wait")
        with socket.create_server(("127.0.0.1", port)) as replica:
            replica.settimeout(PATIENCE)
            for last_words in (b"", b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"):
                connection, _ = replica.accept()
                with connection:
                    data = b""
                    while not data.endswith(AUTHOR):
                        data += connection.recv(MIB)
                    connection.sendall(last_words)
            answers = sorted(client.recv(MIB) for client in (one, two))
            replica.settimeout(3)
            with pytest.raises(TimeoutError):
                replica.accept()
    assert [answer.split()[1] for answer in answers] == [b"201", b"502"]
    assert b"WWW-Authenticate" not in answers[0]


# compose.production.yaml


def test_compose_in_production(generated: Path, tmp_path: Path):
    file = generated / "compose.production.yaml"
    result = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
    assert result.returncode == 0, result.stdout
    if run("docker", "compose", "version").returncode != 0:
        pytest.skip("Docker Compose is not installed")
    shutil.copy(file, tmp_path / file.name)
    command = ["docker", "compose", "--file", file.name, "config", "--format", "json"]
    result = Project(tmp_path).run(*command, HTTP_PORT="127.0.0.1:8080")
    assert result.returncode == 0, result.stdout
    services = json.loads(result.stdout)["services"]
    assert {name for name, service in services.items() if service.get("ports")} == {"proxy"}
    assert [port.get("host_ip") for port in services["proxy"]["ports"]] == ["127.0.0.1", None]
    assert [port["published"] for port in services["proxy"]["ports"]] == ["8080", "443"]
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["restart"] == "unless-stopped"
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert service["logging"]["options"]["max-size"]
        assert service["labels"]["service"] == "book-service"
    assert services["backend-a"]["environment"]["PROXY_HOPS"] == "1"
