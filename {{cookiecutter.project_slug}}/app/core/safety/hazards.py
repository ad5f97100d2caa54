"""What may go wrong with a revision in production: one entry per kind, for `migrate` and `lint`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PAGE = "docs/migrations.md"

# name: (what happens and to whom, the safe recipe). {table} and {item} are filled in.
HAZARDS = {
    "required-column": (
        "{where} is NOT NULL and has no server default. Adding it fails on a table that has "
        "rows, and every INSERT of the code that still runs fails without it.",
        "one constant is right for the old rows: mapped_column(server_default=…), one deploy, "
        "no rewrite. Else two deploys: first `{item}: Mapped[… | None]` and code that fills it; "
        "then a backfill and `{item}: Mapped[…]`. See {page}, A required column.",
    ),
    "volatile-default": (
        "{where} has a default that differs from row to row ({detail}). Adding it rewrites the "
        "whole table, and nobody reads or writes {table} until that is done.",
        "two deploys: first `{item}: Mapped[… | None]` without a default, and then the "
        "server_default alone (it is for new rows only); then a backfill of the old rows and "
        "`Mapped[…]`.",
    ),
    "identity-column": (
        "{where} is an identity or serial column. Adding it rewrites the whole table, and "
        "nobody reads or writes {table} until that is done.",
        "two deploys: first a nullable column, by hand a sequence, and "
        "server_default=text(\"nextval('…')\") in a revision after it; then a backfill of the old "
        "rows and `Mapped[int]`.",
    ),
    "generated-column": (
        "{where} is a stored generated column. Adding it rewrites the whole table, and nobody "
        "reads or writes {table} until that is done.",
        "PostgreSQL 18 and later: Computed(…, persisted=False), which computes when read. Else "
        "a nullable column that the code (or a trigger) fills, and a backfill of the old rows.",
    ),
    "type-change": (
        "{where} changes its type{detail}, which rewrites the whole table or fails. Nobody "
        "reads or writes {table} until that is done.",
        "three deploys: a new column `{item}_new` with the new type that the code writes "
        "besides {item}; then a backfill, and code that reads the new one; then {item} is "
        "dropped.",
    ),
    "table-rewrite": (
        "The whole table {table} is rewritten. Nobody reads or writes it until that is done.",
        "build the new form beside the old one: new column or table, dual write, backfill, switch.",
    ),
    "column-drop": (
        "{where} is dropped with its data{detail}. The code that still runs reads it in every "
        "query on {table}, and fails until the last old process is gone.",
        "two deploys: first replace the column in the model by `__unused_columns__ = "
        '("{item}",)` and `flask db migrate`; once that runs everywhere delete this line and '
        "migrate again. If it is a rename, see {page}, A new name.",
    ),
    "table-drop": (
        "Table {table} is dropped with its data{detail}. The code that still runs fails where "
        "it uses it.",
        'two deploys: first delete the model, and write `__unused_tables__ = ("{table}",)` in '
        "app/models/__init__.py; `flask db migrate`. Once that runs everywhere, delete that line "
        "and migrate again. See {page}, A table that goes.",
    ),
    "column-rename": (
        "{where} gets another name{detail}. The code that still runs reads the old one in every "
        "query on {table}, and fails until the last old process is gone.",
        'rename the attribute only: `new_name: Mapped[…] = mapped_column("{item}")`. Or add a '
        "new column and move in three deploys: {page}, A new name.",
    ),
    "table-rename": (
        "Table {table} gets another name or schema{detail}. The code that still runs fails.",
        'keep the table\'s name: `__tablename__ = "{table}"` under a class of any name. Or a new '
        "table, dual write, backfill, switch.",
    ),
    "primary-key": (
        "The primary key of {table} changes{detail}. A plain change builds it while nobody reads "
        "or writes the table; foreign keys that refer to the old one stand in the way, and code "
        "that still runs finds rows by the old one.",
        "two revisions, which `flask db migrate --acknowledge` writes. First, in an "
        'autocommit_block(): op.create_index("{table}_key", "{table}", […], unique=True, '
        "postgresql_concurrently=True), on NOT NULL columns. Then: ALTER TABLE {table} DROP "
        "CONSTRAINT pk_{table}, ADD CONSTRAINT pk_{table} PRIMARY KEY USING INDEX {table}_key.",
    ),
    "exclusion-constraint": (
        "{where} is an exclusion constraint{detail}. It has no NOT VALID form: nobody reads or "
        "writes {table} while it is built.",
        "on a table that is or may become large: a new table that has it from the start, dual "
        "write, backfill, switch. On a small one acknowledge it, and it is written.",
    ),
    "enum-value-removed": (
        "{where} loses the value {detail}. Rows that have it can not be read any more.",
        "two deploys: first code that no longer writes it, and a backfill that replaces it; "
        "then remove the value.",
    ),
    "native-enum": (
        "{where} is a native enum{detail}, of a type that the schema does not have yet. Such a "
        "type can get values, but never lose one, and its own downgrade has to remove it.",
        "`{item}: Mapped[YourEnum]` is stored as text by app/models/base.py; or Enum(…, "
        "native_enum=False, length=64). A type that the database has already is kept, and gets "
        "the values that the model gets.",
    ),
    "enum-values": (
        "The native enum {item} changes{detail}. PostgreSQL can add values to an enum; it cannot "
        "remove one, or put them in another order.",
        "keep the values and their order in the model, and add new ones at any place. Or move "
        "the column to text: a new column, backfill, switch.",
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
        "Index {item} of {table} is built while nobody can write {table}.",
        "with op.get_context().autocommit_block(): op.drop_index(…, if_exists=True, "
        "postgresql_concurrently=True), then op.create_index(…, postgresql_concurrently=True).",
    ),
    "unique-constraint": (
        "{where} is a new unique constraint. Nobody reads or writes {table} while its index is "
        "built.",
        "one revision that builds a unique index concurrently, and one with ALTER TABLE … ADD "
        "CONSTRAINT … UNIQUE USING INDEX …, as `flask db migrate` writes it.",
    ),
    "foreign-key": (
        "{where} is a foreign key that is checked against all rows. Nobody writes {table} or "
        "the table it refers to until that is done.",
        "op.create_foreign_key(…, postgresql_not_valid=True), and ALTER TABLE … VALIDATE "
        "CONSTRAINT … in the next revision.",
    ),
    "check-constraint": (
        "{where} is a CHECK that is tried on all rows. Nobody reads or writes {table} until "
        "that is done.",
        "op.create_check_constraint(…, postgresql_not_valid=True), and ALTER TABLE … VALIDATE "
        "CONSTRAINT … in the next revision.",
    ),
    "set-not-null": (
        "{where} becomes NOT NULL, which is tried on all rows. Nobody reads or writes {table} "
        "until that is done{detail}.",
        "CHECK ({item} IS NOT NULL) NOT VALID in one revision; VALIDATE CONSTRAINT, SET NOT "
        "NULL and DROP CONSTRAINT in the next, as `flask db migrate` writes it.",
    ),
    "table-scan": (
        "All rows of {table} are read under a lock that stops everybody else.",
        "NOT VALID first, and VALIDATE CONSTRAINT in the next revision.",
    ),
    "validate-with-ddl": (
        "{table} is validated in the transaction that changed it. The lock of the change is "
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
        "{detail} ends the transaction of the revision: what came before it stays even if what "
        "comes after it fails, or is lost although the revision counts as done.",
        "remove it. What must not run in a transaction goes into: with "
        "op.get_context().autocommit_block():",
    ),
    "run-setting": (
        "{item} is changed{detail}. Migrations rely on it: a statement that waits for a lock "
        "must give up soon, and names must lead to the schema of the service.",
        "leave it as it is. How long a migration waits for a lock is a setting, "
        "MIGRATION_LOCK_TIMEOUT_MS; work that takes long belongs into backfill().",
    ),
    "lock-table": (
        "LOCK TABLE keeps others away from {table} until the revision ends.",
        "remove it: each statement takes the lock that it needs.",
    ),
    "object-drop": (
        "The {detail} {item} is dropped. The code that still runs fails where it uses it.",
        "two deploys: first code that does without it; then the drop, acknowledged.",
    ),
    "object-rename": (
        "The {detail}. The code that still runs uses the old name, and fails.",
        "keep the name; or make a second one beside it, and drop the first in the next deploy.",
    ),
    "whole-table-update": (
        "All rows of {table} change in one statement{detail}. They stay locked until it ends, "
        "and the table doubles in size.",
        "a revision of its own that calls backfill() from app/core/backfill.py, which works in "
        "batches; see {page}, A required column.",
    ),
    "truncate": (
        "TRUNCATE removes all rows of {table}{detail}.",
        "delete what must go, in batches, by a condition; or acknowledge it.",
    ),
    "schema-drop": (
        "Schema {item} is dropped with all that is in it.",
        "drop the tables one by one; SCHEMA is a setting, no migration names it.",
    ),
    "database-drop": (
        "A database is dropped.",
        "remove that statement: no revision needs it.",
    ),
    "empty-downgrade": (
        "upgrade() changes the database and downgrade() does nothing: there is no way back.",
        "write the opposite, in the opposite order.",
    ),
    "two-heads": (
        "There are several heads ({detail}): `flask db upgrade` does not know where to go.",
        '`flask db merge heads -m "join two branches"`, and commit the file.',
    ),
    "duplicate-revision": (
        "Revision {item} is there twice ({detail}): one of the files never runs.",
        "give one of them another `revision`, and let the next one's `down_revision` follow.",
    ),
    "squawk": (
        "squawk says: {detail}",
        "https://squawkhq.com/docs/{item}",
    ),
    "fails": (
        "It does not run: {detail}",
        "change the revision, or the model that it was written for, and try again.",
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
