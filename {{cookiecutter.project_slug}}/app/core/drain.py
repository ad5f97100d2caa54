"""Stopping without a lost request: say so, go on serving, then close the door and finish.

After SIGTERM /readyz answers 503 for DRAIN_SECONDS, so that the balancer looks elsewhere, while
everything else is served. Then the listener closes, and running requests end.
"""

import contextlib
import ctypes
import mmap
import signal
import socket
import struct
import sys
import time
from functools import partial
from typing import Any

import structlog

from app.config import Settings

# Made before the workers are forked, who therefore all see it.
_draining = mmap.mmap(-1, 1)

# A program for the kernel (man 7 socket, SO_ATTACH_FILTER): drop packets that open a connection.
# If the flags (byte 13 of a TCP header) have SYN without ACK, keep nothing of it, else all.
SO_ATTACH_FILTER = 26
NO_NEW_CONNECTIONS = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),
        (0x54, 0, 0, 0x12),
        (0x15, 0, 1, 0x02),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 0xFFFFFFFF),
    )
)

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
    for listener in server.LISTENERS:
        _let_nobody_in(listener.sock)
    stop()


def _let_nobody_in(listener: socket.socket) -> None:
    """From now on a client finds nobody, tries again a second later, and is refused then.

    Without this, whoever connects while the listener closes would be cut off: its request is in
    a queue of the kernel that nobody reads any more. Only Linux can do it.
    """
    if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
        program = ctypes.create_string_buffer(NO_NEW_CONNECTIONS)
        length = len(NO_NEW_CONNECTIONS) // 8
        pointer = struct.pack("HL", length, ctypes.addressof(program))
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
