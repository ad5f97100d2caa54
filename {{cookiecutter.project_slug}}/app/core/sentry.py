"""Errors to Sentry, if SENTRY_DSN is set; its packages are the dependency group `sentry`."""

import os
from typing import Any

import structlog
from structlog.contextvars import get_contextvars

from app.config import Settings
from app.core.logs import without_rows

log = structlog.get_logger("sentry")


def init_app(settings: Settings) -> None:
    """Send what is logged at ERROR, unhandled exceptions included, and nothing that is personal."""
    if settings.sentry_dsn is None or settings.app_env == "test":
        return
    import sentry_sdk
    from sentry_sdk.integrations.atexit import AtexitIntegration

    sentry_sdk.init(
        dsn=settings.sentry_dsn,
        environment=os.environ.get("SENTRY_ENVIRONMENT", settings.app_env),
        send_default_pii=False,
        # The default sends these all the same.
        max_request_body_size="never",
        include_local_variables=False,
        before_send=_without_values,
        # Its own words at the end of the process would be a line of plain text.
        integrations=[AtexitIntegration(callback=lambda *_: log.info("sending the last reports"))],
    )


def _without_values(report: Any, hint: dict[str, Any]) -> Any:
    """The report without query strings and rows, and with the id that the log lines have."""
    report.get("request", {}).pop("query_string", None)
    for exception in report.get("exception", {}).get("values", []):
        exception["value"] = without_rows(exception.get("value") or "", hint.get("exc_info"))
    if request_id := get_contextvars().get("request_id"):
        report.setdefault("tags", {})["request_id"] = request_id
    return report
