"""What becomes of an API process that is told to end, or killed: real processes, real connections."""

import shutil
import signal
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psutil
import pytest
from PIL import Image

from cli.client import ready
from cli.processes import free_port
from tests.api.service import ADMIN_KEY, ROWS, TASK
from tests.api.serving_world import World, row
from tests.conftest import opened
from tests.processes import ROOT, Part

pytestmark = pytest.mark.slow

KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
BOUND_SECONDS = 30
"""What docs/operations.md promises."""


class Api:
    """An API process, and a client of it."""

    def __init__(self, part: Part, port: int) -> None:
        self.part, self.port = part, port
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=KEY, timeout=120)

    def is_alive(self) -> bool:
        return self.part.alive

    def children(self) -> set[psutil.Process]:
        """Every process that came of it."""
        return set(psutil.Process(self.part.pid).children(recursive=True))

    def end(self) -> None:
        """It leaves in order, within the bound."""
        seconds = self._send(signal.SIGTERM)
        assert (self.part.wait(), seconds < BOUND_SECONDS) == (0, True), seconds

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> float:
        """Until no process that came of it is left; the seconds until it had ended itself."""
        children, begun = self.children(), time.monotonic()
        self.part.send(number)
        self.part.wait()
        seconds = time.monotonic() - begun
        assert eventually(lambda: not any(_is_alive(child) for child in children)), children
        return seconds


