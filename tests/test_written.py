"""What `flask db migrate` writes, for random pairs of models: up, down and up again, all of it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project, copy_project
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

WORKER = Path(__file__).parent / "written_worker.py"

TABLES = ["plain", "user", "Order Line", 'odd"%s', "t" * 40]
COLUMNS = ["x", "select", "Mixed Case", "per%cent", 'quo"te', "it's", "c" * 50]
TYPES = [
    "sa.Integer()",
    "sa.BigInteger()",
    "sa.String(20)",
    "sa.String(200)",
    "sa.Text()",
    "sa.Numeric(10, 2)",
    "sa.Numeric(14, 2)",
    "sa.Boolean()",
    "sa.Date()",
    "sa.DateTime()",
    "sa.DateTime(timezone=True)",
    "postgresql.JSONB()",
    "sa.Uuid()",
    "sa.ARRAY(sa.Text())",
    "sa.Enum('a', 'b', name='letters', native_enum=False, length=64)",
    "sa.Enum('a', 'b', name='native')",
]
NUMBERS = ("sa.Integer()", "sa.BigInteger()", "sa.Numeric(10, 2)", "sa.Numeric(14, 2)")
TEXTS = ("sa.String(20)", "sa.String(200)", "sa.Text()")
WORDS = ["", "plain", "Hi :name", ":smile: it's", "100 %s %(x)s", "'quoted'", "back\\slash \\:x"]


def _default(draw: st.DrawFn, type_: str) -> str | None:
    if type_ in NUMBERS:
        return draw(st.sampled_from([None, None, "'0'", "'7'", "sa.text('-1')"]))
    if type_ in TEXTS:
        word = draw(st.sampled_from(WORDS))
        return draw(st.sampled_from([None, None, repr(word)]))
    if type_.startswith("sa.DateTime"):
        return draw(st.sampled_from([None, None, "sa.func.now()"]))
    if type_ == "sa.Boolean()":
        return draw(st.sampled_from([None, "sa.false()", "sa.true()"]))
    return None


def _column(draw: st.DrawFn, table: str, name: str) -> tuple[str, str]:
    type_ = draw(st.sampled_from(TYPES))
    words = [repr(name), type_, f"nullable={draw(st.booleans())}"]
    if default := _default(draw, type_):
        words.append(f"server_default={default}")
    if draw(st.integers(0, 3)) == 0:
        words.append(f"comment={draw(st.sampled_from(WORDS))!r}")
    return type_, f"sa.Column({', '.join(words)})"


def _constraints(
    draw: st.DrawFn, table: str, columns: dict[str, str], others: list[str]
) -> Iterator[str]:
    """Some of what a table may have besides its columns."""
    names = [*columns]
    wanted = draw(st.lists(st.integers(0, 9), max_size=4, unique=True))
    some = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    plain = [each for each in some if columns[each] != "postgresql.JSONB()"]
    listed = ", ".join(map(repr, plain))
    number = next((each for each in names if columns[each] in NUMBERS), None)
    word = next((each for each in names if columns[each] in TEXTS), None)
    limit = draw(st.integers(0, 1))
    if 0 in wanted and plain:
        options = draw(st.sampled_from(["", ", deferrable=True", ", name='uq one'"]))
        yield f"sa.UniqueConstraint({listed}{options})"
    if 1 in wanted and plain:
        yield f"sa.Index('ix {table[:20]}', {listed}, unique={draw(st.booleans())})"
    if 2 in wanted and number:
        yield (
            f"sa.CheckConstraint(sa.column({number!r}, sa.Integer) > {limit}, name='over')"
        )
    if 3 in wanted and word:
        pattern = draw(st.sampled_from(["a:b", ":name", "100%", "it''s"]))
        column = '"' + word.replace('"', '""') + '"'
        yield f"sa.CheckConstraint(sa.literal_column({column + f''' <> '{pattern}' '''!r}) , name='words')"
    if 4 in wanted and others:
        other = draw(st.sampled_from(others))
        action = draw(st.sampled_from(["", ", ondelete='CASCADE'", ", deferrable=True"]))
        yield f"sa.ForeignKeyConstraint(['parent'], ['{other}.id']{action})"
    if 5 in wanted and plain and number:
        condition = '"' + number.replace('"', '""') + f'" > {limit}'
        where = f"postgresql_where=sa.literal_column({condition!r})"
        yield f"sa.Index('ix part {table[:20]}', {listed}, {where})"
    if 6 in wanted and word:
        yield f"sa.Index('ix low {table[:20]}', sa.func.lower(sa.column({word!r})), unique={bool(limit)})"
    if 7 in wanted:
        document = next((each for each in names if columns[each] == "postgresql.JSONB()"), None)
        if document:
            yield f"sa.Index('ix gin {table[:20]}', {document!r}, postgresql_using='gin')"
    if 8 in wanted and number:
        rest = draw(st.sampled_from(["&&", "="]))
        yield (
            "postgresql.ExcludeConstraint((sa.text('int8range(id, id, $$[]$$)'), "
            f"'{'&&' if rest else rest}'), name='ex {table[:20]}')"
        )


@st.composite
def _models(draw: st.DrawFn) -> str:
    """The source text of a few tables."""
    lines = []
    names = draw(st.lists(st.sampled_from(TABLES), min_size=0, max_size=3, unique=True))
    for table in names:
        chosen = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4, unique=True))
        columns, parts = {}, []
        for name in chosen:
            columns[name], text = _column(draw, table, name)
            parts.append(text)
        if draw(st.integers(0, 5)) == 0:
            parts.append("sa.Column('sum', sa.BigInteger(), sa.Computed('id + 1', persisted=True))")
        if draw(st.integers(0, 5)) == 0:
            parts.append("sa.Column('counts', sa.BigInteger(), sa.Identity())")
        key = "sa.Column('id', sa.BigInteger(), primary_key=True)"
        if table == "plain" and draw(st.booleans()):
            key += ", sa.Column('part', sa.Integer(), primary_key=True)"
        parts = [key, "sa.Column('parent', sa.BigInteger())", *parts]
        parts += _constraints(draw, table, columns, [each for each in names if each != "plain"])
        if draw(st.integers(0, 4)) == 0:
            parts.append(f"comment={draw(st.sampled_from(WORDS[1:]))!r}")
        lines.append(f"sa.Table({table!r}, m, {', '.join(parts)})")
    return "\n".join(lines)


class Worker:
    """The process of a generated project that tries a change."""

    def __init__(self, project: Project) -> None:
        self.process = subprocess.Popen(
            [project.python, WORKER],
            cwd=project.path,
            env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, models: list[str]) -> dict[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"models": models}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                answer: dict[str, str] = json.loads(line.removeprefix("ANSWER "))
                return answer
        raise AssertionError("the worker ended")
