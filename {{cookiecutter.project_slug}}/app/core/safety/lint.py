"""`flask db lint`: judge revisions before they meet a database with users.

The dry run asks the server, the rules of statements.py read the text, squawk gives a second
opinion.
"""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from functools import lru_cache
from pathlib import Path

from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError

from app.config import Settings
from app.core import history
from app.core.database import DatabaseUnavailable, connect_directly
from app.core.database_errors import reason
from app.core.safety import checks, offline, squawk, statements
from app.core.safety.dry_run import DryRun, dry_run
from app.core.safety.hazards import Hazard, without_acknowledged
from app.core.safety.observed import CannotJudge, Observed
from app.core.safety.report import Report, Verdict
from app.core.waiting import telling

# So many revisions before one are asked which columns they added.
LATELY = 3
ADDS = re.compile(r"\badd(_column)?\b", re.IGNORECASE)


def judge_pending(settings: Settings, wanted: str | None) -> Report:
    """Judge `wanted`, or what the database does not have yet; without a database, nothing."""
    # What revisions print is no part of the report.
    with redirect_stdout(sys.stderr):
        try:
            with connect_directly(settings) as connection:
                current = history.current(connection)
            return judge(settings, wanted, current)
        except DatabaseUnavailable as error:
            return Report(not_judged=reason(error))


def judge(
    settings: Settings, wanted: str | None, current: set[str], target: str = "heads"
) -> Report:
    """Judge the revision or range `wanted`, by default what leads from `current` to `target`.

    A range is FROM:TO, without FROM itself.
    """
    try:
        script = history.load()
        result = Report(history=[*_history_hazards(script)])
        scripts = _chosen(script, wanted, current, target)
        last_exempt = settings.migration_lint_start_after
        exempt = _up_to(script, last_exempt) if last_exempt else []
    except (CommandError, CannotJudge) as error:
        return Report(not_judged=str(error))
    except Exception as error:
        return Report(not_judged=f"a revision file cannot be loaded: {_described(error)}")
    judged = [each for each in scripts if each not in exempt]
    if judged:
        _judge_all(result, script, judged, current, settings)
    return result


def _judge_all(
    result: Report,
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
    with ExitStack() as stack:
        run, trouble = None, None
        try:
            run = stack.enter_context(dry_run(settings))
            run.start(before, at_current=tips == current)
        except CannotJudge as error:
            run, trouble = None, str(error)
        tell = stack.enter_context(telling("judging revisions"))
        for number, each in enumerate(after, start=first):
            tell(f"judging revisions: {number - first} of {len(after)} done")
            verdict = _judge_one(each, run, trouble, _added_lately(everything[:number]))
            if verdict.not_judged and run is not None and not verdict.needs_rows:
                run, trouble = None, f"the revision before it could not be judged ({each.revision})"
            if each.revision in ids:
                earlier = history.recorded_as_unused(everything[:number])
                _apply_acknowledgements(verdict, each, earlier)
                result.verdicts.append(verdict)


def _judge_one(
    script: Script, run: DryRun | None, trouble: str | None, added_lately: set[str]
) -> Verdict:
    verdict = Verdict(script.revision, Path(script.path).name, [], not_judged=trouble)
    if run is None:
        ran = offline.statements(script)
        verdict.hazards += statements.hazards(ran, None, added_lately)
        changes = any(each.is_ddl for each in ran)
    else:
        observed = run.observe([script.module.upgrade], script)
        ran = observed.statements
        verdict.hazards += checks.hazards(observed, added_lately)
        changes = checks.has_a_way_back(observed)
        _take_failures(verdict, observed)
    verdict.hazards += squawk.findings(ran, verdict)
    if changes and _has_no_downgrade(script):
        verdict.hazards.append(Hazard("empty-downgrade"))
    return verdict


def _take_failures(verdict: Verdict, observed: Observed) -> None:
    failures = [each for each in verdict.hazards if each.name == "fails"]
    if not failures:
        return
    verdict.hazards = [each for each in verdict.hazards if each not in failures]
    if error := observed.needs_rows:
        verdict.needs_rows = True
        verdict.not_judged = (
            f"upgrade() needs rows, and a dry run has none ({observed.said(error)}). "
            "Write it so that it copes with an empty table, as a new database has: "
            ".one_or_none() or .scalar() for .one(), and a look whether there is anything"
        )
    else:
        verdict.not_judged = f"upgrade() fails: {failures[0].detail}"


def _added_lately(earlier: list[Script]) -> set[str]:
    """The columns of the last revisions: no row has a value there before somebody fills it."""
    return {name for each in earlier[-LATELY:] for name in _added_by(each)}


@lru_cache(LATELY)
def _added_by(script: Script) -> set[str]:
    # A first revision may make hundreds of tables: not run for nothing.
    if not ADDS.search(Path(script.path).read_text("utf-8")):
        return set()
    return statements.added_columns(offline.statements(script))


def _apply_acknowledgements(verdict: Verdict, script: Script, unused: set[str]) -> None:
    reasons = dict(getattr(script.module, "acknowledged", {}))
    for hazard in verdict.hazards:
        if hazard.name in ("column-drop", "table-drop") and hazard.where in unused:
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


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}"
