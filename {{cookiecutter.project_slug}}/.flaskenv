# What is true of this project in every environment. Secrets and this machine's own go to .env.
FLASK_DB_INIT_TEMPLATE=app/core/migrations/template
SCHEMA={{ cookiecutter.db_schema }}
