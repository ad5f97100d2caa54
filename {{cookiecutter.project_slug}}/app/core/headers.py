"""Headers of every answer: what a browser must not do with it."""

from collections.abc import Iterable

from apiflask import APIFlask
from flask import Response, request

from app.config import Settings

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

    @app.after_request
    def add_headers(response: Response) -> Response:
        headers = response.headers
        if response.mimetype == "text/html":
            headers.setdefault(CSP, PAGE)
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        # Whoever keeps a copy asks each time whether it is still right, which needs an ETag.
        headers.setdefault("Cache-Control", "no-cache" if "ETag" in headers else "no-store")
        if settings.production and request.is_secure:
            headers.setdefault("Strict-Transport-Security", HSTS)
        return response
