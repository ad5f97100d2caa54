"""The schemas of a dry run: one of its own stands for each that a revision names."""

import re
from collections.abc import Callable
from typing import Any

from app.core.sql import tokens, unquoted

# A statement that asks the catalog gives the name of a schema as a value.
ASKS_THE_CATALOG = re.compile(
    r"\b(information_schema|nspname|table_schema|schemaname|pg_namespace|to_regnamespace)\b",
    re.IGNORECASE,
)
# psycopg's places for values, and what stands before one that gets the name of a schema. A table
# may have the same name: what is compared with other columns stays.
PLACEHOLDER = re.compile(r"%%|%(?:\((?P<name>\w+)\))?[sbt]")
IS_A_SCHEMA = re.compile(
    r"""(\bnspname|\bschemaname|_schema|\bto_regnamespace)\b"?
    (\s | = | <> | != | [(\[,] | \b(not|like|in|any|cast|array)\b
    | %(\(\w+\))?[sbt] | '[^']*' | ::\s*\w+(\[\])? )*$""",
    re.IGNORECASE | re.VERBOSE,
)
CREATES = re.compile(r"create schema (if not exists )?")


class Scratch:
    """Translates SQL into the dry run's own schemas, and messages back.

    `others` are the schemas of the database besides SCHEMA; the first statement that names one has
    it copied by `copy(name, its new name)`.
    """

    def __init__(
        self, real: str, own: str, others: set[str], copy: Callable[[str, str], None]
    ) -> None:
        self.own = own
        self.names = {real: own}
        self.others = others
        self.copy = copy
        # True while a history is replayed, which creates its other schemas itself.
        self.from_nothing = False

    def translated(self, sql: str) -> str:
        """The statement with the dry run's schemas in the place of the real ones."""
        if not any(name in sql for name in (*self.names, *self.others)):
            return sql
        if re.search(r"(?i)\bsearch_path\b", sql):
            return self._in_a_path(sql)
        asks = ASKS_THE_CATALOG.search(sql) is not None
        pieces = [*tokens(sql)]
        meaningful = [
            number for number, (kind, it) in enumerate(pieces) if kind != "comment" and it.strip()
        ]
        said = ""
        for place, number in enumerate(meaningful):
            kind, piece = pieces[number]
            following = pieces[meaningful[place + 1]][1] if place + 1 < len(meaningful) else ""
            if kind in ("word", "quoted"):
                names_it = (following == "." and not said.endswith(".")) or re.search(
                    r"\bschema (if (not )?exists )?$", said
                )
                if names_it:
                    piece = self._stand_in(piece, said)
            elif kind == "string":
                piece = self._in_a_string(piece, asks)
            elif kind == "dollar":
                tag = piece[: piece.index("$", 1) + 1]
                body = self.translated(piece[len(tag) : -len(tag)])
                piece = f"{tag}{body}{tag}"
            said = f"{said[-40:]}{pieces[number][1].lower()}" + ("" if kind == "other" else " ")
            said = said.replace(" .", ".")
            pieces[number] = kind, piece
        return "".join(piece for _, piece in pieces)

    def translated_values(self, sql: str, values: Any) -> Any:
        """The parameters of a statement; only one that asks the catalog gives names there."""
        if not values or not ASKS_THE_CATALOG.search(sql):
            return values
        places = [each for each in PLACEHOLDER.finditer(sql) if each[0] != "%%"]
        schemas = [IS_A_SCHEMA.search(sql[: each.start()]) is not None for each in places]
        if isinstance(values, dict):
            named = {each["name"] for each, it in zip(places, schemas, strict=True) if it}
            return {key: self._value(it) if key in named else it for key, it in values.items()}
        return [
            self._value(value) if it else value
            for value, it in zip(values, schemas, strict=False)  # the server counts them
        ]

    def plain(self, words: str) -> str:
        """What a message says to people, who know only the real schemas."""
        for real, name in sorted(self.names.items(), key=lambda pair: -len(pair[1])):
            words = re.sub(rf'"?{name}"?\.', "" if name == self.own else f"{real}.", words)
            words = words.replace(name, real)
        return words

    def _value(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._value(each) for each in value]
        return self.names.get(value, value) if isinstance(value, str) else value

    def _stand_in(self, piece: str, said: str) -> str:
        name = unquoted(piece)
        if name in ("if", "authorization"):
            return piece
        if name not in self.names and (name in self.others or CREATES.search(said)):
            new = f"{self.own}_{len(self.names)}"
            if not (self.from_nothing and CREATES.search(said)) and name in self.others:
                self.copy(name, new)
            self.names[name] = new
        return self.names.get(name, piece)

    def _in_a_string(self, piece: str, asks: bool) -> str:
        for real, name in self.names.items():
            piece = re.sub(rf"""^(['eE]+"?){re.escape(real)}(?="?\.)""", rf"\1{name}", piece)
            if asks and piece == f"'{real}'":
                piece = f"'{name}'"
        return piece

    def _in_a_path(self, sql: str) -> str:
        for real in {*self.names, *self.others}:
            if re.search(rf"\b{re.escape(real)}\b", sql):
                name = self._stand_in(f'"{real}"', "")
                sql = re.sub(rf"\b{re.escape(real)}\b", name, sql)
        return sql
