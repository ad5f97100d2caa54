"""`flask db lint`: judge revisions before they meet a database with users.

The dry run asks the server, the rules of sql.py read the statements, squawk gives a second opinion.
"""

import ast
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError

from app.config import Settings
from app.core import history, sql
from app.core.database import DatabaseUnavailable, connect_directly, reason
from app.core.dry_run import CannotJudge, DryRun, dry_run
from app.core.hazards import Hazard, described, without_acknowledged
from app.models import db

# squawk's rules that need no knowledge of the database, and which of ours cover them.
SQUAWK_ALWAYS = {"ban-truncate-cascade": "truncate", "ban-drop-database": "database-drop"}
SQUAWK_WITHOUT_DRY_RUN = SQUAWK_ALWAYS | {
    "ban-drop-column": "column-drop",
    "ban-drop-table": "table-drop",
    "renaming-column": "column-rename",
    "renaming-table": "table-rename",
    "constraint-missing-not-valid": "table-scan",
    "disallowed-unique-constraint": "unique-constraint",
    "require-concurrent-index-creation": "index-build",
}
HARMLESS = re.compile(
    r"\s*(select|set|reset|show|explain|analyze|commit|begin"
    r"|alter\s+table\s+\S+\s+validate\s+constraint\s+\S+\s*$)",
    re.IGNORECASE,
)


@dataclass
class Verdict:
    """What is known about one revision."""

    revision: str
    file: str
    hazards: list[Hazard]
    acknowledged: dict[str, str] = field(default_factory=dict)
    not_judged: str | None = None


@dataclass
class Report:
    """The verdicts on some revisions, and what is wrong with all of them together."""

    verdicts: list[Verdict] = field(default_factory=list)
    history: list[Hazard] = field(default_factory=list)
    not_judged: str | None = None

    @property
    def exit_code(self) -> int:
        """0 clean, 1 hazards, 2 could not judge."""
        if self.history or any(verdict.hazards for verdict in self.verdicts):
            return 1
        return 2 if self.not_judged or any(verdict.not_judged for verdict in self.verdicts) else 0

    def text(self) -> str:
        """The report for people."""
        lines = []
        if self.history:
            lines.append(f"the history as a whole{described(self.history)}\n")
        for verdict in self.verdicts:
            state = "clean" if not (verdict.hazards or verdict.not_judged) else ""
            lines.append(f"{verdict.file}: {state}{described(verdict.hazards)}".rstrip(": "))
            for key, why in verdict.acknowledged.items():
                lines.append(f"  acknowledged: {key} ({why})")
            if verdict.hazards:
                example = {verdict.hazards[0].key: "the reason"}
                lines.append(f"\n  Or, in the file, if you know better: acknowledged = {example}\n")
            if verdict.not_judged:
                lines.append(f"  could not be judged: {verdict.not_judged}")
        if self.not_judged:
            lines.append(f"could not be judged: {self.not_judged}")
        return "\n".join(lines) or "nothing to judge: no unapplied revision"

    def json(self) -> str:
        """The report for tools."""
        return json.dumps(
            {
                "revisions": [
                    asdict(verdict) | {"hazards": [_as_dict(each) for each in verdict.hazards]}
                    for verdict in self.verdicts
                ],
                "history": [_as_dict(each) for each in self.history],
                "not_judged": self.not_judged,
                "exit_code": self.exit_code,
            },
            indent=2,
        )


def report(settings: Settings, wanted: str | None) -> Report:
    """Judge `wanted`, or what the database does not have yet; without a database, nothing."""
    try:
        with connect_directly(settings) as connection:
            current = history.current(connection)
        return lint(settings, wanted, current)
    except DatabaseUnavailable as error:
        return Report(not_judged=reason(error))


def lint(
    settings: Settings, wanted: str | None, current: set[str], target: str = "heads"
) -> Report:
    """Judge the revision or range `wanted`, by default what leads from `current` to `target`.

    A range is FROM:TO, without FROM itself.
    """
    try:
        script = history.load()
        report = Report(history=[*_history_hazards(script)])
        scripts = _chosen(script, wanted, current, target)
        last_exempt = settings.migration_lint_start_after
        exempt = _up_to(script, last_exempt) if last_exempt else []
    except (CommandError, CannotJudge) as error:
        return Report(not_judged=str(error))
    except Exception as error:
        return Report(not_judged=f"a revision file can not be loaded: {_described(error)}")
    judged = [each for each in scripts if each not in exempt]
    if judged:
        _judge_all(report, script, judged, current, settings)
    return report


def _judge_all(
    report: Report,
    script: ScriptDirectory,
    judged: list[Script],
    current: set[str],
    settings: Settings,
) -> None:
    ids = {each.revision for each in judged}
    everything = history.ancestors(script, [each.revision for each in judged])
    first = next(number for number, each in enumerate(everything) if each.revision in ids)
    before, after = everything[:first], everything[first:]
    tips = {each.revision for each in before} - {
        parent for each in before for parent in each._all_down_revisions
    }
    trouble: str | None = None
    with dry_run(settings) as run:
        try:
            run.start(before, at_current=tips == current)
        except CannotJudge as error:
            trouble = str(error)
        for each in after:
            verdict = _judge(each, run if trouble is None else None, trouble)
            if verdict.not_judged and trouble is None:
                trouble = f"the revision before it could not be judged ({each.revision})"
            if each.revision in ids:
                earlier = history.unused_columns(everything[: everything.index(each)])
                _apply_acknowledgements(verdict, each, earlier)
                report.verdicts.append(verdict)


