"""Backups in a bucket of S3, or of any provider that speaks it (AWS_ENDPOINT_URL_S3).

A dump is uploaded in parts, which nobody sees before the last step; the manifest comes before it.
Credentials and region are boto3's: environment variables, or the role of the machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import IO, Any

import structlog

from app.core.backups.errors import BackupError
from app.core.backups.manifest import SUFFIX, Manifest
from app.core.backups.store import ENDING, Backup, Store, Writer, numbered

SCHEME = "s3://"
MIB = 1024 * 1024
# S3 takes 10,000 parts at most, so that they grow: together they may be 800 GB.
PART_BYTES = 16 * MIB
PARTS_OF_A_SIZE = 1000
# Nobody can tell a dead upload from one that is running, except by its age.
UPLOAD_TAKES_AT_MOST = timedelta(days=1)

log = structlog.get_logger("backup")


class Bucket(Store):
    """What is in s3://BUCKET/PREFIX. `is_kept`: it is BACKUP_DIR, as in `Folder`."""

    def __init__(self, url: str, is_kept: bool = False) -> None:
        self.is_kept = is_kept
        self.bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @cached_property
    def client(self) -> Any:
        """boto3's, which is imported only by those who use it."""
        try:
            import boto3
        except ImportError:
            raise BackupError(
                f"{SCHEME} needs packages that are not installed. Run: uv sync --group s3. "
                "In an image: docker build --build-arg DEPENDENCY_GROUPS=s3. See docs/backups.md."
            ) from None
        return boto3.client("s3")

    def path(self, name: str) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}{name}"

    @contextmanager
    def writing(self, name: str, or_another: bool = False) -> Iterator[Writer]:
        with self._in_words():
            self.sweep()
            taken = self.names()
            free = (each for each in numbered(name) if not {each, each + SUFFIX} & taken.keys())
            asked, name = name, next(free)
            if name != asked and not or_another:
                raise BackupError(f"{self.path(asked)} exists already. Choose another name.")
            upload = _Upload(self, name)
            try:
                yield upload
            finally:
                upload.abort_unless_published()

    def names(self) -> dict[str, int]:
        with self._in_words():
            return {name: each["Size"] for name, each in self._objects()}

    def read(self, name: str) -> bytes:
        with self.open(name) as body:
            return body.read()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with self._in_words():
            body = self.client.get_object(**self.key(name))["Body"]
            try:
                yield body
            finally:
                body.close()

    def delete(self, name: str) -> None:
        with self._in_words():
            self.client.delete_object(**self.key(name))

    def check(self, backup: Backup) -> None:
        """Nothing: to read it twice would cost as much as to restore it."""

    def sweep(self, dry_run: bool = False) -> list[str]:
        if not self.is_kept:
            return []
        with self._in_words():
            left = self._old_uploads()
            if not dry_run:
                for upload in left:
                    self.client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
            found = dict(self._objects())
            alone = [
                name
                for name, each in found.items()
                if name.endswith(ENDING + SUFFIX)
                and name.removesuffix(SUFFIX) not in found
                and _is_old(each["LastModified"])
                and self.is_manifest(name)
            ]
            for name in () if dry_run else alone:
                self.delete(name)
        return [f"upload of {each['Key'].removeprefix(self.prefix)}" for each in left] + alone

    def key(self, name: str) -> dict[str, str]:
        """How boto3 names an object."""
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def _objects(self) -> Iterator[tuple[str, Any]]:
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix, Delimiter="/"):
            for each in page.get("Contents", ()):
                yield each["Key"].removeprefix(self.prefix), each

    def _old_uploads(self) -> list[Any]:
        pages = self.client.get_paginator("list_multipart_uploads")
        found = pages.paginate(Bucket=self.bucket, Prefix=self.prefix)
        uploads = [each for page in found for each in page.get("Uploads", ())]
        return [
            each
            for each in uploads
            if "/" not in (name := each["Key"].removeprefix(self.prefix))
            and name.endswith(ENDING)
            and _is_old(each["Initiated"])
        ]

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        _ = self.client
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError) as error:
            raise BackupError(
                f"{SCHEME}{self.bucket}/{self.prefix}: {str(error).rstrip('.')}. "
                "See docs/backups.md, In a bucket, for the settings and the permissions."
            ) from None


class _Upload(Writer):
    def __init__(self, store: Bucket, name: str) -> None:
        self.store, self.name = store, name
        self.client = store.client
        self.parts: list[dict[str, Any]] = []
        self.rest = bytearray()
        self.is_published = False
        upload = self.client.create_multipart_upload(**store.key(name))
        self.place = store.key(name) | {"UploadId": upload["UploadId"]}

    def write(self, piece: bytes) -> None:
        self.rest += piece
        if len(self.rest) >= PART_BYTES * (1 + len(self.parts) // PARTS_OF_A_SIZE):
            self._send()

    def publish(self, manifest: Manifest) -> None:
        self._send()
        text = manifest.json_text().encode()
        self.client.put_object(**self.store.key(self.name + SUFFIX), Body=text)
        self.client.complete_multipart_upload(**self.place, MultipartUpload={"Parts": self.parts})
        self.is_published = True

    def abort_unless_published(self) -> None:
        if self.is_published:
            return
        with suppress(Exception):  # what ended the upload is said, not this
            self.client.abort_multipart_upload(**self.place)
            self.store.delete(self.name + SUFFIX)

    def _send(self) -> None:
        number = len(self.parts) + 1
        sent = self.client.upload_part(**self.place, PartNumber=number, Body=bytes(self.rest))
        self.parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self.rest.clear()


def _is_old(moment: datetime) -> bool:
    return datetime.now(UTC) - moment > UPLOAD_TAKES_AT_MOST
