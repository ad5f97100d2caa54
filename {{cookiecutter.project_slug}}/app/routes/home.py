"""/ shows what this service is and, except in production, how it is doing."""

from apiflask import APIBlueprint, abort
from flask import current_app, render_template

from app.config import PROJECT
from app.routes.health import database_state

home = APIBlueprint("home", __name__, enable_openapi=False)


@home.get("/")
def index() -> str:
    """The page for people."""
    settings = current_app.config["SETTINGS"]
    if not settings.shows_pages:
        abort(404)
    state = None if settings.production else database_state()
    return render_template("home.html", project=PROJECT, settings=settings, state=state)
