"""One format for every log line: text in development, JSON in production.

A person who runs a command sees plain lines instead: see `is_read_by_a_person`.
"""

import logging.config
import re
import sys
from functools import partial
from typing import Any

import click
import psycopg
import structlog
from flask import current_app

from app.config import Settings

SHARED_PROCESSORS: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

PLAIN_LINE = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
TEXT_LINE = structlog.dev.ConsoleRenderer(colors=False)
JSON_LINE = structlog.processors.JSONRenderer()

COMMANDS_OF_THE_SERVICE = (" prepare", " run")

log = structlog.get_logger("start")


def logging_config(settings: Settings) -> dict[str, Any]:
    """The dictionary for `logging.config.dictConfig`; gunicorn uses the same one."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structlog": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": SHARED_PROCESSORS,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    partial(_render, settings.production),
                ],
            }
        },
        "filters": {"news": {"()": lambda: _is_news}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structlog"}},
        "root": {"handlers": ["stderr"], "level": settings.log_level},
        "loggers": {
            # A dozen lines for each command, all of them irrelevant.
            "alembic.runtime.plugins": {"level": "WARNING"},
            "alembic.ddl.postgresql": {"level": "WARNING"},
            "alembic.runtime.migration": {"filters": ["news"]},
            # It says where it found its credentials, each time.
            "botocore": {"level": "WARNING"},
            # gunicorn's own handler would print every line twice.
            "gunicorn.error": {"handlers": [], "propagate": True},
        },
    }


def _render(production: bool, logger: Any, method: str, event: Any) -> Any:
    if is_read_by_a_person(production):
        for field in ("timestamp", "level", "logger"):
            event.pop(field, None)
        return PLAIN_LINE(logger, method, event)
    if production:
        error = event.get("exc_info")
        event = structlog.processors.format_exc_info(logger, method, event)
        if "exception" in event:
            event["exception"] = without_rows(event["exception"], error)
        return JSON_LINE(logger, method, event)
    return TEXT_LINE(logger, method, event)


def is_read_by_a_person(production: bool) -> bool:
    """Whether this comes from a `flask` command, not from the service or a deployment job."""
    command = click.get_current_context(silent=True)
    if command is None or command.command_path.endswith(COMMANDS_OF_THE_SERVICE):
        return False
    return not production or sys.stderr.isatty()


def without_rows(words: str, error: Any) -> str:
    """What is said of an error, without PostgreSQL's detail, which shows values of the row."""
    each = error[1] if isinstance(error, tuple) else error
    while isinstance(each, BaseException):
        if isinstance(each, psycopg.Error) and (detail := each.diag.message_detail):
            words = words.replace(detail, "(hidden)")
        each = each.__cause__ or each.__context__
    # Also where another exception repeats what PostgreSQL said.
    return re.sub(r"\b(DETAIL|CONTEXT):  .*", r"\1:  (hidden)", words)


def say(words: str, err: bool = False) -> None:
    """Say what a command does: to a person in a plain line, else in a line of the log."""
    production = current_app.config["SETTINGS"].production
    if not production or is_read_by_a_person(production):
        click.echo(words, err=err)
    else:
        log.info(words)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("Context impl", "Will assume"))


def init_app(settings: Settings) -> None:
    """Treat the log lines of structlog and of the standard library alike."""
    logging.config.dictConfig(logging_config(settings))
    logging.captureWarnings(settings.production)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *SHARED_PROCESSORS,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
