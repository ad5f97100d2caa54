# Settings of Alembic. Which database and how: app/core/migrations.py.
[alembic]
file_template = %%(rev)s_%%(slug)s
