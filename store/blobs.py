"""Bytes by the SHA-256 of their content, in chunk rows, so that no host needs the other's files."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import CompoundSelect, delete, func, select, union, update
from sqlalchemy.orm import Session

from store.errors import NotFound, StoreError
from store.session import Database, now
from store.statements import insert_new
from store.tables import Blob, BlobChunk, Checkpoint, DatasetFile, JobArtifact, PretrainedFile

CHUNK_BYTES = 1 << 20
_SWEPT_AT_ONCE = 50


def put(database: Database, path: Path) -> str:
    """Store a file; its SHA-256. What is there already is not stored again.

    Nobody sees the bytes before the last chunk is in; an upload that breaks off is swept later.
    Raises StoreError when the file changes meanwhile.
    """
    with path.open("rb") as file:
        return _put(database, file)


def put_bytes(database: Database, data: bytes) -> str:
    """Like `put`, of bytes in memory."""
    return _put(database, BytesIO(data))


def _put(database: Database, file: BinaryIO) -> str:
    blob_id, size = _digest(file)
    if _open(database, blob_id, size):
        return blob_id
    digest = hashlib.sha256()
    file.seek(0)
    for n, data in enumerate(iter(lambda: file.read(CHUNK_BYTES), b"")):
        digest.update(data)
        if not _put_chunk(database, blob_id, n, data):
            return blob_id
    if digest.hexdigest() != blob_id:
        raise StoreError("The file was changed while it was being stored.")
    _close(database, blob_id, size)
    return blob_id


def _digest(file: BinaryIO) -> tuple[str, int]:
    digest = hashlib.sha256()
    for data in iter(lambda: file.read(CHUNK_BYTES), b""):
        digest.update(data)
    return digest.hexdigest(), file.tell()


def _open(database: Database, blob_id: str, size: int) -> bool:
    """Make the row, or touch it so that it is not swept; whether the blob is complete already."""
    with database.transaction() as session:
        row = {"id": blob_id, "size": size, "complete": False, "touched_at": now(session)}
        return not insert_new(session, Blob, row) and _touch(session, blob_id) is True


def _touch(session: Session, blob_id: str) -> bool | None:
    """Whether the blob is complete; None when it is gone."""
    touched = update(Blob).where(Blob.id == blob_id).values(touched_at=now(session))
    return session.execute(touched.returning(Blob.complete)).scalar_one_or_none()


def _put_chunk(database: Database, blob_id: str, n: int, data: bytes) -> bool:
    """Store one chunk; False when somebody else completed the blob meanwhile."""
    with database.transaction() as session:
        if _touch(session, blob_id) is True:
            return False
        chunk = session.get(BlobChunk, (blob_id, n))
        if chunk is None:
            session.add(BlobChunk(blob_id=blob_id, n=n, data=data))
        else:
            chunk.data = data
        return True


def _close(database: Database, blob_id: str, size: int) -> None:
    with database.transaction() as session:
        lengths = select(func.coalesce(func.sum(func.length(BlobChunk.data)), 0))
        stored = session.execute(lengths.where(BlobChunk.blob_id == blob_id)).scalar_one()
        if stored != size or _touch(session, blob_id) is None:
            raise StoreError("The upload took too long and was swept; please repeat it.")
        session.execute(update(Blob).where(Blob.id == blob_id).values(complete=True))


def size(session: Session, blob_id: str) -> int:
    """Bytes. Raises NotFound."""
    found = session.get(Blob, blob_id)
    if found is None or not found.complete:
        raise NotFound("blob", blob_id)
    return found.size


def read(
    database: Database, blob_id: str, start: int = 0, stop: int | None = None
) -> Iterator[bytes]:
    """The bytes from `start` up to `stop`, a chunk at a time. Raises NotFound.

    Every chunk is read in a transaction of its own, so a slow reader holds nothing up.
    """
    with database.transaction(read_only=True) as session:
        end = size(session, blob_id)
    stop = end if stop is None else min(stop, end)
    for n in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
        offset = n * CHUNK_BYTES
        yield _chunk(database, blob_id, n)[max(start - offset, 0) : stop - offset]


def content(session: Session, blob_id: str) -> bytes:
    """The bytes of a small blob, in the caller's transaction. Raises NotFound."""
    size(session, blob_id)
    chunks = select(BlobChunk.data).where(BlobChunk.blob_id == blob_id).order_by(BlobChunk.n)
    return b"".join(session.scalars(chunks))


def _chunk(database: Database, blob_id: str, n: int) -> bytes:
    with database.transaction(read_only=True) as session:
        found = session.get(BlobChunk, (blob_id, n))
        if found is None:
            raise NotFound("blob", blob_id)
        return found.data


def fetch(database: Database, blob_id: str, path: Path) -> None:
    """Write the blob to `path`, which is there either whole or not at all. Raises NotFound."""
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    part = Path(name)
    try:
        with open(handle, "wb") as file:
            for data in read(database, blob_id):
                digest.update(data)
                file.write(data)
        if digest.hexdigest() != blob_id:
            raise StoreError(f"The stored bytes of blob {blob_id} are damaged.")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sweep(session: Session, older_than_seconds: float = 3600) -> int:
    """Delete some of the blobs that no row refers to, left-over halves included; the bytes freed.

    The age gives an upload the time to be referred to. A sweep takes a bounded number: repeat it until 0.
    """
    oldest = now(session) - timedelta(seconds=older_than_seconds)
    query = select(Blob).where(Blob.touched_at <= oldest, Blob.id.not_in(references()))
    query = query.limit(_SWEPT_AT_ONCE).with_for_update(skip_locked=True)
    unused = {blob.id: blob.size for blob in session.scalars(query)}
    session.execute(delete(Blob).where(Blob.id.in_(unused), Blob.id.not_in(references())))
    return sum(unused.values())


def references() -> CompoundSelect[str]:
    """The id of every blob that a row refers to."""
    return union(
        select(DatasetFile.blob_id),
        select(PretrainedFile.blob_id),
        select(Checkpoint.weights_blob),
        select(Checkpoint.codec_blob),
        select(Checkpoint.state_blob).where(Checkpoint.state_blob.is_not(None)),
        select(JobArtifact.blob_id),
    )
