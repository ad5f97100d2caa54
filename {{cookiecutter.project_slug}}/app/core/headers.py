"""Headers of every answer: what a browser must not do with it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from apiflask import APIFlask
from flask import Flask, Request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface

from app.config import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CSP = "Content-Security-Policy"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # An answer that is no page loads nothing, whatever a browser takes it for.
    CSP: "default-src 'none'; frame-ancestors 'none'",
}
# A year, as usual.
HSTS = "max-age=31536000"


def page_policy(scripts: Iterable[str] = (), styles: Iterable[str] = ()) -> str:
    """A page loads only files of this service, and nothing inline but what has these hashes."""
    script_sources = " ".join(["'self'", *scripts])
    style_sources = " ".join(["'self'", *styles])
    return (
        f"default-src 'none'; script-src {script_sources}; style-src {style_sources}; "
        "img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


PAGE = page_policy()


def init_app(app: APIFlask, settings: Settings) -> None:
    """Add the headers that an answer does not have yet."""
    app.config["SESSION_COOKIE_SECURE"] = settings.production
    app.config["SESSION_COOKIE_HTTPONLY"] = True
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.session_interface = Sessions()
    app.wsgi_app = Completed(app, settings.production)  # type: ignore[method-assign]


class Sessions(SecureCookieSessionInterface):
    """Flask's, which would prepare to check a signature even where there is no cookie."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """The session that the client has, or an empty one."""
        has_cookies = "HTTP_COOKIE" in request.environ
        return super().open_session(app, request) if has_cookies else self.session_class()


class Completed:
    """Around all of the service: a list of headers is completed in a fifth of werkzeug's time."""

    def __init__(self, app: APIFlask, production: bool) -> None:
        self.service: WSGIApplication = app.wsgi_app
        self.production = production

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Serve a request."""

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            there = {name.lower(): value for name, value in headers}
            is_page = there.get("content-type", "").startswith("text/html")
            missing = HEADERS | {CSP: PAGE} if is_page else dict(HEADERS)
            # Whoever keeps a copy asks each time whether it is still right, which needs an ETag.
            missing["Cache-Control"] = "no-cache" if "etag" in there else "no-store"
            if self.production and environ["wsgi.url_scheme"] == "https":
                missing["Strict-Transport-Security"] = HSTS
            added = [item for item in missing.items() if item[0].lower() not in there]
            return start_response(status, headers + added, *more)

        return self.service(environ, start)
