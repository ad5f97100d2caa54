"""/ shows how this service is doing and, except in production, what there is of it."""

from apiflask import APIBlueprint, abort
from flask import current_app, render_template

from app.config import PROJECT
from app.core import overview
from app.routes.health import database_state

home = APIBlueprint("home", __name__, enable_openapi=False)


@home.get("/")
def index() -> str:
    """The page for people; strangers may see production's."""
    settings = current_app.config["SETTINGS"]
    if not settings.shows_pages:
        abort(404)
    state = database_state()
    if settings.production:
        return render_template("home.html", project=PROJECT, state=state)
    server, *parts = overview.parts(settings, state.answers)
    return render_template(
        "home.html",
        project=PROJECT,
        settings=settings,
        state=state,
        head=overview.head(),
        server=server,
        parts=parts,
    )
