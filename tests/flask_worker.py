"""Runs in a project: `flask` commands, without the second that it takes to start Python for each.

Each line of stdin is JSON: the words after `flask`, or SQL, and the environment. Each line of
stdout is JSON: the exit code and what the command said, stdout and stderr.
"""

import json
import os
import sys

# What anybody else prints goes to the log; Alembic remembers stdout when it is imported.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from app import create_app  # noqa: E402
from app.models import db  # noqa: E402
from sqlalchemy import text  # noqa: E402

original = dict(os.environ)


def command(words: list[str]) -> tuple[int, str]:
    try:
        app = create_app()
    except SystemExit as error:
        return 1, str(error)
    result = app.test_cli_runner().invoke(args=words)
    if result.exception and not isinstance(result.exception, SystemExit):
        return 1, f"{result.output}Traceback: {result.exception!r}"
    return result.exit_code, result.output


def sql(statements: list[str]) -> tuple[int, str]:
    said = ""
    with create_app().app_context():
        engine = db.engine
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                result = connection.execute(text(statement))
                said += f"{[tuple(row) for row in result] if result.returns_rows else ''}\n"
        engine.dispose()
    return 0, said.strip()


for line in sys.stdin:
    kind, words, environment = json.loads(line)
    os.environ.clear()
    os.environ.update(original | {k: v for k, v in environment.items() if v is not None})
    answer = {"flask": command, "sql": sql}[kind](words)
    print(json.dumps(answer), file=answers, flush=True)
