"""/docs shows the API to people: Swagger UI, a page that starts with an inline script."""

import re
from base64 import b64encode
from hashlib import sha256

from apiflask import APIFlask
from flask import Blueprint, Response
from flask_swagger_ui import get_swaggerui_blueprint

from app.config import Settings
from app.core.headers import CSP, page_policy

INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def init_app(app: APIFlask, settings: Settings) -> None:
    """Serve the page, and let it run its own script but no other."""
    if not settings.shows_pages:
        return
    # Otherwise the page would contain the Host of the request.
    config = {"oauth2RedirectUrl": "/docs/oauth2-redirect.html"}
    docs: Blueprint = get_swaggerui_blueprint("/docs", "/openapi.json", config)

    @docs.after_request
    def allow_the_script(response: Response) -> Response:
        if response.mimetype == "text/html" and not response.direct_passthrough:
            scripts = INLINE_SCRIPT.findall(response.get_data())
            hashes = [b64encode(sha256(script).digest()).decode() for script in scripts]
            policy = page_policy(*[f"'sha256-{value}'" for value in hashes])
            # Swagger UI also sets attributes named style, which run nothing.
            response.headers[CSP] = f"{policy}; style-src-attr 'unsafe-inline'"
        return response

    app.register_blueprint(docs)
