"""/ shows what this service is and how it is doing."""

from apiflask import APIBlueprint
from flask import current_app, render_template

from app.config import PROJECT
from app.routes.health import database_state

home = APIBlueprint("home", __name__, enable_openapi=False)


@home.get("/")
def index() -> str:
    """The page for people."""
    state = database_state()
    return render_template(
        "home.html",
        project=PROJECT,
        settings=current_app.config["SETTINGS"],
        state=state,
    )
