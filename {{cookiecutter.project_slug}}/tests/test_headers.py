"""What browsers, proxies and strangers are told, and what is believed of what they say."""

import pytest
from apiflask import APIFlask
from flask import request
from flask.testing import FlaskClient

from app import create_app
from app.config import Settings

FOREIGN = {"Host": "evil.test", "X-Forwarded-Host": "evil.test", "X-Forwarded-For": "6.6.6.6"}


def service(settings: Settings, **changes: object) -> APIFlask:
    return create_app(settings.model_copy(update=changes))


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz", "/nowhere", "/openapi.json"])
def test_every_answer_has_its_headers(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in headers
    assert headers["Cache-Control"] == "no-store"


def test_only_tls_in_production_is_to_be_kept(settings: Settings) -> None:
    client = service(settings, app_env="production", proxy_hops=1).test_client()
    for scheme, kept in (("http", False), ("https", True)):
        response = client.get("/healthz", headers={"X-Forwarded-Proto": scheme})
        assert ("Strict-Transport-Security" in response.headers) == kept


def test_cookies_are_kept_from_scripts_and_other_sites(settings: Settings) -> None:
    config = service(settings, app_env="production").config
    assert config["SESSION_COOKIE_SECURE"]
    assert config["SESSION_COOKIE_HTTPONLY"]
    assert config["SESSION_COOKIE_SAMESITE"] == "Lax"


def test_production_shows_pages_only_if_told_to(settings: Settings) -> None:
    paths = ["/", "/docs", "/openapi.json"]
    hidden = service(settings, app_env="production").test_client()
    assert [hidden.get(path).status_code for path in paths] == [404] * 3
    shown = service(settings, app_env="production", show_pages=True).test_client()
    assert [shown.get(path).status_code for path in paths] == [200] * 3
    assert "Revision" not in shown.get("/").text


def test_other_hosts_are_refused(settings: Settings) -> None:
    client = service(settings, trusted_hosts=["example.com", ".example.org", "[::1]"]).test_client()
    good = "example.com", "EXAMPLE.com:8443", "example.org", "a.b.example.org", "[::1]", "[::1]:80"
    for host in good:
        assert client.get("/docs", headers={"Host": host}).status_code == 200, host
    bad = "evil.test", "a.example.com", "badexample.org", "example.com.evil.test", "[::2]", ""
    for host in bad:
        response = client.get("/docs", headers={"Host": host})
        assert (response.status_code, response.mimetype) == (400, "application/problem+json"), host
    assert client.get("/healthz", headers=FOREIGN).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/", "/openapi.json", "//docs", "/healthz/"])
def test_no_url_is_built_from_a_host(client: FlaskClient, path: str) -> None:
    response = client.get(path, headers=FOREIGN)
    assert "evil.test" not in response.text + str(response.headers)


@pytest.mark.parametrize(
    ("hops", "expected"),
    [
        (0, "http://evil.test 127.0.0.1"),
        (1, "https://example.com 203.0.113.9"),
        (2, "https://example.com 6.6.6.6"),
    ],
)
def test_only_so_many_proxies_are_believed(settings: Settings, hops: int, expected: str) -> None:
    app = service(settings, proxy_hops=hops)
    app.add_url_rule("/who", view_func=lambda: f"{request.host_url[:-1]} {request.remote_addr}")
    headers = {
        "Host": "evil.test",
        "X-Forwarded-Host": "example.com",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "9.9.9.9, 6.6.6.6, 203.0.113.9",
    }
    assert app.test_client().get("/who", headers=headers).text == expected


def test_cors(settings: Settings) -> None:
    here = "https://app.example.com"
    off = service(settings).test_client()
    on = service(settings, cors_origins=[here]).test_client()
    for client, origin, allowed in ((off, here, None), (on, here, here), (on, "http://x", None)):
        question = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        for response in (
            client.get("/healthz", headers={"Origin": origin}),
            client.options("/healthz", headers=question),
        ):
            assert response.headers.get("Access-Control-Allow-Origin") == allowed
    answer = on.options("/healthz", headers=question | {"Origin": here}).headers
    assert "GET" in answer["Access-Control-Allow-Methods"]
    assert answer["Vary"] == "Origin"
