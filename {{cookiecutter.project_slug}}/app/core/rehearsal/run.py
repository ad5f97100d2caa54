"""The rehearsal: fill a scratch database, migrate it under load, and ask what became of it."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psycopg
from alembic.script import Script
from sqlalchemy import URL

from app.config import Settings
from app.core import extensions, history, releases
from app.core.backups import places
from app.core.backups.store import Backup, Store
from app.core.rehearsal import judge, tables
from app.core.rehearsal.fill import service_on, with_backup, with_seeds
from app.core.rehearsal.load import Load, check_room
from app.core.rehearsal.previous import Code, DoesNotRunError, code_of
from app.core.rehearsal.report import Report, Step
from app.core.rehearsal.revisions import Plan, Run, downgrade, plan, upgrade, without_bytecode
from app.core.rehearsal.scratch import libpq, scratch_database
from app.core.rehearsal.watch import Watch
from app.core.waiting import telling
from app.core.words import counted

PREVIOUS = "previous release"


@dataclass
class Options:
    """What the command line says."""

    file: str | None = None
    start: str | None = None
    previous: str | None = None
    rows: int = 0
    readers: int = 4
    writers: int = 4
    rate: int = 50


def rehearse(settings: Settings, options: Options) -> Report:
    """Do all of it; raises `CannotRehearse`, and `BackupError` for a file that is none."""
    backup = places.existing(settings, options.file) if options.file else None
    manifest = backup[1].manifest if backup else None
    with ExitStack() as stack:
        stack.enter_context(without_bytecode())
        files = history.texts()
        chosen = plan(options.start, {*manifest.revisions} if manifest else None)
        if not chosen.pending:
            return Report(title=f"nothing to rehearse: no revision is pending {chosen.why}")
        _say("making a scratch database")
        url = stack.enter_context(scratch_database(settings))
        own = stack.enter_context(service_on(url, settings))
        limit = own.migration_lock_timeout_ms / 1000
        report = Report(limit_seconds=limit)
        Rehearsal(own, options, chosen, backup, url, report, stack).run()
        now = history.texts()
        for name in sorted(each for each in {**files, **now} if files.get(each) != now.get(each)):
            words = f"{name} was changed while it was rehearsed, so nothing here is sure: "
            report.add("fails", f"{words}rehearse again")
        return report


@dataclass
class Rehearsal:
    """One rehearsal in its scratch database; what it opens is closed by `stack`."""

    settings: Settings
    options: Options
    plan: Plan
    backup: tuple[Store, Backup] | None
    url: URL
    report: Report
    stack: ExitStack
    done: list[Script] = field(default_factory=list)
    # What there was before each of them.
    before: dict[str, tables.State] = field(default_factory=dict)
    previous: Code | None = None
    # What its models could do when they were asked last.
    probed: dict[str, Any] = field(default_factory=dict)
    # And what before anything was migrated.
    first: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Fill, migrate under load, down and up again, count, and let both releases work."""
        self._unpack_previous()
        self.connection = self.stack.enter_context(self._connect())
        check_room(self.connection, self.options)
        source = self._fill()
        self.connection.execute("ANALYZE")
        self._describe(source)
        modelled = self._ask_previous_first()
        start = self._state()
        self._migrate(modelled, start)
        end = self._state()
        if len(self.done) == len(self.plan.pending):
            fault = self._down_and_up(end)
            if not fault:
                self._ask_previous()
            self._sum_up(end)
            if fault:  # codes would fail because of it, and not for a fault of theirs
                self._check("this code", f"not asked: {fault}")
            else:
                self._ask_this_code()
        dropped = {*start.names.values()} - {*end.names.values()}
        judge.acknowledge(self.report, self.plan.pending, dropped)

    def _unpack_previous(self) -> None:
        place = self.options.previous or releases.release_before(self.plan.pending)
        if place is None:
            why = "git knows no code that is older than these revisions"
            if not releases.is_git_here():
                why = "git is not installed here"
            self._check(PREVIOUS, f"not asked: {why}")
            return
        try:
            found = code_of(place, self.url, self.settings.schema_name)
            self.previous = self.stack.enter_context(found)
        except DoesNotRunError as error:
            self._check(PREVIOUS, f"not asked: {error}")

    def _fill(self) -> str:
        if self.backup:
            _say(f"restoring {self.options.file}")
            return with_backup(*self.backup, self.settings)
        _say(f"upgrading to {self.plan.base}, and planting seeds")
        rows = self.options.rows
        source, *faults = with_seeds(self.plan, self.previous, self.url, self.settings, rows)
        for words in faults:
            self.report.note("load", words)
        return source

    def _describe(self, source: str) -> None:
        row = self.connection.execute("SHOW server_version").fetchone()
        version = str(row[0]).split()[0] if row else ""
        pending = counted(len(self.plan.pending), "revision")
        self.report.title = (
            f"{pending} ({self.plan.why}), from {self.plan.base}, on {source}, PostgreSQL {version}"
        )

    def _ask_previous_first(self) -> dict[str, list[str]]:
        """The tables of its models, and their columns."""
        if self.previous is None:
            return {}
        try:
            with telling(f"letting the models of {self.previous.name} read and write"):
                self.first = self.probed = self.previous.probe()
                judge.take_unfit(self.report, self.previous.name, self.probed)
                return self.previous.tables()
        except DoesNotRunError as error:
            self._check(PREVIOUS, f"not asked: {error}")
            self.previous = None
            return {}

    def _migrate(self, modelled: dict[str, list[str]], start: tables.State) -> None:
        found = tables.read(self.connection, self.settings.schema_name, modelled)
        load = Load(libpq(self.url, self._path(), *self._limits()), self.options, found)
        watch = Watch(libpq(self.url), load.pids, {each.oid: each.name for each in found})
        try:
            if found:
                _say(f"starting {self.options.readers} readers, {self.options.writers} writers")
            load.start()
            watch.start()
            self.report.load = judge.words_of(load)
            judge.take_left_out(self.report, load)
            before = start
            for script in self.plan.pending:
                sizes = tables.sizes(self.connection, self.settings.schema_name)
                step, run = self._up(script, watch)
                after = self._state()
                unused = history.recorded_as_unused(self.plan.before + self.done)
                judge.compare(self.report, step, before, after, sizes, unused)
                judge.take_waits(self.report, step)
                if run.error:
                    self.report.add("fails", run.error, step.revision)
                    break
                self.done.append(script)
                self.before[script.revision] = before
                self._ask_previous(step.revision, before)
                load.lap()
                judge.take_failures(self.report, load, step)
                before = after
        finally:
            load.stop()
            watch.stop()

    def _up(self, script: Script, watch: Watch) -> tuple[Step, Run]:
        step = Step(script.revision, Path(script.path).name)
        _say(f"running {step.file}")
        with telling(f"running {step.file}"):
            watch.begin()
            run = upgrade(script, str(self.url.database))
            step.waits = watch.end()
        step.seconds, step.rows, step.retries = run.seconds, run.rows, run.retries
        self.report.steps.append(step)
        return step, run

    def _down_and_up(self, end: tables.State) -> str:
        """Also says why the tables are not as at the end, if they are not."""
        down, words, fault = list[Script](), "", ""
        now, lost = end, set[str]()
        for script in reversed(self.done):
            reasons = dict(getattr(script.module, "acknowledged", {}))
            if why := reasons.get("empty-downgrade"):
                words = f"; {script.revision} does not go down, by design: {why}"
                break
            _say(f"down: {Path(script.path).name}")
            run = downgrade(script, str(self.url.database))
            if run.is_by_design:
                words = f"; {script.revision} does not go down, by design: {run.error}"
                break
            if run.error:
                words = f"; {script.revision} does not go down"
                self.report.add("down", f"downgrade() fails: {run.error}", script.revision)
                break
            down.append(script)
            start, was, now = self.before[script.revision], now, self._state()
            lost |= judge.compare_down(self.report, script.revision, start, was, now)
        for script in reversed(down):
            _say(f"up again: {Path(script.path).name}")
            run = upgrade(script, str(self.url.database))
            if run.error:
                fault = f"{script.revision} does not go up again"
                words = f"; {fault}"
                words_of_it = f"upgrade() fails after downgrade(): {run.error}"
                self.report.add("again", words_of_it, script.revision)
                break
        else:
            now = self._state()
            judge.compare_again(self.report, end, now, lost)
            if gone := sorted({*end.names.values()} - {*now.names.values()}):
                fault = f"going down and up again has dropped {', '.join(gone)}"
        self._check("down and up again", f"{len(down)} of {len(self.done)} revisions{words}")
        return fault

    def _ask_previous(self, revision: str = "", start: tables.State | None = None) -> None:
        if self.previous:
            with telling(f"letting the models of {self.previous.name} read and write"):
                now = self.previous.probe()
            release = self.previous.name
            judge.take_broken(self.report, release, self.probed, now, revision, start)
            self.probed = now

    def _ask_this_code(self) -> None:
        try:
            with (
                telling("letting the models of this code read and write"),
                code_of(None, self.url, self.settings.schema_name) as code,
            ):
                count, faults = judge.take_own_faults(self.report, code.probe(), self.first)
        except DoesNotRunError as error:
            self._check("this code", f"not asked: {error}")
            return
        how = f"does not read and write {faults}" if faults else "reads and writes all"
        self._check("this code", f"{how} of its {count} tables")

    def _sum_up(self, end: tables.State) -> None:
        self._check("rows", f"{sum(end.rows.values()):,} in {len(end.rows)} tables at the end")
        if self.previous:
            count = len(self.probed["results"])
            broken = {each.table for each in self.report.findings if each.is_a_break_of_previous}
            how = f"no longer reads and writes {len(broken)}" if broken else "reads and writes all"
            self._check(PREVIOUS, f"{self.previous.name} {how} of its {count} tables")

    def _check(self, what: str, how: str) -> None:
        self.report.checks.append((what, how))

    def _state(self) -> tables.State:
        with telling("counting rows"):
            return tables.state(self.connection, self.settings.schema_name)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            libpq(self.url, self._path()), autocommit=True, application_name="rehearsal"
        )

    def _path(self) -> str:
        return f"search_path={extensions.search_path(self.settings.schema_name)}"

    def _limits(self) -> tuple[str, str]:
        """Those of a request."""
        return (
            f"lock_timeout={self.settings.database_lock_timeout_ms}",
            f"statement_timeout={self.settings.database_statement_timeout_ms}",
        )


def _say(words: str) -> None:
    click.echo(words, err=True)
