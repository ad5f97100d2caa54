# Settings of Alembic. Which database and how: app/core/migrations.
[alembic]
file_template = %%(rev)s_%%(slug)s
