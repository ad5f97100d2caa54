"""Backups: PostgreSQL's own dump of the service's schema, with a manifest that tells what is in it.

`flask backup …` is in cli.py. What makes one is in dump.py, what brings it back in restore.py.
"""

from app.core.backups.cli import init_app as init_app
