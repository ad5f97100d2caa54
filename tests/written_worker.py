"""Runs inside a generated project: writes what leads from one set of models to another, and takes
it up, down and up again. One JSON object per line comes in, one goes out; test_written.py asks.
"""

import json
import logging
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import sqlalchemy
from app import create_app
from app.config import ROOT, load_settings
from app.core import history
from app.core.database import direct_engine
from app.models import Base, db
from sqlalchemy import text

# The structure of a schema as the server tells it, without what tells one schema from another.
STRUCTURE = """
SELECT line FROM (
  SELECT concat_ws(' ', 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
    a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid),
    col_description(c.oid, a.attnum)) AS line
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
  LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
  WHERE c.relnamespace = CAST(:schema AS regnamespace) AND c.relkind IN ('r', 'p', 'v')
    AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL SELECT concat_ws(' ', 'table', relname, obj_description(oid, 'pg_class'))
  FROM pg_class WHERE relnamespace = CAST(:schema AS regnamespace) AND relkind IN ('r', 'p', 'v')
  UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname,
    replace(pg_get_constraintdef(oid), ' NOT VALID', '')) FROM pg_constraint
  WHERE connamespace = CAST(:schema AS regnamespace) AND contype <> 'n'
  UNION ALL SELECT concat_ws(' ', 'index', pg_get_indexdef(c.oid, 0, true), c.relname)
  FROM pg_class c WHERE relnamespace = CAST(:schema AS regnamespace) AND relkind IN ('i', 'I')
  UNION ALL SELECT concat_ws(' ', 'type', typname) FROM pg_type
  WHERE typnamespace = CAST(:schema AS regnamespace) AND typtype = 'e'
) AS everything WHERE line NOT LIKE '%alembic_version%' ORDER BY 1
"""


class WrongError(Exception):
    """What went wrong, for the test."""


class RefusedError(Exception):
    """`flask db migrate` refuses, and offers nothing that it would write."""


class Messages(logging.Handler):
    """Collects what the commands say."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        event: Any = record.msg
        self.said.append(event["event"] if isinstance(event, dict) else record.getMessage())


class Example:
    """A service with a history and a schema of its own."""

    def __init__(self, folder: Path, schema: str) -> None:
        shutil.copytree(ROOT / "migrations", folder, ignore=shutil.ignore_patterns("versions"))
        (folder / "versions").mkdir()
        history.FOLDER = folder
        self.settings = load_settings(app_env="test", schema_name=schema)
        self.app = create_app(self.settings)
        self.engine = direct_engine(self.settings)
        self.messages = Messages()
        logging.getLogger().addHandler(self.messages)

    def close(self) -> None:
        logging.getLogger().removeHandler(self.messages)
        with self.engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {self.settings.schema_name} CASCADE"))
        with self.app.app_context():
            db.engine.dispose()

    def become(self, models: str) -> None:
        Base.metadata.clear()
        exec(
            models,
            {"sa": sqlalchemy, "postgresql": sqlalchemy.dialects.postgresql, "m": Base.metadata},
        )

    def run(self, *words: str) -> tuple[int, str]:
        self.messages.said.clear()
        result = self.app.test_cli_runner().invoke(args=["db", *words])
        if result.exception and not isinstance(result.exception, SystemExit):
            trace = "".join(traceback.format_exception(result.exception))
            raise WrongError(f"flask db {' '.join(words)}: {trace}")
        return result.exit_code, result.output + "\n".join(self.messages.said)

    def good(self, *words: str) -> str:
        code, said = self.run(*words)
        if code:
            raise WrongError(
                f"flask db {' '.join(words)} exits with {code}:\n{said}\n{self.files()}"
            )
        return said

    def migrate(self, message: str) -> list[str]:
        """Write the change; what is offered is acknowledged. The new revisions, oldest first."""
        before = self.revisions()
        reasons: list[str] = []
        for _ in range(4):
            code, said = self.run("migrate", "-m", message, *reasons)
            if not code:
                return self.revisions()[len(before) :]
            offered = re.findall(r'--acknowledge "(.+)=the reason"$', said, re.MULTILINE)
            hazards = re.findall(r"^    Safe: ", said, re.MULTILINE)
            if not hazards or len(offered) < len(hazards):
                raise RefusedError(said)
            reasons += [part for key in offered for part in ("--acknowledge", f"{key}=a test")]
        raise WrongError(f"refused again and again: {said}")

    def revisions(self) -> list[str]:
        return sorted(
            each.name.split("_")[0] for each in (history.FOLDER / "versions").glob("*.py")
        )

    def files(self) -> str:
        return "\n".join(
            each.read_text() for each in sorted((history.FOLDER / "versions").glob("*.py"))
        )

    def structure(self) -> list[str]:
        with self.engine.begin() as connection:
            found = connection.scalars(text(STRUCTURE), {"schema": self.settings.schema_name}).all()
        schema = self.settings.schema_name
        return [line.replace(f"{schema}.", "").replace(f'"{schema}".', "") for line in found]

    def equal(self, found: list[str], wanted: list[str], when: str) -> None:
        if found != wanted:
            more = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
            raise WrongError(f"{when}: too much {more[0]}, missing {more[1]}\n{self.files()}")

    def there_and_back(self, models: list[str]) -> None:
        """Each change up, down and up again, revision by revision."""
        for number, each in enumerate(models):
            self.become(each)
            new = self.migrate(f"change {number}")
            before = [self.structure()]
            for revision in new:
                self.good("upgrade", revision)
                before.append(self.structure())
            self.good("check")
            head = before.pop()
            for state in reversed(before):
                self.good("downgrade")
                self.equal(self.structure(), state, "after downgrade")
            if new:
                self.good("lint")
            for state in [*before[1:], head][: len(new)]:
                self.good("upgrade", "+1")
                self.equal(self.structure(), state, "after upgrade, again")
            self.good("check")
            if self.migrate("nothing"):
                raise WrongError(f"a second migrate writes something\n{self.files()}")


def answer(models: list[str], schema: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        example = Example(Path(folder) / "migrations", schema)
        try:
            example.there_and_back(models)
        except WrongError as wrong:
            return {"wrong": str(wrong)}
        except RefusedError as refused:
            return {"refused": str(refused)}
        except Exception:
            return {"wrong": traceback.format_exc()}
        finally:
            example.close()
    return {}


if __name__ == "__main__":
    for number, line in enumerate(sys.stdin):
        given = json.loads(line)
        print(
            "\nANSWER "
            + json.dumps(answer(given["models"], given.get("schema") or f"written_{number}")),
            flush=True,
        )
