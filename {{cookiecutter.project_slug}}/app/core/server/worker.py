"""gunicorn's worker with threads, in which no thread ever waits for a client.

The main loop receives requests and sends answers. A thread gets a request when all of it has
arrived, so a client that sends slowly, or takes its answer slowly, only costs some memory.
"""

import errno
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from gunicorn import util
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from app.core import drain
from app.core.headers import HEADERS
from app.core.server.connections import Connection

# Seconds for the rest of what a client sends when its connection is being closed: without them,
# it might not get the last answer.
CLOSING_SECONDS = 2
# Bytes that the connections of a worker may hold before the one that waits longest has to go.
HELD_LIMIT = 64 * 1024 * 1024
# See app/routes/health.py.
PROBES = ("/healthz", "/readyz")
LOST = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class Worker(ThreadWorker):  # type: ignore[misc]
    """A connection is in `waiting` unless a thread has its request."""

    # gunicorn.conf.py sets them.
    body_limit: int
    patience: float
    wsgi: Any
    sockets: list[Any]
    tpool: ThreadPoolExecutor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: dict[Connection, None] = {}
        self.next_look = 0.0
        # Whatever all the others wait for, the process can say that it lives.
        self.probes = {path: ThreadPoolExecutor(max_workers=1) for path in PROBES}

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what this worker does not do."""
        super().check_config(cfg, log)
        if cfg.is_ssl:
            raise SystemExit("TLS ends at the proxy, so unset certfile: docs/deploying.md")

    def load_wsgi(self) -> None:
        """Load the service. In `app.queued_at` it sees when the request was ready for a thread."""
        super().load_wsgi()
        service = self.wsgi

        def with_time(environ: dict[str, Any], start_response: Any) -> Any:
            environ["app.queued_at"] = environ["gunicorn.socket"].queued_at
            return service(environ, start_response)

        self.wsgi = with_time

    # In a thread

    def handle(self, conn: Connection) -> bool:
        """Answer the request. True if the connection can serve another one."""
        try:
            conn.decode_body()
            lasting = bool(self.handle_request(conn.request, conn))
            conn.send()
            return lasting
        except StopIteration:
            self.log.debug("the answer broke off")
        except OSError as error:
            conn.unsent.clear()
            if error.errno not in LOST:
                self.log.exception("a request or its answer cannot be read or written")
        except (Exception, SystemExit) as error:
            self.handle_error(conn.request, conn, conn.client, error)
        return False

    # In the main loop, which calls these, and `finish_request` when a thread is done

    def notify(self) -> None:
        """Tell the master that this worker lives; gunicorn calls it about once a second."""
        super().notify()
        if drain.is_on():
            # Every answer then says "Connection: close".
            self.max_keepalived = 0

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept new connections or, when the worker stops, the last ones: then close the door."""
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        self.sockets, listeners = [], self.sockets
        for listener in listeners:
            listener.setblocking(False)
            taken = -1
            while taken != self.nr_conns:
                taken = self.nr_conns
                self.accept(listener)
            listener.close()

    def accept(self, listener: socket.socket) -> None:
        """Wait for what a new client sends."""
        # The worker that has fewer connections is to be faster.
        time.sleep(min(self.nr_conns, 10) / 10_000)
        try:
            peer, client = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another worker was faster, or the client has gone
        self.nr_conns += 1
        self.wait(Connection(self.cfg, peer, client, self.patience), "head")
        if self.nr_conns >= self.worker_connections:
            self.drop(next(iter(self.waiting)))

    def enqueue_req(self, conn: Connection) -> None:
        """Give the request to a thread."""
        threads = self.probes.get(conn.request.path, self.tpool)
        done = threads.submit(self.handle, conn)
        done.add_done_callback(partial(self.method_queue.defer, self.finish_request, conn))

    def finish_request(self, conn: Connection, done: "Future[bool]") -> None:
        """Take the connection back from a thread."""
        conn.end_request(lasting=done.result())
        self.step(conn, self.conclude)

    def murder_pending(self) -> None:
        """Once a second, end the connections of clients that are too slow."""
        now = time.monotonic()
        if now >= self.next_look:
            self.next_look = now + 1
            for conn in [conn for conn in self.waiting if conn.deadline <= now]:
                if conn in self.waiting:
                    self.step(conn, self.expire)

    def murder_keepalived(self, force: bool = False) -> None:
        """At the end, close all connections."""
        for conn in list(self.waiting) if force else ():
            self.drop(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """After SIGTERM, do not wait for clients that have not begun a request."""
        for conn in self.waiting:
            if not (conn.held or conn.request):
                conn.deadline = min(conn.deadline, deadline)

    # The ways of a connection: head → body → a thread → answer → idle, or closing

    def step(self, conn: Connection, action: Callable[[Connection], None]) -> None:
        """Do something with one connection, so that its failure harms no other."""
        try:
            action(conn)
        except BlockingIOError:
            pass
        except OSError:
            self.drop(conn)
        except Exception as error:
            self.handle_error(conn.request, conn, conn.client, error)
            self.end(conn)

    def wait(self, conn: Connection, phase: str) -> None:
        """Come back when the client has done something, or its time is over."""
        event = EVENT_WRITE if phase == "answer" else EVENT_READ
        if conn not in self.waiting:
            self.waiting[conn] = None
            self.poller.register(conn.socket, event, partial(self.when_ready, conn))
        elif event != self.poller.get_key(conn.socket).events:
            self.poller.modify(conn.socket, event, partial(self.when_ready, conn))
        # A long answer may take long, as long as the client takes some of it now and then.
        if phase != conn.phase or phase == "answer":
            conn.phase = phase
            idle = self.cfg.keepalive if self.alive else STOP_KEEPALIVE_LINGER
            seconds = {"idle": idle, "closing": CLOSING_SECONDS}
            conn.deadline = time.monotonic() + seconds.get(phase, self.patience)

    def when_ready(self, conn: Connection, _socket: socket.socket) -> None:
        """Go on with a connection, unless it had to go a moment ago."""
        if conn in self.waiting:
            self.step(conn, self.proceed)

    def proceed(self, conn: Connection) -> None:
        """Receive or send what is possible now."""
        if conn.phase == "answer":
            self.conclude(conn)
        elif conn.receive():
            if conn.phase == "closing":
                conn.received.clear()
            else:
                self.advance(conn)
        elif conn.phase == "closing" or not conn.has_begun:
            self.drop(conn)
        else:
            self.refuse(conn, 400, "The connection ended before the request did.")

    def advance(self, conn: Connection) -> None:
        """Give the request to a thread once all of it is there."""
        if conn.request is None and not conn.take_head():
            self.wait(conn, "head")
        elif not conn.take_body(self.body_limit):
            self.wait(conn, "body")
            if conn.held > HELD_LIMIT / self.worker_connections:
                self.make_room()
        else:
            self.leave(conn)
            conn.phase, conn.queued_at = "thread", time.monotonic()
            self.enqueue_req(conn)

    def conclude(self, conn: Connection) -> None:
        """Send what is left of the answer, then turn to the next request."""
        if conn.unsent:
            conn.send()
        if conn.unsent:
            self.wait(conn, "answer")
            self.make_room()
        elif not conn.lasting:
            conn.socket.shutdown(socket.SHUT_WR)
            self.wait(conn, "closing")
        elif conn.received:
            self.advance(conn)
        else:
            self.wait(conn, "idle")

    def expire(self, conn: Connection) -> None:
        """The client's time is over."""
        if conn.phase in ("head", "body") and conn.has_begun:
            self.refuse(conn, 408, f"The request did not arrive within {self.patience:g} s.")
        else:
            self.drop(conn)

    def refuse(self, conn: Connection, status: int, detail: str) -> None:
        """Answer without a thread."""
        self.log.info("%s for %s: %s", status, conn.client, detail)
        util.write_error(conn, status, "", detail)
        self.end(conn)

    def end(self, conn: Connection) -> None:
        """Close the connection when the answer is sent."""
        conn.end_request(lasting=False)
        self.step(conn, self.conclude)

    def make_room(self) -> None:
        """Part with those who have waited longest, if they hold too much memory together."""
        held = sum(conn.held for conn in self.waiting)
        for conn in [conn for conn in self.waiting if conn.held]:
            if held > HELD_LIMIT:
                held -= conn.held
                self.drop(conn)

    def leave(self, conn: Connection) -> None:
        """Do not wait for the client any longer."""
        if conn in self.waiting:
            del self.waiting[conn]
            self.poller.unregister(conn.socket)

    def drop(self, conn: Connection) -> None:
        """Close the connection at once, unless that has happened."""
        self.leave(conn)
        if conn.socket.fileno() >= 0:
            self.nr_conns -= 1
            conn.socket.close()


def write_problem(conn: Connection, status: int, _reason: str, detail: str) -> None:
    """Answer where gunicorn itself has to: as app/core/errors.py does, not in HTML."""
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    body = json.dumps(problem | ({"detail": detail} if detail else {}))
    head = (
        f"HTTP/1.1 {status} {problem['title']}",
        "Connection: close",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in HEADERS.items()),
    )
    conn.sendall("\r\n".join([*head, "", body]).encode())


# `handle_error` decides what to answer, and then calls this.
util.write_error = write_problem
