"""CORS: which pages of other origins may use the API from a browser. None, unless CORS_ORIGINS."""

from apiflask import APIFlask
from flask import Response, request

from app.config import Settings

EXPOSED = "ETag, Link, Location, Retry-After, X-Request-ID"


def init_app(app: APIFlask, settings: Settings) -> None:
    """Tell browsers of CORS_ORIGINS. They ask with OPTIONS, which Flask answers for each route."""
    if not settings.cors_origins:
        return
    origins = set(settings.cors_origins)

    @app.after_request
    def allow_origin(response: Response) -> Response:
        origin = request.headers.get("Origin")
        response.vary.add("Origin")
        if not origin or origins.isdisjoint({origin, "*"}):
            return response
        headers = response.headers
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = EXPOSED
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            headers["Access-Control-Allow-Methods"] = headers.get("Allow", "")
            asked = request.headers.get("Access-Control-Request-Headers")
            headers["Access-Control-Allow-Headers"] = asked or "Content-Type"
            headers["Access-Control-Max-Age"] = "600"
        return response