class Apis:
    """API processes on one database and one data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.database_url = folder, f"sqlite:///{folder / 'store.sqlite'}"
        self._started: list[Api] = []

    def take(self, number: int) -> list[Api]:
        """So many that are alive; some may have been started earlier."""
        alive = [api for api in self._started if api.is_alive()]
        return [*alive, *self.start(number - len(alive))][:number]

    def start(self, number: int = 1) -> list[Api]:
        new = [self._start() for _ in range(number)]
        for api in new:
            assert ready(f"http://127.0.0.1:{api.port}", api.is_alive)
        return new

    def _start(self) -> Api:
        settings = {
            "MODELYARD_DATABASE_URL": self.database_url,
            "MODELYARD_DATA_DIR": str(self.folder),
            "MODELYARD_ADMIN_KEY": ADMIN_KEY,
        }
        name, port = f"api{len(self._started)}", free_port()
        part = Part(name, ["api", "--port", str(port)], self.folder, ROOT, settings)
        self._started.append(Api(part, port))
        return self._started[-1]

    def uploads(self) -> set[Path]:
        """Folders of uploads that are under way or were left, of whichever process."""
        return set((self.folder / "uploads").glob("*/*"))

    def close(self) -> None:
        for api in self._started:
            api.client.close()
            if api.is_alive():
                api.part.end()


@pytest.fixture(scope="module")
def apis(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apis]:
    folder = tmp_path_factory.mktemp("graceful")
    shutil.copy(_sqlite_template, folder / "store.sqlite")
    apis = Apis(folder)
    yield apis
    apis.close()


def test_an_upload_that_holds_it_up_is_put_off_and_done_once_elsewhere(apis: Apis) -> None:
    first, second = apis.take(2)
    key = uuid4().hex
    with checking(first, lambda: upload(first, key)) as (answer, check):
        check.suspend()  # it will not end by itself
        first.end()
    assert answer.result().status_code == 503
    assert answer.result().headers["Retry-After"]
    assert apis.uploads() == set()
    again = upload(second, key)
    assert again.status_code == 201
    assert "Idempotency-Replayed" not in again.headers
    assert upload(second, key).json() == again.json()
    assert len(second.client.get("/v1/datasets").json()["data"]) == 1


def test_predictions_go_on_with_one_repetition(apis: Apis) -> None:
    with opened(apis.database_url) as database:
        World(database).publish()
    first, second = apis.take(2)
    path, body = "/v1/models/rows/predict", {"inputs": [row(1)]}
    stop = threading.Event()

    def predict() -> list[int]:
        statuses = []
        with httpx2.Client(headers=KEY, timeout=60) as client:
            while not stop.wait(0.02):
                try:
                    answer = client.post(f"http://127.0.0.1:{first.port}{path}", json=body)
                    statuses.append(answer.status_code)
                except httpx2.TransportError:
                    answer = client.post(f"http://127.0.0.1:{second.port}{path}", json=body)
                    assert answer.status_code == 200, answer.text
        return statuses

    with ThreadPoolExecutor(4) as threads:
        predicting = [threads.submit(predict) for _ in range(4)]
        try:
            time.sleep(2)
            first.end()
        finally:
            stop.set()
    answered = [status for each in predicting for status in each.result()]
    assert len(answered) > 20
    assert set(answered) == {200}


def test_what_a_killed_process_left_is_removed(apis: Apis) -> None:
    first, second = apis.take(2)
    with checking(first, lambda: upload(first, file=("big.zip", a_long_check()))) as (
        answer,
        check,
    ):
        first.kill()  # and its check ends with it, which had a minute to go
    assert isinstance(answer.exception(), httpx2.TransportError)
    (left,) = apis.uploads()
    with checking(second, lambda: upload(second)) as (answer, check):
        check.suspend()
        mine = apis.uploads() - {left}
        apis.start()
        assert apis.uploads() == mine, "a process that lives keeps its files"
    assert answer.result().status_code == 201


def test_streams_end_at_once_and_a_request_that_holds_it_up_is_put_off(apis: Apis) -> None:
    (api,) = apis.take(1)
    dataset = upload(api).json()["id"]
    job = api.client.post("/v1/jobs", json={"dataset": dataset}).json()["id"]
    path, headers = f"/v1/jobs/{job}/events", {"Accept": "text/event-stream"}
    with (
        ThreadPoolExecutor(2) as threads,
        socket.create_connection(("127.0.0.1", api.port)) as idle,
        socket.create_connection(("127.0.0.1", api.port)) as slow,
        api.client.stream("GET", path, headers=headers) as stream,
    ):
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: me\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += idle.recv(1_000)
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: me\r\nAuthorization: {KEY['Authorization']}\r\n"
        slow.sendall(f'{head}Content-Length: 100\r\n\r\n{{"dataset"'.encode())
        lines = threads.submit(lambda: list(stream.iter_lines()))
        time.sleep(1)  # until all of it is under way
        ended = threads.submit(api.end)
        assert idle.recv(1_000) == b""
        # The stream came to its end, not broken off in a chunk, and does not say that the job has.
        assert "event: status" in lines.result()
        assert "event: end" not in lines.result()
        assert not ended.done()
        assert slow.recv(10_000).startswith(b"HTTP/1.1 503")
        ended.result()


@contextmanager
def checking(api: Api, send: Callable[[], Any]) -> Iterator[tuple[Future[Any], psutil.Process]]:
    """The answer to an upload that is being sent, and the process that checks it."""
    before = api.children()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(send)
        assert eventually(lambda: bool(api.children() - before))
        (check,) = api.children() - before
        try:
            yield answer, check
        finally:
            with suppress(psutil.NoSuchProcess):
                check.resume()  # nothing is left behind by a test that fails


def upload(api: Api, key: str | None = None, file: tuple[str, Any] = ("rows.csv", ROWS)) -> Any:
    task = TASK if file[0].endswith("csv") else "image-classification"
    headers = {"Idempotency-Key": key} if key else {}
    return api.client.post(
        "/v1/datasets", data={"task": task}, files={"file": file}, headers=headers
    )


def a_long_check() -> bytes:
    """A small archive of pictures that take long to read."""
    picture, archive = BytesIO(), BytesIO()
    Image.new("RGB", (4_000, 4_000), "red").save(picture, "PNG")
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(300):
            file.writestr(f"{'ab'[number % 2]}/{number}.png", picture.getvalue())
    return archive.getvalue()


def eventually(true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
