"""What was observed in a dry run → hazards."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from psycopg import errors

from app.core.safety import catalog, concurrently, statements
from app.core.safety.catalog import Catalog
from app.core.safety.hazards import Hazard, unique
from app.core.safety.observed import Heard, Observed
from app.core.sql import named, unquoted

RETYPING = re.compile(r'ALTER TABLE ("[^"]+"|\w+) ALTER COLUMN ("[^"]+"|\w+) TYPE')


Columns = dict[str, catalog.Column]


def hazards(observed: Observed, new_columns: Iterable[str] = ()) -> list[Hazard]:
    """All that one revision would do to a database with users.

    `new_columns` were added lately, so no row has a value there yet: `books.title`.
    """
    found = [hazard for each in observed.heard for hazard in _heard(each)]
    found += _failures(observed)
    found += _of_other_owners(observed)
    found += _differences(observed.before, observed.after)
    found += _object_differences(observed, found)
    found += [
        Hazard("run-setting", item=name, detail=change)
        for name, change in observed.settings.items()
    ]
    added = {*new_columns, *_added_columns(observed.before, observed.after)}
    found += statements.hazards(observed.statements, observed.existing, added)
    plain = [replace(each, detail=observed.plain(each.detail)) for each in found]
    return unique(_without_echoes(plain))


def has_a_way_back(observed: Observed) -> bool:
    """Whether what the revision did to the schema has an opposite that downgrade() could do.

    Data, VALIDATE, a new value of an enum and an extension that others may use have none.
    """
    things = [
        {each for each in objects.values() if each.kind != "extension"}
        for objects in (observed.objects_before, observed.objects_after)
    ]
    return observed.before.by_names() != observed.after.by_names() or things[0] != things[1]


def _heard(heard: Heard) -> Iterator[Hazard]:
    """What one message of the server means for a table that was there before the revision."""
    before, after = heard.before, heard.after
    table = after.tables[heard.table].name
    old, new = before.columns_of(heard.table), after.columns_of(heard.table)
    match heard.kind:
        case "verifying" | "validating" if heard.validates:
            if heard.locked:
                yield Hazard("validate-with-ddl", table)
        case "rewriting":
            found = [*_added_with_a_rewrite(table, old, new), *_retyped(table, old, new)]
            yield from found or [Hazard("table-rewrite", table)]
        case "verifying":
            required = [
                name
                for name in old.keys() & new.keys()
                if new[name].required and not old[name].required
            ]
            checks = [
                each.name
                for number, each in after.constraints.items()
                if number not in before.constraints
                and each.table == heard.table
                and each.kind == "c"
            ]
            added = [name for name in new if name not in old and new[name].required]
            yield from (Hazard("set-not-null", table, name) for name in required)
            yield from (Hazard("check-constraint", table, name) for name in checks)
            if not required and not checks and not added:
                yield Hazard("table-scan", table)
        case "validating":
            yield Hazard("foreign-key", table, heard.item)
        case "building":
            yield from _build(heard, table)


def _build(heard: Heard, table: str) -> Iterator[Hazard]:
    """An index that is new, or that a REINDEX or a change of type builds again."""
    before, after, item = heard.before, heard.after, heard.item
    added = [each for each in after.constraints if each not in before.constraints]
    if any(after.constraints[each].name == item for each in added):
        if any(after.constraints[each][1:3] == (item, "u") for each in added):
            yield Hazard("unique-constraint", table, item)
        elif any(after.constraints[each][1:3] == (item, "p") for each in added):
            yield _primary_key(heard.table, table, before, after)
        return
    old, new = before.columns_of(heard.table), after.columns_of(heard.table)
    yield from _retyped(table, old, new)
    known = {each.name for each in before.indexes_of(heard.table)}
    known |= {each.name for each in before.constraints_of(heard.table)}
    words = heard.statement.text
    rebuilt = re.match(r"(?i)\s*reindex\b", words)
    if (item not in known or rebuilt) and not statements.CONCURRENTLY.search(words):
        yield Hazard("index-build", table, item)


def _added_with_a_rewrite(table: str, old: Columns, new: Columns) -> Iterator[Hazard]:
    for name in new.keys() - old.keys():
        column = new[name]
        if column.identity or "nextval(" in (column.default or ""):
            yield Hazard("identity-column", table, name)
        elif column.generated == "s":
            yield Hazard("generated-column", table, name)
        elif "(" in (column.default or ""):
            yield Hazard("volatile-default", table, name, str(column.default))


def _retyped(table: str, old: Columns, new: Columns) -> Iterator[Hazard]:
    for name in old.keys() & new.keys():
        if old[name].type != new[name].type:
            detail = f" from {old[name].type} to {new[name].type}"
            yield Hazard("type-change", table, name, detail)


def _differences(before: Catalog, after: Catalog) -> Iterator[Hazard]:
    """What happened to the tables that were there before."""
    for oid, table in before.tables.items():
        if oid not in after.tables:
            yield Hazard("table-drop", table.name)
        else:
            if after.tables[oid] != table:
                new_name = ".".join(after.tables[oid])
                yield Hazard("table-rename", table.name, detail=f": {new_name}")
            yield from _table_differences(oid, table.name, before, after)
    for oid, enum in before.enums.items():
        now = after.enums.get(oid) or next(
            (each for each in after.enums.values() if each[:2] == enum[:2]), None
        )
        for label in sorted(set(enum.labels) - set(now.labels)) if now else []:
            yield Hazard("enum-value-removed", item=enum.name, detail=label)


def _table_differences(oid: int, table: str, before: Catalog, after: Catalog) -> Iterator[Hazard]:
    columns, columns_now = before.columns.get(oid, {}), after.columns.get(oid, {})
    for number, column in columns.items():
        now = columns_now.get(number)
        if now is None:
            yield Hazard("column-drop", table, column.name)
        elif now.name != column.name:
            yield Hazard("column-rename", table, column.name, f": {now.name}")
    for number, column in columns_now.items():
        was = columns.get(number)
        filled = column.default is not None or column.identity or column.generated
        if was is None and column.required and not filled:
            yield Hazard("required-column", table, column.name)
        if column.type == "json" and (was is None or was.type != "json"):
            yield Hazard("json-column", table, column.name)
    # One that is exchanged for another takes an index that is there: nobody waits for that.
    if before.primary_key_of(oid) and not after.primary_key_of(oid):
        yield _primary_key(oid, table, before, after)
    for number, constraint in after.constraints.items():
        if constraint.table == oid and constraint.kind == "x" and number not in before.constraints:
            yield Hazard("exclusion-constraint", table, constraint.name)


def _primary_key(oid: int, table: str, before: Catalog, after: Catalog) -> Hazard:
    key, key_now = (each.primary_key_of(oid) or "none" for each in (before, after))
    return Hazard("primary-key", table, detail=f": {key} becomes {key_now}")


def _object_differences(observed: Observed, found: list[Hazard]) -> Iterator[Hazard]:
    """Views, functions, sequences and types that running code may use."""
    before, after = observed.objects_before, observed.objects_after
    gone = {
        each.name for each in found if each.name in ("table-drop", "column-drop", "type-change")
    }
    for oid, thing in before.items():
        now = after.get(oid)
        if thing.kind == "trigger" or thing in after.values():
            continue
        if now is not None:
            detail = f"{thing.kind} {thing.name} is renamed to {now.name}"
            yield Hazard("object-rename", item=thing.name, detail=detail)
        elif not (gone and thing.kind in ("type", "sequence")):
            yield Hazard("object-drop", item=thing.name, detail=thing.kind)


def _added_columns(before: Catalog, after: Catalog) -> Iterator[str]:
    for oid in before.tables.keys() & after.tables.keys():
        for name in after.columns_of(oid).keys() - before.columns_of(oid).keys():
            yield f"{after.tables[oid].name}.{name}"


def _without_echoes(found: list[Hazard]) -> Iterator[Hazard]:
    """Each hazard once: under the name that says what happens."""
    becomes_required = {each.where for each in found if each.name == "set-not-null"}
    for each in found:
        if each.name == "required-column" and each.where in becomes_required:
            continue
        if (
            each.name == "set-not-null"
            and Hazard("required-column", each.table, each.item) in found
        ):
            words = ", and an INSERT of the code that still runs fails without it"
            each = replace(each, detail=words)
        yield each


def _of_other_owners(observed: Observed) -> Iterator[Hazard]:
    """The copy belongs to the role of migrations; the real tables need not."""
    for oid, table in observed.before.tables.items():
        changed = observed.before.only({oid}) != observed.after.only({oid})
        if changed and table.name in observed.not_owned and "role" not in observed.settings:
            yield Hazard("fails", detail=f"must be owner of table {table.name}")


def _failures(observed: Observed) -> Iterator[Hazard]:
    for number, error in enumerate(observed.failures):
        orig = getattr(error, "orig", None)
        # Where something failed, what is missing after it is no second finding.
        missing = errors.UndefinedObject | errors.UndefinedTable | errors.UndefinedColumn
        if number == 0 or not isinstance(orig, missing):
            yield from _failure(error, observed)


def _failure(error: BaseException, observed: Observed) -> Iterator[Hazard]:
    orig = getattr(error, "orig", None)
    statement = getattr(error, "statement", None) or ""
    diagnosis: Any = getattr(orig, "diag", None)
    if isinstance(orig, errors.NotNullViolation):
        yield Hazard("required-column", diagnosis.table_name, diagnosis.column_name)
        return
    build = concurrently.BUILD.search(statement)
    if isinstance(orig, errors.FeatureNotSupported) and build and "partitioned" in str(orig):
        index = concurrently.INDEX.search(statement)
        name = unquoted(index[1]) if index else ""
        yield Hazard("partitioned-index", named(build), name)
        return
    retyped = RETYPING.search(statement)
    if retyped and isinstance(orig, errors.DatatypeMismatch):
        detail = f" (the server says: {observed.said(error)})"
        yield Hazard("type-change", unquoted(retyped[1]), unquoted(retyped[2]), detail)
    yield Hazard("fails", detail=observed.said(error))
