"""Traces to an OpenTelemetry collector, if OTEL_EXPORTER_OTLP_ENDPOINT is set.

Its packages are the dependency group `otel`. They read their other variables themselves, from
OTEL_SERVICE_NAME to OTEL_TRACES_SAMPLER.
"""

import os
from typing import Any

import click
from flask import Flask, request
from structlog.contextvars import get_contextvars

from app.config import PROJECT, Settings


def init_app(app: Flask, settings: Settings) -> None:
    """Make a span of each request, in the caller's trace, and of each statement in it."""
    if settings.otel_exporter_otlp_endpoint is None or settings.app_env == "test":
        return
    if click.get_current_context(silent=True):  # a migration would be a hundred traces
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", PROJECT["name"])
    # The service must stop in time even if the collector is gone; the default is 10 s.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    exporter = OTLPSpanExporter(f"{settings.otel_exporter_otlp_endpoint.rstrip('/')}/v1/traces")
    send = exporter.export
    exporter.export = lambda spans: send([_without_words(span) for span in spans])
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    FlaskInstrumentor.instrument_app(app, tracer_provider=provider, response_hook=_describe)
    # Not SQLAlchemy's, which refuses SQLAlchemy 2.1.
    PsycopgInstrumentor().instrument(tracer_provider=provider)


def _describe(span: Any, _status: str, _headers: Any) -> None:
    """The id that the log lines have, and no query string."""
    if span:
        span.set_attribute("request_id", get_contextvars().get("request_id", ""))
        span.set_attribute("http.target", request.path)


def _without_words(span: Any) -> Any:
    """A span that failed says so, and the log says why: an error's words may hold a whole row."""
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import Status

    kind = "exception.type"
    return ReadableSpan(
        **{name: getattr(span, name) for name in ("name", "context", "parent", "resource", "kind")},
        **{name: getattr(span, name) for name in ("attributes", "links", "start_time", "end_time")},
        instrumentation_scope=span.instrumentation_scope,
        status=Status(span.status.status_code),
        events=[
            Event(each.name, {kind: each.attributes.get(kind, "")}, each.timestamp)
            for each in span.events
        ],
    )
