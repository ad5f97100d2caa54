# What holds for this project in every environment. Secrets and settings of one machine go into .env.
FLASK_DB_INIT_TEMPLATE=app/core/migrations/template
SCHEMA={{ cookiecutter.db_schema }}
