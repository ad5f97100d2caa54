"""The service. `create_app` is its table of contents."""

from apiflask import APIFlask
from flask_swagger_ui import get_swaggerui_blueprint

from app.config import PROJECT, Settings, load_settings
from app.core import commands, database, errors, logs, migrations, seeding, shell
from app.routes import BLUEPRINTS
from app.seeds import SEEDS


def create_app(settings: Settings | None = None) -> APIFlask:
    """Build the service from `settings`, or from the environment.

    Raises `InvalidSettings`, which names everything that is missing or wrong.
    """
    settings = settings or load_settings()
    app = APIFlask(__name__, title=PROJECT["title"], version=PROJECT["version"], docs_path=None)
    app.config["SETTINGS"] = settings
    app.config["SECRET_KEY"] = settings.secret_key
    app.config["DESCRIPTION"] = PROJECT["description"]
    app.config["MAX_CONTENT_LENGTH"] = settings.max_content_length
    app.config["TEMPLATES_AUTO_RELOAD"] = settings.app_env == "development"
    app.url_map.strict_slashes = False

    logs.init_app(settings)
    database.init_app(app, settings)
    migrations.init_app(app)
    commands.init_app(app)
    seeding.init_app(app, SEEDS)
    shell.init_app(app)
    errors.init_app(app)

    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    app.register_blueprint(get_swaggerui_blueprint("/docs", "/openapi.json"))
    return app
