"""Stopping without a lost request: say so, go on serving, then close the door and finish.

After SIGTERM /readyz answers 503 for DRAIN_SECONDS, so that the balancer looks elsewhere, while
everything else is served. Then the listener closes, and running requests end.
"""

import mmap
import signal
import time
from functools import partial
from typing import Any

import structlog

from app.config import Settings

# Made before the workers are forked, who therefore all see it.
_draining = mmap.mmap(-1, 1)

log = structlog.get_logger("drain")


def is_on() -> bool:
    """Whether this service has been told to stop."""
    return _draining[0] == 1


def install(settings: Settings, server: Any) -> None:
    """Make gunicorn's master process drain before it stops."""
    seconds = settings.drain_seconds
    if seconds is None:
        seconds = 5 if settings.production else 0
    server.handle_term = partial(_drain, server, seconds, server.handle_term)


def _drain(server: Any, seconds: float, stop: Any) -> None:
    _draining[0] = 1
    if seconds:
        log.info(f"stopping in {seconds:g} s (DRAIN_SECONDS); until then /readyz answers 503")
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for number in server.wait_for_signals(timeout=left):
            if number in (signal.SIGINT, signal.SIGQUIT):
                server.handle_quit()
            if number == signal.SIGCHLD:
                server.handle_chld()
        server.murder_workers()
        server.manage_workers()
    stop()
