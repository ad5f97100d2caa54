"""What was measured, turned into findings: what is to be fixed, and what is good to know."""

from collections.abc import Iterable
from typing import Any

from alembic.script import Script

from app.core.rehearsal.load import Load
from app.core.rehearsal.previous import broken
from app.core.rehearsal.report import Report, Step
from app.core.rehearsal.tables import State
from app.core.words import counted

# See models.py.
NUMBER_TAKEN = "NumberTakenError"
KINDS = {"select": "SELECT from", "update": "UPDATE of", "insert": "INSERT into"}


def words_of(load: Load) -> str:
    """How much load there is, and how fast it was before anything happened."""
    if not load.workers:
        return "no load: there is no table yet" if not load.tables else "no load"
    return (
        f"load: {load.wanted.readers} readers and {load.wanted.writers} writers, "
        f"{load.per_second:.0f} statements a second; without a migration the slowest took "
        f"{load.slowest:.3f} s"
    )


def take_left_out(report: Report, load: Load) -> None:
    """What the load could not do even before."""
    for each in load.left_out:
        words = f"not under load: {KINDS[each.kind]} {each.table.name}: {each.words}"
        report.note("load", words, table=each.table.name)


def take_waits(report: Report, step: Step) -> None:
    """Those that were too long."""
    limit = report.limit_seconds
    for name, wait in step.waits.items():
        if wait.seconds <= limit:
            continue
        words = f"{name} was locked for {wait.locked:.2f} s, which keeps out {wait.keeps_out}"
        if wait.waited > limit:
            many = f"{wait.statements} statements" if wait.statements > 1 else "a statement"
            words = f"{many} on {name} waited, up to {wait.waited:.2f} s"
        words += f"; the limit is {limit:g} s (MIGRATION_LOCK_TIMEOUT_MS)"
        report.add("wait", words, step.revision, name)


def compare(
    report: Report,
    step: Step,
    before: State,
    after: State,
    sizes: dict[str, int],
    unused: set[str],
) -> None:
    """The rows and sizes before and after a revision."""
    now = {after.names[oid]: size for oid, size in after.bytes.items()}
    step.sizes = {name: (sizes.get(name, 0), now.get(name, 0)) for name in {**sizes, **now}}
    for oid, file in after.files.items():
        if before.files.get(oid, file) != file:  # the table was written anew
            step.rows = max(step.rows, after.rows[oid])
    for oid, name in after.names.items():
        if after.security[oid] != before.security.get(oid, ""):
            words = f"row level security of {name} changed; it is not rehearsed, because the role "
            words += "of a rehearsal is not subject to it"
            report.note("security", words, step.revision, name)
    for oid, name in before.names.items():
        rows, left = before.rows[oid], after.rows_of(name, oid)
        if left is None and rows:
            gone = f"{name} is dropped with its {counted(rows, 'row')}"
            if name in unused:
                gone += "; an earlier revision says that it is not used any more"
            finding = report.add("rows", gone, step.revision, name)
            finding.is_to_fix = name not in unused
        elif left is not None and left != rows:
            words = f"{name} {'loses' if left < rows else 'gets'} rows: {rows:,} → {left:,}"
            finding = report.add("rows", words, step.revision, name)
            finding.is_to_fix = left < rows


def compare_down(report: Report, revision: str, start: State, end: State, now: State) -> set[str]:
    """What was there before a revision and after it stays when it goes down; else the tables."""
    lost = set()
    for name in sorted({*start.names.values()} & {*end.names.values()}):
        expected = min(start.rows_of(name) or 0, end.rows_of(name) or 0)
        found = now.rows_of(name)
        words = f"{name} has {found or 0:,} of {counted(expected, 'row')} after going down"
        if found is None:
            words = f"downgrade() drops {name}, which was there before upgrade()"
        if found is None or found < expected:
            report.add("rows", words, revision, name)
            lost.add(name)
    return lost


def compare_again(report: Report, end: State, now: State, lost: set[str]) -> None:
    """All rows are back after going down and up again, but for those of tables `lost` before."""
    for name in sorted({*end.names.values()} - lost):
        expected, found = end.rows_of(name) or 0, now.rows_of(name) or 0
        if found < expected:
            words = (
                f"{name} has {found:,} of {counted(expected, 'row')} after going down and up again"
            )
            report.add("rows", words, table=name)


def take_unfit(report: Report, release: str, probed: dict[str, Any]) -> None:
    """What the models of the release before could not read to begin with."""
    for table, done in probed["results"].items():
        if error := done.get("read"):
            words = f"the code of {release} cannot read {table} even before: {error}"
            report.note("breaks", words, table=table)


def take_broken(
    report: Report,
    release: str,
    before: dict[str, Any],
    now: dict[str, Any],
    revision: str,
    start: State | None,
) -> None:
    """What the models of the release before can no longer do; `start` is when they could."""
    for table, seen in now["views"].items():
        was = before["views"].get(table, start.rows_of(table) if start else None)
        if was and seen < was:
            words = f"the code of {release} sees {seen:,} of the {counted(was, 'row')} of {table}, "
            words += "which is a view now"
            report.add("breaks", words, revision, table).is_a_break_of_previous = True
    for table, words, is_certain in broken(before, now):
        if is_certain:
            words = f"the code of {release} no longer works with {table}: {words}"
            report.add("breaks", words, revision, table).is_a_break_of_previous = True
        else:
            words = f"does the code of {release} ever do this to {table}? It now fails: {words}"
            report.note("breaks", words, revision, table)


def take_failures(report: Report, load: Load, step: Step) -> None:
    """What failed under load, unless the models have said so."""
    while load.failures:
        each = load.failures.pop(0)
        name = each.table.name
        if any(it.table == name and it.kind == "breaks" and it.is_to_fix for it in report.findings):
            continue
        who = " as the release before does it" if each.table.is_modelled else ""
        words = f"{KINDS[each.kind]} {name}{who} fails: {each.words}"
        finding = report.add("breaks", words, step.revision, name)
        finding.is_to_fix = finding.is_a_break_of_previous = each.table.is_modelled


def take_own_faults(
    report: Report, probed: dict[str, Any], first: dict[str, Any]
) -> tuple[int, int]:
    """What the code of now cannot do; how many tables it has, and how many are concerned.

    A number that was taken at `first`, before the migration, is the doing of the seeds.
    """
    old = {
        table
        for table, done in first.get("results", {}).items()
        if any(error.startswith(NUMBER_TAKEN) for error in done.values())
    }
    faults = {
        table: f"{what}: {error}"
        for table, done in probed["results"].items()
        for what, error in done.items()
        if error
        and (
            what in ("read", "change rows", "change a row")
            or (error.startswith(NUMBER_TAKEN) and table not in old)
        )
    }
    for table, words in faults.items():
        report.add("breaks", f"this code does not work with {table}: {words}", table=table)
    return len(probed["results"]), len(faults)


def acknowledge(report: Report, pending: Iterable[Script], dropped: set[str]) -> None:
    """`acknowledged = {"rehearsal:books": "the reason"}` in one of the revisions.

    Who has acknowledged that a table is dropped knows that its rows go, and what uses it.
    """
    reasons: dict[str, str] = {}
    for script in pending:
        reasons |= getattr(script.module, "acknowledged", {})
    for each in report.findings:
        keys = [f"rehearsal:{each.table}"]
        if each.table in dropped and each.kind in ("rows", "breaks"):
            keys += [f"table-drop:{each.table}", "table-drop"]
        if each.is_to_fix and each.table:
            each.acknowledged = next((reasons[key] for key in keys if reasons.get(key)), "")
