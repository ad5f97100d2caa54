"""Settings: every fault named at once, no secret shown, `.env.example` complete."""

import re
import secrets
from pathlib import Path

import pytest

from app.config import (
    DEVELOPMENT_SECRET_KEY,
    ROOT,
    SETTING_NAMES,
    InvalidSettings,
    Settings,
    load_settings,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Production, with no other setting in the environment and no `.env`."""
    for name in SETTING_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("APP_ENV", "production")
    monkeypatch.setattr("app.config.ROOT", tmp_path)
    monkeypatch.setattr("app.config.SECRETS", tmp_path / "nowhere")


def fault(**environment: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(InvalidSettings) as caught:
            load_settings()
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_postgresql_url_is_psycopg(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("SECRET_KEY", secrets.token_hex(32))
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://me:p%40%2F%3Ass@db:5432/name?sslmode=require")
    url = load_settings().database_url
    assert url is not None
    assert (url.drivername, url.password) == ("postgresql+psycopg", "p@/:ss")
    assert url.query == {"sslmode": "require"}
    assert "p@/:ss" not in repr(load_settings())


def test_production_names_all_that_is_missing() -> None:
    message = fault()
    assert "DATABASE_URL is not set" in message
    assert "SECRET_KEY is not set" in message


@pytest.mark.parametrize("secret", ["x", "   ", "changeme", "a" * 64, DEVELOPMENT_SECRET_KEY])
def test_production_refuses_a_secret_that_can_be_guessed(secret: str) -> None:
    message = fault(SECRET_KEY=secret)
    assert "SECRET_KEY " in message
    assert "secrets.token_hex(32)" in message


def test_production_refuses_the_debugger() -> None:
    assert "FLASK_DEBUG is on" in fault(FLASK_DEBUG="1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRUSTED_HOSTS", "https://example.com"),
        ("TRUSTED_HOSTS", "example.com:443"),
        ("TRUSTED_HOSTS", "example.com,*.example.org"),
        ("CORS_ORIGINS", "app.example.com"),
        ("CORS_ORIGINS", "https://app.example.com/"),
    ],
)
def test_lists_whose_items_could_never_match(name: str, value: str) -> None:
    assert f"{name} has {value.rsplit(',')[-1]!r}. It lists" in fault(**{name: value})


def test_all_faults_are_named_at_once() -> None:
    message = fault(
        SECRET_KEY=DEVELOPMENT_SECRET_KEY, DATABASE_URL="mysql://me:hunter2@db/name",
        SCHEMA="Orders", PORT="http", LOG_LEVEL="loud", WEB_CONCURRENCY="0",
    )  # fmt: skip
    for name in ("SECRET_KEY", "DATABASE_URL", "SCHEMA", "PORT", "LOG_LEVEL", "WEB_CONCURRENCY"):
        assert re.search(rf"^  {name} ", message, re.MULTILINE), name
    assert "'LOUD'" in message
    assert "hunter2" not in message


def test_a_misspelt_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("APP_ENV=production\nLOG_LVEL=DEBUG\nSOMETHING_ELSE=1\n")
    message = fault()
    assert "LOG_LVEL in .env is not a setting. Did you mean LOG_LEVEL?" in message
    assert "DATABASE_URL is not set" in message
    assert "SOMETHING_ELSE" not in message


def test_secrets_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, secret = "postgresql://app:hunter2@db/app", secrets.token_hex(32)
    monkeypatch.setattr("app.config.SECRETS", tmp_path)
    (tmp_path / "database_url").write_text(f"{url}\n")
    (tmp_path / "secret_key").write_text(f"{secret}\n")
    settings = load_settings()
    assert settings.secret_key == secret
    assert settings.database_url is not None
    assert settings.database_url.password == "hunter2"
    monkeypatch.setenv("SECRET_KEY", secret[::-1])
    assert load_settings().secret_key == secret[::-1]

    (tmp_path / "database_url").write_text("mysql://app:hunter2@db/app")
    assert "DATABASE_URL starts with mysql://" in fault()
    monkeypatch.setattr("app.config.os.access", lambda file, _: file.name != "secret_key")
    message = fault()
    assert f"SECRET_KEY is in {tmp_path / 'secret_key'}, which user" in message
    assert "chmod 644 secrets/secret_key" in message


@pytest.mark.parametrize(
    ("hosts", "host", "port"),
    [
        ("h1:5432,h2:5433", "h1,h2", "5432,5433"),
        ("h1,h2:5433", "h1,h2", ",5433"),
        ("[::1]:5432,[::2]:5433", "::1,::2", "5432,5433"),
        ("%2Frun%2Fpostgresql", "/run/postgresql", None),
        ("%2Frun%2Fpostgresql:5433", "/run/postgresql", "5433"),
    ],
)
@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_hosts_that_only_libpq_reads(scheme: str, hosts: str, host: str, port: str | None) -> None:
    mode = "target_session_attrs=read-write"
    settings = load_settings(
        app_env="test", database_url=f"{scheme}://me:p%40ss@{hosts}/name?{mode}"
    )
    url = settings.database_url
    assert url is not None
    _, arguments = url.get_dialect()().create_connect_args(url)
    assert (arguments["host"], arguments.get("port")) == (host, port)
    assert (arguments["user"], arguments["password"]) == ("me", "p@ss")
    assert (arguments["dbname"], arguments["target_session_attrs"]) == ("name", "read-write")


@pytest.mark.parametrize(
    ("hosts", "host", "port"),
    [
        ("host=h1:5432&host=h2:5433", "h1,h2", "5432,5433"),
        ("host=127.0.0.1:5432&host=[::1]:5433", "127.0.0.1,::1", "5432,5433"),
        ("host=[::1]:5433", "::1", "5433"),
        ("host=[::1]&port=5433", "::1", "5433"),
        ("host=/run/postgresql:5433", "/run/postgresql", "5433"),
    ],
)
def test_hosts_as_parameters(hosts: str, host: str, port: str) -> None:
    settings = load_settings(app_env="test", database_url=f"postgresql://me@/name?{hosts}")
    url = settings.database_url
    assert url is not None
    _, arguments = url.get_dialect()().create_connect_args(url)
    assert (arguments["host"], str(arguments["port"])) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "postgresql://me:hunter2@db:port/name",
        "postgresql://me:hunter2@h1:port,h2/name",
        "postgresql://me:hunter2@,@h1,h2/name",
        "postgresql://me:hunter2@/name?host=h1:5432&host=h2&port=5433",
    ],
)
def test_an_unreadable_url_is_not_printed(url: str) -> None:
    message = fault(DATABASE_URL=url)
    assert "DATABASE_URL cannot be read as a URL" in message
    assert url not in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "0.0.0.0:80"), ("::", "[::]:80"), ("[::1]", "[::1]:80"), ("db", "db:80")],
)
def test_an_ipv6_host_is_in_brackets_once(host: str, address: str) -> None:
    settings = load_settings(app_env="test", host=host, port=80)
    assert settings.address == address


@pytest.mark.parametrize("name", ["pg_mine", "information_schema", "1st", "a-b", "a" * 64, "a; --"])
def test_schema_names_that_are_refused(name: str) -> None:
    assert "SCHEMA is " in fault(SCHEMA=name)


def test_the_example_lists_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    example = (ROOT / ".env.example").read_text("utf-8")
    lines = re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, re.MULTILINE)
    assert {name for name, _ in lines} == SETTING_NAMES
    monkeypatch.setenv("APP_ENV", "development")
    live = Settings(_env_file=ROOT / ".env.example")
    defaults = Settings(_env_file=None, schema_name=live.schema_name)
    assert live == defaults


def test_production_does_not_read_the_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("SECRET_KEY=of this machine\n")
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/name")
    with pytest.raises(InvalidSettings, match="SECRET_KEY is not set"):
        load_settings()
    monkeypatch.setenv("APP_ENV", "test")
    assert load_settings().secret_key == "of this machine"
