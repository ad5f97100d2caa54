"""/docs shows the API to people: Swagger UI, a page with an inline script and an inline style."""

import re
from base64 import b64encode
from hashlib import sha256

from apiflask import APIFlask
from flask import Blueprint, Response
from flask_swagger_ui import get_swaggerui_blueprint

from app.config import Settings
from app.core.headers import CSP, page_policy

INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
# Of its logo; its scripts add it to the page.
INLINE_STYLE = ".logo_small_svg__cls-2{fill:#fff}.logo_small_svg__cls-3{fill:#85ea2d}"


def init_app(app: APIFlask, settings: Settings) -> None:
    """Serve the page, and let browsers accept what is inline in it, but nothing else."""
    if not settings.shows_pages:
        return
    # Unless this is set, the page contains the Host of the request.
    config = {"oauth2RedirectUrl": "/docs/oauth2-redirect.html"}
    docs: Blueprint = get_swaggerui_blueprint("/docs", "/openapi.json", config)

    @docs.after_request
    def allow_inline(response: Response) -> Response:
        if response.mimetype == "text/html" and not response.direct_passthrough:
            scripts = INLINE_SCRIPT.findall(response.get_data(as_text=True))
            response.headers[CSP] = page_policy(map(_hash, scripts), [_hash(INLINE_STYLE)])
        return response

    app.register_blueprint(docs)


def _hash(inline: str) -> str:
    return f"'sha256-{b64encode(sha256(inline.encode()).digest()).decode()}'"