def _judge(script: Script, run: DryRun | None, trouble: str | None) -> Verdict:
    verdict = Verdict(script.revision, Path(script.path).name, [], not_judged=trouble)
    if run is None:
        statements = _offline_statements(script)
        verdict.hazards += sql.hazards(statements, None)
    else:
        try:
            verdict.hazards += run.observe([script.module.upgrade])
        except (Exception, SystemExit) as error:
            verdict.not_judged = f"upgrade() fails: {_described(error)}"
            verdict.hazards += sql.hazards(run.statements, None)
        statements = run.statements
        failures = [each for each in verdict.hazards if each.name == "fails"]
        if failures:
            verdict.hazards = [each for each in verdict.hazards if each not in failures]
            verdict.not_judged = f"upgrade() fails: {failures[0].detail}"
    verdict.hazards += _squawk(statements, verdict)
    if any(not HARMLESS.match(each.text) for each in statements) and _has_no_downgrade(script):
        verdict.hazards.append(Hazard("empty-downgrade"))
    return verdict


def _apply_acknowledgements(verdict: Verdict, script: Script, unused: set[str]) -> None:
    reasons = dict(getattr(script.module, "acknowledged", {}))
    for hazard in verdict.hazards:
        if hazard.name == "column-drop" and hazard.where in unused:
            reasons.setdefault(hazard.key, "an earlier revision says that it is not used any more")
    left = without_acknowledged(verdict.hazards, reasons)
    verdict.acknowledged = {
        each.key: reasons.get(each.key) or reasons[each.name]
        for each in verdict.hazards
        if each not in left
    }
    verdict.hazards = left


def _chosen(
    script: ScriptDirectory, wanted: str | None, current: set[str], target: str
) -> list[Script]:
    if wanted is None:
        unknown = [each for each in current if script.get_revision(each) is None]
        if unknown:
            raise CannotJudge(f"the database is at {unknown[0]}, which this code does not have")
        applied = history.ancestors(script, current)
        return [each for each in _up_to(script, target) if each not in applied]
    if ":" not in wanted:
        return [each for each in script.get_revisions(wanted) if each is not None]
    lower, upper = wanted.split(":", 1)
    applied = [] if lower in ("", "base") else _up_to(script, lower)
    return [each for each in _up_to(script, upper or "heads") if each not in applied]


def _up_to(script: ScriptDirectory, name: str) -> list[Script]:
    """The revisions that a name means (`head`, an id or its beginning), and all before them."""
    return history.ancestors(script, [each.revision for each in script.get_revisions(name)])


def _history_hazards(script: ScriptDirectory) -> Iterator[Hazard]:
    for revision, names in history.files_by_revision().items():
        if len(names) > 1:
            yield Hazard("duplicate-revision", item=revision, detail=" and ".join(names))
    heads = script.get_heads()
    if len(heads) > 1:
        yield Hazard("two-heads", detail=", ".join(sorted(heads)))


def _has_no_downgrade(script: Script) -> bool:
    tree = ast.parse(Path(script.path).read_text("utf-8"))
    found = [each for each in tree.body if getattr(each, "name", "") == "downgrade"]
    if not found:
        return not hasattr(script.module, "downgrade")
    body = getattr(found[-1], "body", [])
    return all(
        isinstance(each, ast.Pass | ast.Return)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in body
    )


def _offline_statements(script: Script) -> list[sql.Statement]:
    """What upgrade() would send, as far as it can say so without a database."""
    buffer = io.StringIO()
    options = {"as_sql": True, "output_buffer": buffer, "target_metadata": db.metadata}
    migration = MigrationContext.configure(dialect_name="postgresql", opts=options)

    @contextmanager
    def autocommit_block() -> Iterator[None]:
        buffer.write("-- autocommit\n;")
        yield
        buffer.write("-- transaction\n;")

    migration.autocommit_block = autocommit_block  # type: ignore[method-assign]
    try:
        with Operations.context(migration):
            script.module.upgrade()
    except Exception:
        pass  # what came before it is judged all the same
    autocommit = False
    statements = []
    for piece in re.split(r"(-- (?:autocommit|transaction)\n;)", buffer.getvalue()):
        if piece.startswith("-- "):
            autocommit = piece.startswith("-- autocommit")
        else:
            statements += [sql.Statement(each, autocommit) for each in sql.split(piece)]
    return statements


def _squawk(statements: list[sql.Statement], verdict: Verdict) -> list[Hazard]:
    """squawk's opinion where it is installed; only what our own judgement does not cover."""
    here = Path(sys.executable).parent / "squawk"
    program = str(here) if here.exists() else shutil.which("squawk")
    if program is None or not statements:
        return []
    script = ";\n".join(each.text for each in statements) + ";\n"
    result = subprocess.run(
        [program, "--reporter", "json"],
        input=script,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    try:
        findings: list[dict[str, Any]] = json.loads(result.stdout or "[]")
    except ValueError:
        return []
    rules = SQUAWK_ALWAYS if verdict.not_judged is None else SQUAWK_WITHOUT_DRY_RUN
    names = {each.name for each in verdict.hazards}
    return [
        Hazard("squawk", item=finding["rule_name"], detail=finding["message"])
        for finding in findings
        if finding["rule_name"] in rules and rules[finding["rule_name"]] not in names
    ]


def _as_dict(hazard: Hazard) -> dict[str, str]:
    return asdict(hazard) | {
        "key": hazard.key,
        "happens": hazard.happens,
        "recipe": hazard.recipe,
    }


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}"
