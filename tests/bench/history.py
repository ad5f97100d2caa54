"""What each revision of a history adds to the project's own tests, in one run: `make bench`.

Next to it: running the revision once, with plain Alembic and without this project's env.py. The
tests run each revision five times: up, down, up and down, and up once more for the schema that all
other tests share. They judge only what git's main branch lacks, which is nothing here.
Aim: at most 8 times as long, however long the history.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import Project, commit, generate

LENGTHS = [1, 51, 201]
RUNS = 5
REVISION = '''"""Number {number}."""

import sqlalchemy as sa
from alembic import op

revision = "{number:04}"
down_revision = "{before:04}"


def upgrade() -> None:
    {up}


def downgrade() -> None:
    {down}
'''
# By turns, so that the models agree with an odd number of revisions.
CREATE = 'op.create_table("remarks", sa.Column("id", sa.BigInteger(), primary_key=True))'
DROP = 'op.drop_table("remarks")'
# All revisions up, in a schema that is dropped afterwards; prints the seconds.
ONCE = """
import time

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.schema import CreateSchema, DropSchema

from app.config import load_settings
from app.core.database import direct_engine

engine = direct_engine(load_settings(schema_name="once"))
with engine.connect() as connection:
    connection.execute(CreateSchema("once"))
    connection.commit()
    started = time.monotonic()
    script = ScriptDirectory("migrations")
    up = lambda heads, _: script._upgrade_revs("head", heads)
    options = {"fn": up, "transaction_per_migration": True}
    context = MigrationContext.configure(connection, opts=options)
    with Operations.context(context):
        context.run_migrations()
    print(time.monotonic() - started)
    connection.execute(DropSchema("once", cascade=True))
    connection.commit()
"""


def lengthen(project: Project, length: int) -> None:
    """Write revisions until there are this many, and have them count as released."""
    versions = project.path / "migrations/versions"
    for number in range(len([*versions.glob("*.py")]) + 1, length + 1):
        up, down = (DROP, CREATE) if number % 2 else (CREATE, DROP)
        text = REVISION.format(number=number, before=number - 1, up=up, down=down)
        (versions / f"{number:04}_number_{number}.py").write_text(text)
    commit(project.path, f"{length} revisions")


def seconds_once(project: Project) -> float:
    result = project.run(project.python, "-c", ONCE)
    assert result.returncode == 0, result.stdout
    return float(result.stdout.splitlines()[-1])


def seconds_of_tests(project: Project) -> float:
    started = time.monotonic()
    result = project.run(project.python, "-m", "pytest", "-q")
    assert result.returncode == 0, result.stdout
    return time.monotonic() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        project = Project(Path(folder, "book-service"))
        project.run("git", "branch", "--move", "main")
        first: tuple[float, float] | None = None
        for length in LENGTHS:
            lengthen(project, length)
            # The shortest, because whatever else the machine does only adds to it.
            once = min(seconds_once(project) for _ in range(RUNS))
            tests = min(seconds_of_tests(project) for _ in range(RUNS))
            line = f"{length} revisions: all tests {tests:.1f} s, once through them {once:.2f} s"
            if first is None:
                first = once, tests
            else:
                added = (tests - first[1]) / (length - 1) * 1000
                ratio = (tests - first[1]) / (once - first[0])
                line += f"; each adds {added:.1f} ms, {ratio:.1f} times running it once"
            print(line)


if __name__ == "__main__":
    main()
