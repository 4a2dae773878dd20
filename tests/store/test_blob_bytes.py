"""Bytes by content: stored once, whole or invisible, swept when nobody refers to them."""

import hashlib
import random
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from store import blobs, storage
from store.blobs import CHUNK_BYTES
from store.errors import NotFound, StoreError
from store.session import Database, now
from store.tables import Blob, BlobChunk
from tests.store.world import World

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5]


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def age(database: Database) -> None:
    with database.transaction() as session:
        session.execute(update(Blob).values(touched_at=now(session).replace(year=2000)))


def chunks(database: Database) -> int:
    with database.transaction() as session:
        return session.execute(select(func.count()).select_from(BlobChunk)).scalar_one()


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_is_read_under_its_hash(database: Database, tmp_path: Path, size: int) -> None:
    data, path = content(size), tmp_path / "data"
    path.write_bytes(data)
    blob_id = blobs.put(database, path)
    assert blob_id == hashlib.sha256(data).hexdigest()
    assert b"".join(blobs.read(database, blob_id)) == data
    with database.transaction() as session:
        assert blobs.size(session, blob_id) == size


def test_any_range_is_read_exactly(sqlite_database: Database) -> None:
    data = content(3 * CHUNK_BYTES + 5)
    blob_id = blobs.put_bytes(sqlite_database, data)
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    edges = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(data) - 1, len(data)]
    for _ in range(60):
        near = [min(len(data), max(0, chance.choice(edges) + chance.randint(-2, 2))) for _ in "ab"]
        start, stop = sorted(near)
        found = b"".join(blobs.read(sqlite_database, blob_id, start, stop))
        assert found == data[start:stop], f"seed {seed}: {start}..{stop}"
    assert b"".join(blobs.read(sqlite_database, blob_id, 5)) == data[5:]
    assert b"".join(blobs.read(sqlite_database, blob_id, 5, len(data) + 9)) == data[5:]
    assert b"".join(blobs.read(sqlite_database, blob_id, len(data) + 9)) == b""


def test_the_same_bytes_are_stored_once(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(content(CHUNK_BYTES + 1))
    first = blobs.put(database, path)
    assert blobs.put_bytes(database, path.read_bytes()) == first
    assert chunks(database) == 2


def test_the_same_bytes_put_by_many_at_once_are_whole(database: Database) -> None:
    data, ids = content(2 * CHUNK_BYTES + 1), []
    threads = [
        threading.Thread(target=lambda: ids.append(blobs.put_bytes(database, data)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 4
    assert len(set(ids)) == 1
    assert b"".join(blobs.read(database, ids[0])) == data


def test_a_file_is_fetched_whole(database: Database, tmp_path: Path) -> None:
    data = content(CHUNK_BYTES + 7)
    blob_id = blobs.put_bytes(database, data)
    blobs.fetch(database, blob_id, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".copy")] == []


def test_damaged_bytes_are_not_handed_out(database: Database, tmp_path: Path) -> None:
    blob_id = blobs.put_bytes(database, b"precious")
    with database.transaction() as session:
        session.execute(update(BlobChunk).values(data=b"damaged!"))
    with pytest.raises(StoreError, match="damaged"):
        blobs.fetch(database, blob_id, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def half_put(database: Database, data: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """Break an upload off before its last chunk, as a killed process does."""

    class Killed(BaseException):
        pass

    whole = blobs._put_chunk

    def dying(database: Database, blob_id: str, n: int, chunk: bytes) -> bool:
        if n == 2:
            raise Killed
        return whole(database, blob_id, n, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(blobs, "_put_chunk", dying)
        with pytest.raises(Killed):
            blobs.put_bytes(database, data)
    return hashlib.sha256(data).hexdigest()


def test_a_half_written_blob_is_invisible_and_can_be_completed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(3 * CHUNK_BYTES)
    blob_id = half_put(database, data, monkeypatch)
    assert chunks(database) == 2
    with pytest.raises(NotFound):
        list(blobs.read(database, blob_id))
    with database.transaction() as session, pytest.raises(NotFound):
        blobs.size(session, blob_id)
    assert blobs.put_bytes(database, data) == blob_id
    assert b"".join(blobs.read(database, blob_id)) == data


def test_a_half_written_blob_is_swept_once_it_is_old(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_put(database, content(3 * CHUNK_BYTES), monkeypatch)
    with database.transaction() as session:
        assert blobs.sweep(session) == 0
    age(database)
    with database.transaction() as session:
        assert blobs.sweep(session) == 3 * CHUNK_BYTES
    assert chunks(database) == 0


def test_an_upload_swept_under_the_writer_is_not_called_complete(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = blobs._close

    def swept_just_before(database: Database, blob_id: str, size: int) -> None:
        age(database)
        with database.transaction() as session:
            blobs.sweep(session)
        whole(database, blob_id, size)

    monkeypatch.setattr(blobs, "_close", swept_just_before)
    with pytest.raises(StoreError, match="please repeat it"):
        blobs.put_bytes(database, b"slow")


def test_a_file_that_changes_while_it_is_stored_is_refused(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"before")
    begin = blobs._open

    def changing(database: Database, blob_id: str, size: int) -> bool:
        path.write_bytes(b"after!")
        return begin(database, blob_id, size)

    monkeypatch.setattr(blobs, "_open", changing)
    with pytest.raises(StoreError, match="was changed"):
        blobs.put(database, path)
    with pytest.raises(NotFound):
        list(blobs.read(database, hashlib.sha256(b"before").hexdigest()))


def test_a_sweep_takes_only_what_nobody_refers_to(world: World) -> None:
    orphan = blobs.put_bytes(world.database, b"orphan")
    age(world.database)
    assert world.act(blobs.sweep) == len(b"orphan")
    with pytest.raises(NotFound):
        world.act(blobs.size, orphan)
    assert world.act(blobs.size, world.blob) == len(b"weights")


def test_a_blob_put_again_is_not_swept(world: World) -> None:
    blobs.put_bytes(world.database, b"orphan")
    age(world.database)
    blobs.put_bytes(world.database, b"orphan")
    assert world.act(blobs.sweep) == 0


def test_storage_is_counted_by_what_it_is_for(world: World) -> None:
    weights = blobs.put_bytes(world.database, b"12345")
    blobs.put_bytes(world.database, b"orphan")
    world.save(world.start(), weights_blob=weights)
    everything = world.act(storage.usage)
    assert everything == {
        "dataset_bytes": 7,
        "checkpoint_bytes": 12,
        "artifact_bytes": 0,
        "blob_bytes": 18,
        "blob_count": 3,
        "orphan_bytes": 6,
    }
    mine = world.act(storage.usage, world.project)
    assert mine == everything | {"blob_bytes": 12, "blob_count": 2, "orphan_bytes": 0}
    assert set(world.act(storage.usage, world.other_project).values()) == {0}
