"""SQL text: its tokens, and the commands of a string that may hold several."""

import re
from collections.abc import Iterator

# Of a table or an index, perhaps with its schema: two groups.
NAME = r'("[^"]+"|\w+)(?:\.("[^"]+"|\w+))?'
TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\* )
    | (?P<string> [eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' )
    | (?P<quoted> "(?:[^"]|"")*" )
    | (?P<dollar> \$([^\W\d]\w*)?\$ )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<other> [\d\s]+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
COMMENT_ENDS = re.compile(r"/\*|\*/")
ROUTINE = re.compile(r"create (or replace )?(function|procedure)\b")


def tokens(sql: str) -> Iterator[tuple[str, str]]:
    """What the text is made of, as (kind, text); together they are the text again.

    Kinds: comment, string, quoted (a name), dollar (a string $$ like this $$), word, other.
    """
    position = 0
    while position < len(sql):
        found = TOKEN.match(sql, position)
        assert found is not None
        kind = next(name for name, text in found.groupdict().items() if text is not None)
        end = found.end()
        if kind == "comment" and found[0] == "/*":
            end = _end_of_comment(sql, end)
        elif kind == "dollar":
            closing = sql.find(found[0], end)
            end = len(sql) if closing < 0 else closing + len(found[0])
        yield kind, sql[position:end]
        position = end


def split(sql: str) -> list[str]:
    """The commands of a string that may hold several, without their comments.

    A semicolon in parentheses (CREATE RULE) or in a body in standard SQL (BEGIN ATOMIC … END) ends
    no command: the rule of psql.
    """
    if not any(mark in sql for mark in (";", "--", "/*")):
        return [sql.strip()] if sql.strip() else []
    commands, words = [""], ""
    parentheses = depth = 0
    for kind, piece in tokens(sql):
        if piece == ";" and not parentheses and not depth:
            commands.append("")
            words = ""
            continue
        parentheses += (piece == "(") - (piece == ")")
        if kind == "word" and not parentheses:
            word = piece.lower()
            words = f"{words} {word}".lstrip() if len(words) < 40 else words
            if ROUTINE.match(words):
                opens = word == "begin" or (depth and word == "case")
                depth += 1 if opens else -1 if depth and word == "end" else 0
        commands[-1] += " " if kind == "comment" else piece
    return [command.strip() for command in commands if command.strip()]


def named(found: re.Match[str]) -> str:
    """The table or index, without its schema, that the first NAME of a pattern found."""
    return unquoted(found[2] or found[1])


def unquoted(name: str) -> str:
    """A name as the catalog has it."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


def _end_of_comment(sql: str, position: int) -> int:
    """Comments may stand in comments."""
    depth = 1
    for found in COMMENT_ENDS.finditer(sql, position):
        depth += 1 if found[0] == "/*" else -1
        if depth == 0:
            return found.end()
    return len(sql)
