"""More requests than the service can serve: some are refused, so that the others are not late.

A request waits for a thread, then for a connection, altogether DATABASE_POOL_TIMEOUT seconds.
"""

from time import monotonic

from flask import Flask, request
from werkzeug.exceptions import ServiceUnavailable

from app.config import Settings


def init_app(app: Flask, settings: Settings) -> None:
    """Refuse requests that have waited for a thread for too long, except those of probes."""

    @app.before_request
    def refuse_if_late() -> None:
        queued_at = request.environ.get("app.queued_at")
        if queued_at is None or request.blueprint == "health":
            return
        if monotonic() - queued_at > settings.database_pool_timeout:
            raise ServiceUnavailable("The service has too much to do.", retry_after=5)
