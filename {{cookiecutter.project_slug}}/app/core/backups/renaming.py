"""A dump for another schema: the name is changed wherever the text means the schema.

`svc.books` names the table in the schema; in `books.id` books may be the table, although a schema
has the same name. So the schema is meant only before the name of one of its own objects.
"""

import re
from collections.abc import Callable, Iterator

from app.core.backups.script import Entry
from app.core.sql import tokens, unquoted

ROUTINES = ("FUNCTION", "PROCEDURE")
PATH = re.compile(r"(?m)^( +SET search_path TO )(.+)$")


def renamed(
    entries: Iterator[Entry], old: str, new: str, notice: Callable[[str], None]
) -> Iterator[Entry]:
    """The entries for schema `new`. `notice` is told of functions that still mention `old`."""
    names: set[str] = set()
    batch: list[Entry] = []
    for entry in entries:
        # A function may use a table that comes later: all names first, then the statements.
        if entry.schema == old:
            names |= _names(entry, names)
        if entry.rows is None:
            batch.append(entry)
            continue
        yield from _all_renamed(batch, names, old, new, notice)
        batch = []
        yield entry.with_sql(_in_bytes(entry.sql, names, old, new))
    yield from _all_renamed(batch, names, old, new, notice)


def _names(entry: Entry, tables: set[str]) -> set[str]:
    """What SQL may call it: `f` for `f(integer)`, `pk` for `books pk`, a constraint of books."""
    found = {entry.name, entry.name.partition("(")[0]}
    if "CONSTRAINT" in entry.kind:
        found |= {entry.name.removeprefix(f"{table} ") for table in tables}
    return found


def _all_renamed(
    batch: list[Entry], names: set[str], old: str, new: str, notice: Callable[[str], None]
) -> Iterator[Entry]:
    for entry in batch:
        sql = _in_bytes(entry.sql, names, old, new)
        if entry.kind in ROUTINES:
            text = sql.decode("utf-8", "surrogateescape")
            text = PATH.sub(lambda found: found[1] + re.sub(rf"\b{old}\b", new, found[2]), text)
            sql = text.encode("utf-8", "surrogateescape")
            if re.search(rf'(?<![\w.]){old}(?!\w|\(|\.[\w"])', text):
                notice(
                    f"{entry.kind.lower()} {entry.name} still has {old} in its text, which may "
                    "mean the schema: look at it"
                )
        yield entry.with_sql(sql)


def _in_bytes(sql: bytes, names: set[str], old: str, new: str) -> bytes:
    text = sql.decode("utf-8", "surrogateescape")
    if old not in text:
        return sql
    return _translated(text, names, old, new).encode("utf-8", "surrogateescape")


def _translated(sql: str, names: set[str], old: str, new: str) -> str:
    pieces = [*tokens(sql)]
    for number, (kind, piece) in enumerate(pieces):
        if kind in ("word", "quoted") and unquoted(piece) == old:
            dot, name = [*(text for _, text in pieces[number + 1 : number + 3]), "", ""][:2]
            is_after_a_dot = number > 0 and pieces[number - 1][1] == "."
            if dot == "." and not is_after_a_dot and unquoted(name) in names:
                pieces[number] = kind, new
        elif kind == "string":
            pieces[number] = kind, _in_a_string(piece, names, old, new)
        elif kind == "dollar":
            tag = piece[: piece.index("$", 1) + 1]
            body = _translated(piece[len(tag) : -len(tag)], names, old, new)
            pieces[number] = kind, f"{tag}{body}{tag}"
    return "".join(piece for _, piece in pieces)


def _in_a_string(piece: str, names: set[str], old: str, new: str) -> str:
    """`nextval('svc.books_id_seq'::regclass)`, and the SQL in a string of a function."""

    def name(found: re.Match[str]) -> str:
        return f"{new}.{found[1]}" if unquoted(found[1]) in names else found[0]

    return re.sub(rf'(?<![\w."]){old}\.("(?:[^"]|"")+"|\w+)', name, piece)
