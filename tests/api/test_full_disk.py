"""A full disk, made really full: 507, nothing half kept, reading goes on, and so does all when there is room."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, func, make_url, select, text

from api.app import create_app
from api.settings import ApiSettings
from store import migrate
from store.session import Database
from store.tables import Dataset, Job
from tests.api.service import ADMIN_KEY, ROWS, TASK, Service, errors_of

MIB = 2**20


@contextmanager
def serving(database_url: str, folder: Path) -> Iterator[Service]:
    settings = ApiSettings(database_url=database_url, data_dir=folder, admin_key=ADMIN_KEY)
    folder.mkdir(exist_ok=True)
    app = create_app(settings)
    with TestClient(app, raise_server_exceptions=False) as start:
        yield Service(app, folder, start)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes at `folder`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can make a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, but: int = 0) -> Path:
    """A file that takes all the room on a disk but so many bytes."""
    path = folder / "filling"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - but))
    return path


def test_a_database_without_room_takes_nothing_and_shows_everything(
    sqlite_url: str, tmp_path: Path
) -> None:
    with serving(sqlite_url, tmp_path / "data") as service, limited(service.database) as limit:
        client = service.client(ADMIN_KEY)
        dataset, job = create(client)
        before = kept(service)
        limit(False)
        refused(upload(client, numbers(100_000)))
        refused(submit_until_full(client, dataset))
        assert kept(service).datasets == before.datasets
        assert_readable(client, dataset, job)
        limit(True)
        create(client)
        assert_whole(service.database)


@pytest.mark.parametrize("place", ["file", "train.parquet", "verdict.json"])
def test_an_upload_without_room_leaves_nothing(
    service: Service, client: TestClient, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    class WithoutRoom(TemporaryDirectory[str]):
        """A folder in which one file takes no byte."""

        def __enter__(self) -> str:
            folder = super().__enter__()
            (Path(folder) / place).symlink_to("/dev/full")
            return folder

    headers = {"Idempotency-Key": uuid4().hex}
    with monkeypatch.context() as patched:
        patched.setattr("api.routes.datasets.TemporaryDirectory", WithoutRoom)
        refused(upload(client, headers=headers))
    assert client.get("/v1/datasets").json()["data"] == []
    assert upload(client, headers=headers).status_code == 201


def test_everything_on_a_full_disk(
    sqlite_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with small_disk(tmp_path / "disk", 8 * MIB) as disk:
        shutil.copy(make_url(sqlite_url).database or "", disk / "store.sqlite")
        with serving(f"sqlite:///{disk / 'store.sqlite'}", disk / "data") as service:
            client = service.client(ADMIN_KEY)
            newcomer = service.client(service.key("train"))
            dataset, job = create(client)
            unseen, _ = create(client)
            before = kept(service)
            assert_readable(client, dataset, job)

            filling = fill(disk)
            refused(upload(client))
            refused(submit_until_full(client, dataset))
            assert_readable(client, dataset, job)
            assert newcomer.get("/v1/jobs").status_code == 200
            assert "is not noted" in caplog.text  # when the key was used first
            for path in (disk / "data" / "cache" / "examples").iterdir():
                os.utime(path, (0, 0))  # looked at long ago, so that another may take its room
            assert client.get(f"/v1/datasets/{unseen}/examples").status_code == 200

            filling.unlink()
            content = numbers(400_000)
            filling = fill(disk, but=len(content) + 40_000)
            refused(upload(client, content))
            assert "exit code 28" in caplog.text  # there was room for it, but not for its check
            assert kept(service).datasets == before.datasets
            assert list((disk / "data" / "uploads").glob("*/*")) == []

            monkeypatch.setattr(tempfile, "tempdir", str(disk))
            refused(upload(client, numbers(2 * MIB)))  # too large to be kept in memory meanwhile
            filling.unlink()
            create(client)
            assert_whole(service.database)


def test_a_full_disk_under_postgresql(
    postgres_url: str, tmp_path: Path, server_folder: Path
) -> None:
    with (
        small_disk(server_folder / uuid4().hex, 40 * MIB) as disk,
        psycopg.connect(postgres_url, autocommit=True) as connection,
    ):
        row = connection.execute("SHOW data_directory").fetchone()
        assert row is not None
        owner = Path(row[0]).stat()
        place = disk / "tablespace"
        place.mkdir()
        shutil.chown(place, owner.st_uid, owner.st_gid)
        connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        connection.execute("CREATE DATABASE small TABLESPACE small STRATEGY FILE_COPY")
        try:
            address = make_url(postgres_url).set(database="small")
            url = address.render_as_string(hide_password=False)
            migrate.upgrade(url)
            with serving(url, tmp_path / "data") as service:
                client = service.client(ADMIN_KEY)
                dataset, job = create(client)
                before = kept(service)
                filling = fill(disk)
                refused(upload(client, numbers(4 * MIB)))
                refused(submit_until_full(client, dataset))
                assert kept(service).datasets == before.datasets
                assert_readable(client, dataset, job)
                filling.unlink()
                create(client)
        finally:
            connection.execute("DROP DATABASE small WITH (FORCE)")
            connection.execute("DROP TABLESPACE small")


class Kept(NamedTuple):
    datasets: int
    jobs: int


@contextmanager
def limited(database: Database) -> Iterator[Callable[[bool], None]]:
    """Says whether an SQLite database may grow."""
    may_grow = True

    def prepare(connection: Any, _: Any) -> None:
        if not may_grow:
            connection.execute("PRAGMA max_page_count=1")  # never less than there are

    def limit(grows: bool) -> None:
        nonlocal may_grow
        may_grow = grows
        database.engine.dispose()  # the limit is one of each connection

    event.listen(database.engine, "connect", prepare)
    yield limit
    event.remove(database.engine, "connect", prepare)


def create(client: TestClient) -> tuple[str, str]:
    """A data set and a job."""
    dataset = upload(client)
    assert dataset.status_code == 201, dataset.text
    job = client.post("/v1/jobs", json={"dataset": dataset.json()["id"]})
    assert job.status_code == 202, job.text
    return dataset.json()["id"], job.json()["id"]


def upload(client: TestClient, content: str = ROWS, headers: dict[str, str] | None = None) -> Any:
    files = {"file": ("rows.csv", content)}
    return client.post("/v1/datasets", data={"task": TASK}, files=files, headers=headers)


def numbers(size: int) -> str:
    """Rows of about so many bytes in all that cannot be made much smaller."""
    rows = (
        f"{int.from_bytes(os.urandom(7), 'big') / 2**56},{'ab'[n % 2]}\n" for n in range(size // 22)
    )
    return "number,label\n" + "".join(rows)


def submit_until_full(client: TestClient, dataset: str) -> Any:
    """The first answer that is no success: there is some room left in what is there already."""
    for _ in range(500):
        answer = client.post("/v1/jobs", json={"dataset": dataset})
        if answer.status_code != 202:
            return answer
    raise AssertionError("there is no end of room")


def refused(answer: Any) -> None:
    """It was told that there is no room, and that nothing was kept."""
    assert errors_of(answer, 507) == []
    assert answer.json()["type"] == "urn:modelyard:problem:storage-full"
    assert "Nothing of this request was kept" in answer.json()["detail"]


def assert_readable(client: TestClient, dataset: str, job: str) -> None:
    """Examples need a file on this machine's disk, so only those that were looked at before."""
    for path in (
        "/v1/datasets",
        f"/v1/datasets/{dataset}",
        f"/v1/datasets/{dataset}/examples",
        "/v1/jobs",
        f"/v1/jobs/{job}",
        f"/v1/jobs/{job}/events",
        "/readyz",
    ):
        answer = client.get(path)
        assert answer.status_code == 200, answer.text


def kept(service: Service) -> Kept:
    with service.database.transaction(read_only=True) as session:
        counts = (select(func.count()).select_from(table) for table in (Dataset, Job))
        return Kept(*(session.execute(count).scalar_one() for count in counts))


def assert_whole(database: Database) -> None:
    with database.transaction(read_only=True) as session:
        assert session.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
