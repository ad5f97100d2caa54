"""What a revision may do to production: one entry for each kind, for `migrate` and `lint`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PAGE = "docs/migrations.md"

# name: (what happens and to whom, the safe recipe). {table} and {item} are filled in.
HAZARDS = {
    "required-column": (
        "{where} is NOT NULL and has no server default. Adding it fails if the table has "
        "rows, and every INSERT by code that does not know the column yet fails.",
        "if one constant is right for all existing rows: mapped_column(server_default=…), in one "
        "deploy and without a rewrite. Otherwise two deploys: first `{item}: Mapped[… | None]` and "
        "code that fills it; then a backfill and `{item}: Mapped[…]`. See {page}, A required "
        "column.",
    ),
    "volatile-default": (
        "{where} has a default that differs from row to row ({detail}). Adding it rewrites the "
        "whole table, and nobody can read or write {table} until that is done.",
        "two deploys: first `{item}: Mapped[… | None]` without a default, then the server_default "
        "on its own (it only affects new rows); then a backfill of the existing rows and "
        "`Mapped[…]`.",
    ),
    "identity-column": (
        "{where} is an identity or serial column. Adding it rewrites the whole table, and "
        "nobody can read or write {table} until that is done.",
        "two deploys: first a nullable column, a sequence that you create by hand, and "
        "server_default=text(\"nextval('…')\") in the next revision; then a backfill of the "
        "existing rows and `Mapped[int]`.",
    ),
    "generated-column": (
        "{where} is a stored generated column. Adding it rewrites the whole table, and nobody "
        "can read or write {table} until that is done.",
        "on PostgreSQL 18 and later: Computed(…, persisted=False), which is computed when it is "
        "read. Otherwise a nullable column that the code (or a trigger) fills, and a backfill of "
        "the existing rows.",
    ),
    "type-change": (
        "{where} changes its type{detail}, which rewrites the whole table or fails. Nobody can "
        "read or write {table} until that is done.",
        "three deploys: first a column `{item}_new` of the new type, which the code writes as "
        "well as {item}; then a backfill, and code that reads the new column; then drop {item}.",
    ),
    "table-rewrite": (
        "The whole table {table} is rewritten. Nobody can read or write it until that is done.",
        "build the new form next to the old one: a new column or table, write both, backfill, "
        "switch.",
    ),
    "column-drop": (
        "{where} is dropped with its data{detail}. Code that is still running reads it in every "
        "query on {table}, and fails until the last old process is gone.",
        "two deploys: first replace the column in the model with `__unused_columns__ = "
        '("{item}",)` and run `flask db migrate`; once that is deployed everywhere, delete the '
        "line and migrate again. If this is a rename, see {page}, A new name.",
    ),
    "table-drop": (
        "Table {table} is dropped with its data{detail}. Code that is still running and uses it "
        "fails.",
        'two deploys: first delete the model, write `__unused_tables__ = ("{table}",)` in '
        "app/models/__init__.py, and run `flask db migrate`; once that is deployed everywhere, "
        "delete the line and migrate again. See {page}, A table that goes.",
    ),
    "column-rename": (
        "{where} gets another name{detail}. Code that is still running uses the old name in every "
        "query on {table}, and fails until the last old process is gone.",
        'rename only the attribute: `new_name: Mapped[…] = mapped_column("{item}")`. Or add a '
        "new column and move to it in three deploys: see {page}, A new name.",
    ),
    "table-rename": (
        "Table {table} gets another name or schema{detail}. Code that is still running fails.",
        'keep the table\'s name: a class of any name can say `__tablename__ = "{table}"`. Or a '
        "new table: write both, backfill, switch.",
    ),
    "primary-key": (
        "The primary key of {table} changes{detail}. A plain change builds it while nobody can "
        "read or write the table; foreign keys that refer to the old key block it, and code that "
        "is still running finds rows by the old key.",
        "two revisions, which `flask db migrate --acknowledge` writes. First, in an "
        'autocommit_block(): op.create_index("{table}_key", "{table}", […], unique=True, '
        "postgresql_concurrently=True), on NOT NULL columns. Then: ALTER TABLE {table} DROP "
        "CONSTRAINT pk_{table}, ADD CONSTRAINT pk_{table} PRIMARY KEY USING INDEX {table}_key.",
    ),
    "exclusion-constraint": (
        "{where} is an exclusion constraint{detail}. It has no NOT VALID form: nobody can read or "
        "write {table} while it is built.",
        "if the table is or may become large: a new table that has the constraint from the start; "
        "write both, backfill, switch. If it is small, acknowledge the hazard.",
    ),
    "enum-value-removed": (
        "{where} loses the value {detail}. Rows that have it can no longer be read.",
        "two deploys: first code that no longer writes it, and a backfill that replaces it; "
        "then remove the value.",
    ),
    "native-enum": (
        "{where} is a native enum{detail} whose type the schema does not have yet. Values can be "
        "added to such a type, but never removed.",
        "`{item}: Mapped[YourEnum]`, which app/models/base.py stores as text, or Enum(…, "
        "native_enum=False, length=64). A type that the database already has is kept, and gets "
        "the new values of the model.",
    ),
    "enum-values": (
        "The native enum {item} changes{detail}. PostgreSQL can add values to an enum; it cannot "
        "remove one, or put them in another order.",
        "keep the values and their order in the model, and add new ones anywhere. Or move the "
        "column to text: a new column, backfill, switch.",
    ),
    "json-column": (
        "{where} is of type json, which has no equality: SELECT DISTINCT, GROUP BY and UNION "
        "over {table} fail.",
        "use JSONB, from sqlalchemy.dialects.postgresql.",
    ),
    "unseen-change": (
        "{where}: the models say {detail}. Neither Alembic nor `flask db migrate` knows how to "
        "write this change.",
        "write it by hand: `flask db revision -m …`, and the statement in upgrade() and "
        "downgrade().",
    ),
    "index-build": (
        "Nobody can write {table} while its index {item} is built.",
        "with op.get_context().autocommit_block(): op.drop_index(…, if_exists=True, "
        "postgresql_concurrently=True), then op.create_index(…, postgresql_concurrently=True).",
    ),
    "unique-constraint": (
        "{where} is a new unique constraint. Nobody can read or write {table} while its index "
        "is built.",
        "one revision that builds a unique index concurrently, and one with ALTER TABLE … ADD "
        "CONSTRAINT … UNIQUE USING INDEX …, as `flask db migrate` writes it.",
    ),
    "foreign-key": (
        "{where} is a foreign key, and all rows are checked. Nobody can write {table} or the table "
        "that it refers to until that is done.",
        "op.create_foreign_key(…, postgresql_not_valid=True), and ALTER TABLE … VALIDATE "
        "CONSTRAINT … in the next revision.",
    ),
    "check-constraint": (
        "{where} is a CHECK constraint, and all rows are checked. Nobody can read or write {table} "
        "until that is done.",
        "op.create_check_constraint(…, postgresql_not_valid=True), and ALTER TABLE … VALIDATE "
        "CONSTRAINT … in the next revision.",
    ),
    "set-not-null": (
        "{where} becomes NOT NULL, and all rows are checked. Nobody can read or write {table} "
        "until that is done{detail}.",
        "CHECK ({item} IS NOT NULL) NOT VALID in one revision; VALIDATE CONSTRAINT, SET NOT "
        "NULL and DROP CONSTRAINT in the next, as `flask db migrate` writes it.",
    ),
    "table-scan": (
        "All rows of {table} are read under a lock that blocks everybody else.",
        "NOT VALID first, and VALIDATE CONSTRAINT in the next revision.",
    ),
    "validate-with-ddl": (
        "{table} is validated in the transaction that changed it, so the lock of that change is "
        "held while all rows are read.",
        "put VALIDATE CONSTRAINT into a revision of its own, after this one.",
    ),
    "concurrently-in-transaction": (
        "{detail} does not run inside a transaction: this revision fails.",
        "put it into `with op.get_context().autocommit_block():`, in an op.execute() of its own.",
    ),
    "partitioned-index": (
        "Index {item} of {table} is built concurrently, and {table} is partitioned: PostgreSQL "
        "refuses that.",
        "by hand, in `flask db revision`: CREATE INDEX … ON ONLY {table} (…) for the parent; for "
        "each partition CREATE INDEX CONCURRENTLY in an autocommit_block(); then ALTER INDEX … "
        "ATTACH PARTITION … for each of them. See {page}, A partitioned table.",
    ),
    "ends-transaction": (
        "{detail} ends the revision's transaction: what came before stays even if what comes after "
        "fails, or is lost although the revision counts as done.",
        "remove it. Put what cannot run in a transaction into: with "
        "op.get_context().autocommit_block():",
    ),
    "run-setting": (
        "{item} is changed{detail}. Migrations rely on it: a statement that waits for a lock "
        "must soon give up, and names must refer to the service's schema.",
        "leave it alone. MIGRATION_LOCK_TIMEOUT_MS sets how long a migration waits for a lock; "
        "long work belongs in backfill().",
    ),
    "lock-table": (
        "LOCK TABLE keeps everybody else out of {table} until the revision ends.",
        "remove it: each statement takes the lock that it needs.",
    ),
    "object-drop": (
        "The {detail} {item} is dropped. Code that is still running and uses it fails.",
        "two deploys: first code that does not need it; then drop it, and acknowledge that.",
    ),
    "object-rename": (
        "The {detail}. Code that is still running uses the old name, and fails.",
        "keep the name, or create a second one and drop the first in the next deploy.",
    ),
    "whole-table-update": (
        "All rows of {table} change in one statement{detail}. They stay locked until it ends, "
        "and the table doubles in size.",
        "a revision of its own that calls backfill() from app/core/backfill.py, which works in "
        "batches; see {page}, A required column.",
    ),
    "truncate": (
        "TRUNCATE removes all rows of {table}{detail}.",
        "delete by a condition, in batches; or acknowledge it.",
    ),
    "schema-drop": (
        "Schema {item} is dropped with everything in it.",
        "drop the tables one by one. SCHEMA is a setting; no migration should name it.",
    ),
    "database-drop": (
        "A database is dropped.",
        "remove that statement: no revision needs it.",
    ),
    "empty-downgrade": (
        "upgrade() changes the database and downgrade() does nothing: there is no way back.",
        "undo each step, in reverse order.",
    ),
    "two-heads": (
        "There are several heads ({detail}), and `flask db upgrade` cannot choose.",
        'run `flask db merge heads -m "join two branches"` and commit the file.',
    ),
    "duplicate-revision": (
        "Revision {item} exists twice ({detail}), and one of the files never runs.",
        "give one of them another `revision`, and change the next one's `down_revision` to match.",
    ),
    "squawk": (
        "squawk says: {detail}",
        "https://squawkhq.com/docs/{item}",
    ),
    "fails": (
        "It does not run: {detail}",
        "change the revision, or the model behind it, and try again.",
    ),
}
NOT_ACKNOWLEDGED = {
    "fails",
    "unseen-change",
    "enum-values",
    "concurrently-in-transaction",
    "partitioned-index",
}


@dataclass(frozen=True)
class Hazard:
    """One danger of one revision; `item` is a column, a constraint or an index of `table`."""

    name: str
    table: str = ""
    item: str = ""
    detail: str = ""
    # Instead of the recipe of its kind.
    instead: str = ""

    @property
    def where(self) -> str:
        """`books.title`, `books`, or nothing."""
        return ".".join(filter(None, (self.table, self.item)))

    @property
    def key(self) -> str:
        """What an acknowledgement says: `column-drop:books.title`."""
        return ":".join(filter(None, (self.name, self.where)))

    @property
    def can_be_acknowledged(self) -> bool:
        """Not where the revision would not run, or where there is no statement for it."""
        return self.name not in NOT_ACKNOWLEDGED

    @property
    def happens(self) -> str:
        """What happens, and to whom."""
        return self._filled(HAZARDS[self.name][0])

    @property
    def recipe(self) -> str:
        """The safe way."""
        return self._filled(self.instead or HAZARDS[self.name][1])

    def _filled(self, sentence: str) -> str:
        return sentence.format(
            where=self.where, table=self.table, item=self.item, detail=self.detail, page=PAGE
        )


def unique(hazards: Iterable[Hazard]) -> list[Hazard]:
    """Each once, in the order in which they came; of those that do not run, each reason."""
    found = {(each.key, each.detail if each.name == "fails" else ""): each for each in hazards}
    return [*found.values()]


def without_acknowledged(
    hazards: Iterable[Hazard], acknowledged: Mapping[str, str]
) -> list[Hazard]:
    """What is left; an entry is a place (`column-drop:books.title`) or a kind (`column-drop`)."""
    return [
        hazard
        for hazard in hazards
        if not hazard.can_be_acknowledged
        or not (acknowledged.get(hazard.key) or acknowledged.get(hazard.name))
    ]
