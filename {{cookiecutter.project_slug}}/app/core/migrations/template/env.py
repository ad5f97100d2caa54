"""Called by every `flask db` command. The work is in app/core/migrations."""

from app.core import migrations

migrations.run()
