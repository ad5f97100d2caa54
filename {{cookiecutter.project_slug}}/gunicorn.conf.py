"""Settings of gunicorn, which finds this file by itself: `gunicorn` is enough to serve."""

import os
import sys
import traceback
from typing import Any

from gunicorn.util import make_fail_app

from app.config import ROOT, load_settings
from app.core import embedded
from app.core.logs import logging_config
from app.core.worker import Worker

settings = load_settings()
if settings.database_url is None:
    # In this process, because it outlives every reload.
    embedded.start()

wsgi_app = "app:create_app()"
bind = settings.address
# Nobody tells gunicorn who they are and whether they used TLS: app/core/hosts.py decides that.
forwarded_allow_ips = ""

workers = settings.web_concurrency
# One for each connection in the pool.
threads = settings.database_pool_size

# Seconds that running requests have to finish after SIGTERM.
graceful_timeout = 20
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
# Longer than the balancer or proxy in front keeps an idle connection, usually 60 s: if this end
# closed first, it could be in the very moment that the next request comes.
keepalive = 75


def post_fork(server: Any, worker: Any) -> None:
    """Forget what this file imported, so that a reloaded worker imports the current code."""
    if reload:
        for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:
            del sys.modules[name]


# Workers show that they are alive through a file; in memory, so that the root can be read-only.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
# It would need a home directory, which a container does not have.
control_socket_disable = True

logconfig_dict = logging_config(settings)
accesslog = "-"
access_log_format = '%(h)s "%(m)s %(U)s%(q)s" %(s)s %(B)s bytes %(M)s ms'
