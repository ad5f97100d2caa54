"""Whom a request is for (Host) and whom it is from (X-Forwarded-For): a client can forge both."""

import re

from apiflask import APIFlask, abort
from flask import request
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.sansio.utils import host_is_trusted

from app.config import Settings


def init_app(app: APIFlask, settings: Settings) -> None:
    """Believe only PROXY_HOPS proxies and TRUSTED_HOSTS; build no URL from a Host."""
    # Each of the first two would make werkzeug redirect, and it redirects to an absolute URL.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["AUTO_SERVERS"] = False  # of the OpenAPI document

    if hops := settings.proxy_hops:
        # Each proxy adds an address, but the last one alone says which scheme and host it saw.
        proxies = ProxyFix(app.wsgi_app, x_for=hops, x_proto=1, x_host=1)
        app.wsgi_app = proxies  # type: ignore[method-assign]

    if settings.trusted_hosts:

        @app.before_request
        def refuse_other_hosts() -> None:
            # Probes of health ask for the address of a container, which nobody knows beforehand.
            host = request.environ.get("HTTP_HOST", "").lower()
            if request.blueprint != "health" and not _is_one_of(settings.trusted_hosts, host):
                abort(400, "The Host header names none of the hosts of this service.")


def _is_one_of(trusted: list[str], host: str) -> bool:
    # werkzeug takes the first colon of an IPv6 address for that of a port.
    address = re.fullmatch(r"(\[[0-9a-f:.]+\])(:\d+)?", host)
    return address[1] in trusted if address else host_is_trusted(host, trusted)
