"""${message.replace("\\", "\\\\").replace('"""', "'''")}

Revision: ${up_revision}
Revises: ${down_revision or "nothing" | comma,n}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
% for name, value in context.get("facts", {}).get(up_revision, {}).items():
${name} = ${value}
% endfor


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
