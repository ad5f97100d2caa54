"""The service. `create_app` is its table of contents."""

import gc

from apiflask import APIFlask

from app.config import PROJECT, Settings, load_settings
from app.core import (
    backups,
    commands,
    cors,
    database,
    docs,
    errors,
    etags,
    headers,
    hosts,
    inputs,
    logs,
    metrics,
    migrations,
    openapi,
    overload,
    requests,
    seeding,
    sentry,
    shell,
    tracing,
)
from app.routes import BLUEPRINTS
from app.seeds import SEEDS

# What was imported is never garbage. Looking through it took each `flask` command a quarter of its
# time, when it ended.
gc.freeze()


def create_app(settings: Settings | None = None) -> APIFlask:
    """Build the service from `settings`, or from the environment.

    Raises `InvalidSettings`, which names everything that is missing or wrong.
    """
    settings = settings or load_settings()
    app = APIFlask(
        __name__,
        title=PROJECT["title"],
        version=PROJECT["version"],
        spec_path="/openapi.json" if settings.shows_pages else None,
        docs_path=None,
    )
    app.config["SETTINGS"] = settings
    app.config["SECRET_KEY"] = settings.secret_key
    app.config["DESCRIPTION"] = PROJECT["description"]
    app.config["MAX_CONTENT_LENGTH"] = settings.max_content_length
    app.config["TEMPLATES_AUTO_RELOAD"] = settings.app_env == "development"

    logs.init_app(settings)
    sentry.init_app(settings)
    tracing.init_app(app, settings)
    database.init_app(app, settings)
    migrations.init_app(app)
    commands.init_app(app)
    backups.init_app(app)
    seeding.init_app(app, SEEDS)
    shell.init_app(app)
    inputs.init_app(app)
    etags.init_app(app)
    errors.init_app(app)
    openapi.init_app(app)
    requests.init_app(app, settings)
    hosts.init_app(app, settings)
    overload.init_app(app, settings)
    headers.init_app(app, settings)
    cors.init_app(app, settings)
    docs.init_app(app, settings)
    metrics.init_app(app, settings)  # around all others, because they believe a proxy

    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    return app
