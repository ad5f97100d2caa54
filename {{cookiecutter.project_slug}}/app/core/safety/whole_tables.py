"""Does an UPDATE or DELETE change practically all rows of a table? Said of its text."""

import re
from collections.abc import Iterator

from app.core.sql import NAME, named, tokens

ALIAS = r"(?:\s*\*)?(?:\s+(?:as\s+)?(?!set\b|where\b|using\b|returning\b)(?:\"[^\"]+\"|\w+))?"
UPDATE = re.compile(rf"\bupdate\s+(?:only\s+)?{NAME}{ALIAS}\s+set\b([^;]*)", re.IGNORECASE)
DELETE = re.compile(rf"\bdelete\s+from\s+(?:only\s+)?{NAME}([^;]*)", re.IGNORECASE)
MERGE = re.compile(rf"\bmerge\s+into\s+(?:only\s+)?{NAME}([^;]*)", re.IGNORECASE)
# A comparison with a value. IS NULL, <> or a join may be true of all rows.
SELECTIVE = re.compile(
    r"""(?ix)
    (?<![<>!=])(?:=|<=|>=|<|>|~)(?![<>=]) \s* (?!"?[a-z_][\w."]*"?(?!\s*\()) \S
    | \b(?:in|between|like|ilike|exists|any)\b
    """
)
# A source of rows that somebody has chosen.
CHOSEN = re.compile(r"\b(?:values|unnest|limit|fetch)\b", re.IGNORECASE)
COLUMN = r'(?:"?\w+"?\.)?"?(?P<column>\w+)"?'
ALWAYS_TRUE = re.compile(
    r"""(?ix) true | not \s+ false
    | (?P<it>[\w.']+) \s* = \s* (?P=it) | (\d+)\s*(<>|!=)\s*(?!\2\b)\d+
    | (?:\w+\.)?"?(id|\w+_id|pk)"? \s* (>\s*-?\d|>=\s*[01]|<>\s*0|is\s+not\s+null) \s*"""
)
IS_NULL = re.compile(rf"{COLUMN}\s+is\s+null", re.IGNORECASE)
JOIN = re.compile(
    r'(?:"?\w+"?\.)?"?\w+"?\s*=\s*(?!true|false)(?:"?\w+"?\.)?"?[a-z_]\w*"?', re.IGNORECASE
)


def changes_all_rows(words: str, beside_ddl: bool, new_columns: set[str]) -> Iterator[str]:
    """The tables of which a statement changes practically all rows.

    Beside a change of the schema, whose locks last as long, a condition that compares with no
    value is enough. `new_columns` have no value in any row: `books.title`.
    """
    for pattern in (UPDATE, DELETE):
        for found in pattern.finditer(words):
            table, rest = named(found), found[3]
            condition = _condition(rest)
            empty = {each.split(".")[1] for each in new_columns if each.split(".")[0] == table}
            chosen = CHOSEN.search(words) is not None
            if _is_true_of_all(condition, "" if chosen else rest, empty) or (
                beside_ddl and not chosen and not SELECTIVE.search(condition)
            ):
                yield table
    for found in MERGE.finditer(words):
        if re.search(r"(?i)\bthen\s+(update|delete)\b", found[3]):
            yield named(found)


def _condition(rest: str) -> str:
    """What the WHERE of the statement itself demands, not that of a query inside it."""
    depth, before = 0, len(rest)
    position = 0
    for kind, piece in tokens(rest):
        depth += (piece == "(") - (piece == ")")
        if depth < 0:
            # The end of WITH x AS (UPDATE …).
            return rest[before:position]
        position += len(piece)
        if kind == "word" and piece.lower() == "where" and not depth:
            before = position
        if kind == "word" and piece.lower() == "returning" and not depth:
            return rest[before : position - len(piece)]
    return rest[before:]


def _is_true_of_all(condition: str, sources: str, empty: set[str]) -> bool:
    plain = _without_parentheses(condition)
    for word, all_or_any in (("or", any), ("and", all)):
        terms = _terms(plain, word)
        if len(terms) > 1:
            return all_or_any(_is_true_of_all(term, sources, empty) for term in terms)
    null = IS_NULL.fullmatch(plain)
    joins = re.search(r"(?i)\b(from|using)\b", sources)
    return bool(
        not plain
        or ALWAYS_TRUE.fullmatch(plain)
        or (null and null["column"].lower() in empty)
        or (joins and JOIN.fullmatch(plain))
    )


def _without_parentheses(condition: str) -> str:
    plain = condition.strip()
    while plain.startswith("(") and len(_terms(plain[1:], ")")[0]) == len(plain) - 2:
        plain = plain[1:-1].strip()
    return plain


def _terms(condition: str, separator: str) -> list[str]:
    """Split at a word, or a parenthesis, that stands in no parentheses."""
    terms, depth = [""], 0
    for _, piece in tokens(condition):
        if not depth and piece.lower() == separator:
            terms.append("")
            continue
        depth += (piece == "(") - (piece == ")")
        terms[-1] += piece
    return terms
