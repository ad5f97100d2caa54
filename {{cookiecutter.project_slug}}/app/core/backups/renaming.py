"""A dump for another schema: the name is changed wherever the text means the schema.

`svc.books` names the table in the schema; in `books.id` books may be the table, although a schema
has the same name. So the schema is meant only before the name of one of its own objects, and if
that is a type, where PostgreSQL writes queries, only after `::`, as in `'new'::svc.status`, or
before `(`. A string is somebody's data, whatever it says, unless PostgreSQL takes it for a name:
`'svc.books'::regclass`. Only the bodies of functions are text, and their strings may be SQL.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from app.core.backups.script import Entry
from app.core.database import quote
from app.core.sql import tokens, unquoted

ROUTINES = ("FUNCTION", "PROCEDURE")
QUERIES = ("VIEW", "MATERIALIZED VIEW", "RULE", "POLICY")
TYPES = ("TYPE", "SHELL TYPE", "DOMAIN")
REFERENCE = re.compile(
    r"(?:::text\))?::reg(?:class|proc|procedure|oper|operator|type|config|dictionary|collation"
    r"|namespace)\b"
)
OPERATOR = set("+-*/<>=~!@#%^&|`?")
PATH = re.compile(r"(?m)^( +SET search_path TO )(.+)$")


def renamed(
    entries: Iterator[Entry], old: str, new: str, notice: Callable[[str], None]
) -> Iterator[Entry]:
    """The entries for schema `new`. `notice` is told of functions that still mention `old`."""
    names = _Names(old, new)
    batch: list[Entry] = []
    for entry in entries:
        # A function may use a table that comes later: all names first, then the statements.
        names.learn(entry)
        if entry.rows is None:
            batch.append(entry)
            continue
        for each in batch:
            yield _changed(each, names, notice)
        batch = []
        yield _changed(entry, names, notice)
    for each in batch:
        yield _changed(each, names, notice)


@dataclass
class _Names:
    """What the schema has."""

    old: str
    new: str
    all: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)

    def learn(self, entry: Entry) -> None:
        """What SQL may call it: `f` for `f(integer)`, `pk` for `books pk`, a constraint."""
        if entry.schema != self.old:
            return
        if entry.kind in TYPES:
            self.types.add(entry.name)
            # A range brings another type.
            text = entry.sql.decode("utf-8", "surrogateescape")
            pattern = rf'multirange_type_name = "?{self.old}"?\.("(?:[^"]|"")+"|\w+)'
            self.types |= {unquoted(name) for name in re.findall(pattern, text)}
            return
        self.all |= {entry.name, entry.name.partition("(")[0]}
        if "CONSTRAINT" in entry.kind:
            self.all |= {entry.name.removeprefix(f"{table} ") for table in self.all}

    def has(self, name: str, in_query: bool, is_type: bool) -> bool:
        """Whether a name after `old.` is an object of the schema, not a column of a table `old`."""
        if unquoted(name) in self.all:
            return True
        return unquoted(name) in self.types and (
            is_type or not in_query or self.old not in self.all
        )


def _changed(entry: Entry, names: _Names, notice: Callable[[str], None]) -> Entry:
    text = entry.sql.decode("utf-8", "surrogateescape")
    old, new = names.old, names.new
    if old not in text:
        return entry
    text = _translated(text, names, entry)
    if entry.kind in ROUTINES:
        text = PATH.sub(lambda found: found[1] + re.sub(rf"\b{old}\b", new, found[2]), text)
        after = "|".join(re.escape(name) for name in names.types)
        column = rf'\.(?!{after})[\w"]' if after and old in names.all else r'\.[\w"]'
        if re.search(rf"(?<![\w.]){old}(?!\w|\(|{column})", text):
            notice(
                f"{entry.kind.lower()} {entry.name} still has {old} in its text, which may mean "
                "the schema: look at it"
            )
    return entry.with_sql(text.encode("utf-8", "surrogateescape"))


def _translated(sql: str, names: _Names, entry: Entry, in_body: bool = False) -> str:
    pieces = [*tokens(sql)]
    words = ""
    in_query = in_body or entry.kind in QUERIES
    for number, (kind, piece) in enumerate(pieces):
        before = "".join(text for _, text in pieces[max(number - 2, 0) : number])
        after = [text for _, text in pieces[number + 1 : number + 8]]
        if kind in ("word", "quoted"):
            words = f"{words} {piece}"[-40:]
            in_query = in_query or words.endswith("BEGIN ATOMIC")
            if unquoted(piece) != names.old or before.endswith(".") or after[:1] != ["."]:
                continue
            if symbols := "".join(takewhile(OPERATOR.__contains__, after[1:])):
                # Not `books.*`, all columns of a table.
                is_operator = before.upper().startswith("OPERATOR") or entry.kind.startswith(
                    "OPERATOR"
                )
                means_it = is_operator and symbols in names.all
            else:
                name, following = [*after[1:3], "", ""][:2]
                means_it = names.has(name, in_query, is_type=before == "::" or following == "(")
            if means_it:
                pieces[number] = kind, quote(names.new)
        elif kind == "string":
            is_name = REFERENCE.match("".join(after)) or entry.kind == "SEQUENCE SET"
            if in_body or is_name:
                pieces[number] = kind, _in_a_string(piece, names, is_type=not in_body)
            if "".join(after).startswith("::regnamespace") and piece[1:-1] == names.old:
                pieces[number] = kind, f"'{quote(names.new)}'"
        elif kind == "dollar":
            tag = piece[: piece.index("$", 1) + 1]
            body = _translated(piece[len(tag) : -len(tag)], names, entry, in_body=True)
            pieces[number] = kind, f"{tag}{body}{tag}"
    return "".join(piece for _, piece in pieces)


def _in_a_string(piece: str, names: _Names, is_type: bool) -> str:
    """`nextval('svc.books_id_seq'::regclass)`, and the SQL in a string of a function."""

    def name(found: re.Match[str]) -> str:
        is_operator = not OPERATOR.isdisjoint(found[1])
        if is_operator and not is_type and not piece[: found.start()].upper().endswith("OPERATOR("):
            return found[0]
        means_it = names.has(found[1], in_query=True, is_type=is_type)
        return f"{quote(names.new)}.{found[1]}" if means_it else found[0]

    pattern = rf'(?<![\w."])"?{names.old}"?\.("(?:[^"]|"")+"|\w+|[^\w\s"\'(),;.]+)'
    return re.sub(pattern, name, piece)
