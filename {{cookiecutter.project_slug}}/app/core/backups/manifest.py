"""The manifest of a backup: what is in it, written beside it as FILE.json."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from app.core.backups.errors import BackupError

SUFFIX = ".json"


class Extension(BaseModel):
    """An extension of the database that the backup came from, which is not in the backup itself.

    `needed`: a table or a function of the schema uses it. The others are restored where that works.
    """

    model_config = ConfigDict(frozen=True)

    schema_name: str = Field(alias="schema")
    needed: bool


class Manifest(BaseModel):
    """What is in a backup. `rows` by table, `revisions` are those of alembic_version."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    format: int = Field(1, le=1)
    service: str
    schema_name: str = Field(alias="schema")
    revisions: list[str]
    rows: dict[str, int]
    extensions: dict[str, Extension] = {}
    server_version: str = Field(pattern=r"^\d+")
    client_version: str = Field(pattern=r"^\d+")
    created: AwareDatetime
    size: int
    sha256: str
    # Made by BACKUP_BEFORE_MIGRATE.
    before_migration: bool = False

    @classmethod
    def read(cls, file: Path) -> "Manifest":
        """The manifest of the backup in `file`. Raises `BackupError`."""
        path = file.with_name(file.name + SUFFIX)
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            raise BackupError(without_manifest(file if file.exists() else None, file)) from None
        except OSError as error:
            raise BackupError(f"{path} cannot be read: {error.strerror}.") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str | bytes, name: str) -> "Manifest":
        """From its JSON, which is called `name`. Raises `BackupError`."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BackupError(
                f"{name} is not the manifest of a backup ({where}: {first['msg']}). "
                "Copy it again from where it was made."
            ) from None

    def json_text(self) -> str:
        """As it is written."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @property
    def server_major(self) -> int:
        """18 for a server of version 18.4."""
        return int(self.server_version.split(".")[0])

    @property
    def client_major(self) -> int:
        """18 for pg_dump 18.4, whose archives need a pg_restore 18."""
        return int(self.client_version.split(".")[0])

    @property
    def revision(self) -> str:
        """The revisions as words."""
        return ", ".join(self.revisions) or "none"

    @property
    def total_rows(self) -> int:
        """Of all tables."""
        return sum(self.rows.values())

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return (datetime.now(UTC) - self.created).total_seconds()


def without_manifest(there: object, name: object) -> str:
    """What to say of a backup whose manifest is missing, or that is missing altogether."""
    if there is None:
        return f"There is no backup {name}. Those that are there: flask backup list"
    return (
        f"{name} has no manifest beside it ({name}{SUFFIX}), so that nobody can tell whether it is "
        "complete. Copy that file too. A dump that this service did not make: pg_restore --help"
    )
