"""What a rehearsal has found, for people and for tools."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import click

from app.core.rehearsal.watch import Wait
from app.core.words import size

WIDTH = 100
NAME = 32
WAIT = 18
SHOWN_SECONDS = 0.01


@dataclass
class Step:
    """What one revision took."""

    revision: str
    file: str
    seconds: float = 0
    rows: int = 0
    retries: int = 0
    waits: dict[str, Wait] = field(default_factory=dict)
    # Bytes with indexes, before and after, of each table that was there or is.
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def longest_wait(self) -> tuple[str, float]:
        """The table, and the seconds."""
        waits = [(name, wait.seconds) for name, wait in self.waits.items()]
        return max(waits, key=lambda each: each[1], default=("", 0.0))


@dataclass
class Finding:
    """Something that went wrong, or that is good to know."""

    # wait, fails, breaks, rows, down, again, load, security
    kind: str
    words: str
    revision: str = ""
    table: str = ""
    is_to_fix: bool = True
    is_a_break_of_previous: bool = False
    acknowledged: str = ""

    @property
    def counts(self) -> bool:
        """Whether it makes the rehearsal fail."""
        return self.is_to_fix and not self.acknowledged


@dataclass
class Report:
    """All of it."""

    title: str = ""
    load: str = ""
    limit_seconds: float = 0
    steps: list[Step] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    # What was done besides, as (what, how it went).
    checks: list[tuple[str, str]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 something is to be fixed."""
        return 1 if any(each.counts for each in self.findings) else 0

    def add(self, kind: str, words: str, revision: str = "", table: str = "") -> Finding:
        """Something to fix."""
        finding = Finding(kind, words, revision, table)
        self.findings.append(finding)
        return finding

    def note(self, kind: str, words: str, revision: str = "", table: str = "") -> None:
        """Something to know."""
        self.add(kind, words, revision, table).is_to_fix = False

    def text(self) -> str:
        """The report for people, at most 100 characters wide."""
        return "\n".join(self._lines())

    def json(self) -> str:
        """The report for tools."""
        steps = [
            asdict(each)
            | {
                "waits": {
                    name: asdict(it) | {"seconds": it.seconds} for name, it in each.waits.items()
                }
            }
            | {
                "sizes": {
                    name: dict(zip(("before", "after"), pair, strict=True))
                    for name, pair in each.sizes.items()
                }
            }
            | {"longest_wait": dict(zip(("table", "seconds"), each.longest_wait, strict=True))}
            for each in self.steps
        ]
        findings = [asdict(each) | {"counts": each.counts} for each in self.findings]
        return json.dumps(
            {
                "title": self.title,
                "load": self.load,
                "limit_seconds": self.limit_seconds,
                "revisions": steps,
                "findings": findings,
                "checks": dict(self.checks),
                "exit_code": self.exit_code,
            },
            indent=2,
        )

    def _lines(self) -> Iterator[str]:
        yield from _wrapped(self.title)
        if self.load:
            yield from _wrapped(self.load)
        if self.steps:
            yield ""
            yield click.style(
                _row("revision", "seconds", "rows", "retries", "longest wait", "size"), bold=True
            )
            for each in self.steps:
                yield self._line(each)
        if self.checks:
            yield ""
        for what, how in self.checks:
            yield from _wrapped(f"{what:<20} {how}", 21)
        for heading, chosen in self._groups():
            if chosen:
                yield ""
                yield heading
                for finding in chosen:
                    yield from _wrapped(f"  {_described(finding)}", 4)
        yield ""
        count = sum(each.counts for each in self.findings)
        yield (
            click.style(f"{count} to fix", fg="red", bold=True)
            if count
            else click.style("nothing to fix", fg="green", bold=True)
        )

    def _groups(self) -> Iterator[tuple[str, list[Finding]]]:
        yield click.style("to fix", fg="red"), [each for each in self.findings if each.counts]
        yield "acknowledged", [each for each in self.findings if each.acknowledged]
        yield "to know", [each for each in self.findings if not each.is_to_fix]

    def _line(self, step: Step) -> str:
        table, seconds = step.longest_wait
        wait = f"{seconds:.2f} s {table}" if seconds >= SHOWN_SECONDS else "none"
        if seconds > self.limit_seconds:
            wait = click.style(f"{_cut(wait, WAIT):<{WAIT}}", fg="red")
        before, after = (
            (sum(each) for each in zip(*step.sizes.values(), strict=True)) if step.sizes else (0, 0)
        )
        sizes = f"{size(before)} → {size(after)}"
        return _row(
            step.file, f"{step.seconds:.2f}", f"{step.rows:,}", str(step.retries), wait, sizes
        )


def _row(name: str, seconds: str, rows: str, retries: str, wait: str, sizes: str) -> str:
    name = _cut(name.removesuffix(".py"), NAME)
    wait = wait if "\x1b" in wait else f"{_cut(wait, WAIT):<{WAIT}}"
    return f"{name:<{NAME}}{seconds:>8}{rows:>10}{retries:>8}  {wait}  {sizes}".rstrip()


def _cut(words: str, width: int) -> str:
    return words if len(words) <= width else f"{words[: width - 1]}…"


def _described(finding: Finding) -> str:
    where = f"{finding.revision}: " if finding.revision else ""
    why = f" ({finding.acknowledged})" if finding.acknowledged else ""
    return f"{where}{finding.words}{why}"


def _wrapped(words: str, indent: int = 2) -> list[str]:
    lines = []
    for number, line in enumerate(words.splitlines()):
        first = "" if number == 0 else " " * indent
        lines += textwrap.wrap(
            line,
            WIDTH,
            initial_indent=first,
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    return lines
