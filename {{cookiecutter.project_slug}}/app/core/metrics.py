"""Numbers for Prometheus at METRICS_PORT/metrics. What they mean: docs/operating.md.

The workers write into files of one folder, and whichever is asked adds them up. Without
METRICS_PORT nothing here runs, and the library is not even imported.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from flask import Flask
from sqlalchemy import Pool, QueuePool, event

from app.config import PROJECT, Settings
from app.core import history
from app.core.database import probe
from app.core.requests import Tally
from app.models import db

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from prometheus_client.core import Metric

# The library looks for it when it is imported.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Any other word of a client would be a series of its own.
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def init_app(app: Flask, settings: Settings) -> None:
    """Count what the service does, if gunicorn.conf.py has opened a port for it."""
    if settings.metrics_port is None or FOLDER not in os.environ:
        return
    requests, pool = RequestMetrics(), PoolMetrics()
    app.extensions["requests"].observers.append(requests.observe)
    with app.app_context():
        pool.watch(db.engine.pool)
    app.wsgi_app = Scrape(app, settings)  # type: ignore[method-assign]


def make_folder() -> None:
    """An empty folder for the numbers of this start, in memory where there is such a place."""
    if FOLDER not in os.environ:  # not again when gunicorn reloads its settings
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        os.environ[FOLDER] = tempfile.mkdtemp(prefix=f"{PROJECT['name']}-metrics-", dir=memory)


def remove_folder() -> None:
    """Remove the folder, if there is one."""
    if FOLDER in os.environ:
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)


def forget(worker: int) -> None:
    """Drop the gauges of a worker that has ended; its counters stay."""
    if FOLDER in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker)


class RequestMetrics:
    """Requests, and what they asked of the database."""

    def __init__(self) -> None:
        """The files of this worker are made here."""
        from prometheus_client import Counter, Histogram

        self.duration = Histogram(
            "http_request_duration_seconds",
            "Requests, from when all of it was there to the last byte of the answer.",
            ["method", "route", "status"],
            buckets=SECONDS,
            registry=None,
        )
        self.db_time = Counter(
            "http_request_db_seconds",
            "Time that requests spent in statements of the database.",
            ["method", "route"],
            registry=None,
        )
        self.queries = Counter(
            "http_request_queries",
            "Statements that requests sent to the database.",
            ["method", "route"],
            registry=None,
        )
        self.wait = Histogram(
            "http_request_wait_seconds",
            "Time that requests waited for a free thread, part of their duration.",
            buckets=SECONDS,
            registry=None,
        )
        # To look a series up costs more than to add to it.
        self.series: dict[tuple[str, str, int], tuple[Any, ...]] = {}

    def observe(self, tally: Tally) -> None:
        """Add a request that has ended."""
        method = tally.environ["REQUEST_METHOD"]
        key = method if method in METHODS else "other", tally.route or "none", tally.status
        duration, db_time, queries = self.series.get(key) or self._series(key)
        duration.observe(tally.seconds)
        self.wait.observe(tally.waited)
        if tally.queries:
            db_time.inc(tally.db_seconds)
            queries.inc(tally.queries)

    def _series(self, key: tuple[str, str, int]) -> tuple[Any, ...]:
        families = (self.duration, key), (self.db_time, key[:2]), (self.queries, key[:2])
        found = self.series[key] = tuple(family.labels(*labels) for family, labels in families)
        return found


class PoolMetrics:
    """The pool of connections: how many are in use, and how long it takes to get one."""

    def __init__(self) -> None:
        """The files of this worker are made here."""
        from prometheus_client import Gauge, Histogram

        self.in_use = Gauge(
            "db_pool_connections_in_use",
            "Connections that requests are using now.",
            multiprocess_mode="livesum",
            registry=None,
        )
        self.wait = Histogram(
            "db_pool_wait_seconds",
            "Time to get a connection: until one is free, is opened if need be, and is checked.",
            buckets=SECONDS,
            registry=None,
        )

    def watch(self, pool: Pool) -> None:
        """Follow a pool from now on."""
        if isinstance(pool, QueuePool):
            event.listen(pool, "checkout", lambda *_: self.in_use.set(pool.checkedout()))
            # It is not back yet, but is about to be.
            event.listen(pool, "checkin", lambda *_: self.in_use.set(pool.checkedout() - 1))
        connect = pool.connect

        def timed() -> Any:
            started = perf_counter()
            try:
                return connect()
            finally:
                self.wait.observe(perf_counter() - started)

        pool.connect = timed  # type: ignore[method-assign]


class Scrape:
    """Around all of the service: METRICS_PORT answers /metrics, any other port the service."""

    def __init__(self, app: Flask, settings: Settings) -> None:
        """Nothing is asked yet."""
        self.service: WSGIApplication = app.wsgi_app
        self.port = str(settings.metrics_port)
        self.facts = Facts(app, settings)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer; the port is that of the socket, whatever the client says."""
        if environ["SERVER_PORT"] != self.port:
            return self.service(environ, start_response)
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"Only /metrics is here.\n"]
        from prometheus_client import CollectorRegistry, make_wsgi_app
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        registry.register(self.facts)
        answer: WSGIApplication = make_wsgi_app(registry)
        return answer(environ, start_response)


class Facts:
    """What is looked up when it is asked for."""

    def __init__(self, app: Flask, settings: Settings) -> None:
        """The connection is that of /readyz: a scrape must not wait for one of the pool."""
        with app.app_context():
            self.engine = probe()
        self.most = settings.web_concurrency * settings.connections_of_a_worker

    def collect(self) -> Iterator["Metric"]:
        """Prometheus' name for it."""
        from prometheus_client.core import GaugeMetricFamily

        build = {
            "name": PROJECT["name"],
            "version": PROJECT["version"],
            "python": platform.python_version(),
        }
        info = GaugeMetricFamily(
            "service_build_info", "What is running; always 1.", labels=list(build)
        )
        info.add_metric(list(build.values()), 1)
        yield info
        size = "Connections that this replica may have at most: in all workers, with overflow."
        yield GaugeMetricFamily("db_pool_connections_max", size, value=self.most)
        try:
            with self.engine.connect() as connection:
                at = history.current(connection)
            ahead = history.is_ahead(at)
            behind = not ahead and at != history.heads()
        except Exception:
            return  # /readyz and its line say what is wrong.
        words = "1 if the code has revisions that the database lacks."
        yield GaugeMetricFamily("db_revision_behind", words, value=behind)
        words = "1 if the database has revisions that the code lacks."
        yield GaugeMetricFamily("db_revision_ahead", words, value=ahead)
