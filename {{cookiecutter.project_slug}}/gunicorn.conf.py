"""Settings of gunicorn, which finds this file by itself: `gunicorn` is enough to serve."""

import os
import sys
import traceback
from typing import Any

from gunicorn import glogging
from gunicorn.util import make_fail_app

from app.config import ROOT, load_settings
from app.core import drain, embedded, logs, metrics
from app.core.logs import logging_config
from app.core.server.worker import Worker

settings = load_settings()
if settings.database_url is None:
    # In this process, because it outlives every reload.
    embedded.start()

wsgi_app = "app:create_app()"
bind = [settings.address]
if settings.metrics_port:
    bind.append(settings.address_of(settings.metrics_port))
    metrics.make_folder()
# Nobody tells gunicorn who they are and whether they used TLS: app/core/hosts.py decides that.
forwarded_allow_ips = ""

workers = settings.web_concurrency
threads = settings.web_threads

# Longer than balancers keep idle connections (60 s), or they send a request on a closed one.
keepalive = 75
# Seconds that running requests have to finish: those that a statement may take, and some more.
# DRAIN_SECONDS and this must be less than what stops the service by force allows.
graceful_timeout = settings.request_seconds + 6
reload = settings.app_env == "development"
reload_extra_files = [str(file) for file in (ROOT / "app").rglob("*.py")] if reload else []


class PatientWorker(Worker):
    """Shows why the saved code does not start, and waits for the next save."""

    def load_wsgi(self) -> None:
        """Load the service or, if that fails, a page with the traceback."""
        try:
            super().load_wsgi()
        except (Exception, SystemExit) as error:
            self.log.exception("the service does not start")
            self.wsgi = make_fail_app("".join(traceback.format_exception(error)))

    def handle_quit(self, _signal: int, _frame: Any) -> None:
        """Stop at once on Ctrl-C; gunicorn's own handler may wait for a lock it interrupted."""
        os._exit(0)


worker_class = PatientWorker if reload else Worker
Worker.body_limit = settings.max_content_length
Worker.patience = settings.client_seconds
# A thread gives files to the worker as well, and does not wait until the client has taken them.
sendfile = False
# Fewer than the 1024 files that a process may usually open.
worker_connections = 900


def on_starting(server: Any) -> None:
    """Let the master drain before it stops, and say so in the format of the log."""
    logs.init_app(settings)
    drain.install(settings, server)


def post_fork(server: Any, worker: Any) -> None:
    """Forget what this file imported, so that a reloaded worker imports the current code."""
    if reload:
        for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:
            del sys.modules[name]


def child_exit(_server: Any, worker: Any) -> None:
    """What a worker had in use when it ended is free again."""
    metrics.forget(worker.pid)


def on_exit(_server: Any) -> None:
    """Leave nothing in memory."""
    metrics.remove_folder()


# Workers show that they are alive through a file; in memory, so that the root can be read-only.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
# It would need a home directory, which a container does not have.
control_socket_disable = True


class Logger(glogging.Logger):  # type: ignore[misc]
    """Leaves the lines of requests to app/core/requests.py."""

    def access(self, *_: Any) -> None:
        """`accesslog = None` alone would not do: it is ignored when there is a logconfig_dict."""


logger_class = Logger
logconfig_dict = logging_config(settings)
