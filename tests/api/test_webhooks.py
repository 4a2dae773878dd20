"""Webhooks over HTTP: what receivers get, when they get it again, and whom nothing is sent to."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpcore2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from standardwebhooks import Webhook, WebhookVerificationError

from api import webhooks
from api.addresses import Network, NotPublic, is_public, read_url
from api.app import create_app
from api.settings import ApiSettings
from cli.processes import free_port
from store import datasets, jobs, projects
from store import webhooks as outbox
from store.session import Database, now
from store.tables import Delivery, Job
from tasks.parts.problems import Invalid
from tests.api.service import ADMIN_KEY, ROWS, TASK, Service, Worker, errors_of
from tests.conftest import opened

ROOT = Path(__file__).parents[2]
CERTIFICATE = Path(__file__).with_name("hooks.test.pem")
"""For hooks.test, signed by itself: openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 ..."""
EVERY = ["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]


class Request(NamedTuple):
    """What a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """A real server that keeps what it gets, and answers as it is told: 200 unless `answers` says more."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.delay: Callable[[BaseHTTPRequestHandler], object] = lambda _: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/hook?from=here"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def bodies(self, secret: str) -> list[Any]:
        """What came, verified as a receiver does it."""
        hook = Webhook(secret)
        return [hook.verify(request.body, request.headers) for request in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler_of(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append(Request(self.path, dict(self.headers), body))
            with contextlib.suppress(OSError):  # the sender may be gone
                receiver.delay(self)
                status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.05)


@contextlib.contextmanager
def running(url: str, folder: Path, **more: Any) -> Iterator[Service]:
    settings = ApiSettings(
        database_url=url, data_dir=folder, admin_key=ADMIN_KEY, key_cache_seconds=0, **more
    )
    app = create_app(settings)
    with TestClient(app, raise_server_exceptions=False) as start:
        yield Service(app, folder, start)


@pytest.fixture(scope="module")
def service(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An application that also sends to this machine."""
    folder = tmp_path_factory.mktemp("webhooks")
    shutil.copy(_sqlite_template, folder / "modelyard.sqlite")
    url = f"sqlite:///{folder / 'modelyard.sqlite'}"
    with running(url, folder, webhook_private=True) as found:
        yield found


@pytest.fixture(autouse=True)
def _nothing_left(service: Service) -> None:
    """No job of another test is there to be taken by a worker."""
    with service.database.transaction() as session:
        session.execute(delete(Job))


@pytest.fixture
def strict(sqlite_url: str, tmp_path: Path) -> Iterator[Service]:
    """An application as it is without a setting: it sends to public addresses alone."""
    with running(sqlite_url, tmp_path / "strict") as found:
        yield found


@pytest.fixture
def secret(client: TestClient) -> str:
    found: str = client.get("/v1/webhooks/secret").json()["secret"]
    return found


def new_dataset(client: TestClient) -> str:
    """The id of one, for somebody who is not the fixtures' client."""
    files = {"file": ("rows.csv", ROWS)}
    found: str = client.post("/v1/datasets", data={"task": TASK}, files=files).json()["id"]
    return found


def submit(client: TestClient, dataset: str, webhook: Any, **more: Any) -> dict[str, Any]:
    body = {"dataset": dataset, "training": {"epochs": 3}, "webhook": webhook, **more}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def deliveries(client: TestClient, **params: Any) -> list[dict[str, Any]]:
    """Messages, the oldest first."""
    answer = client.get("/v1/webhooks/deliveries", params=params)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found[::-1]


def eventually(true: Callable[[], Any], seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def ended(client: TestClient, number: int = 1, **params: Any) -> list[dict[str, Any]]:
    """So many messages, once an attempt of each has ended."""

    def found() -> list[dict[str, Any]] | None:
        rows = deliveries(client, **params)
        done = [row for row in rows if row["last_status"] or row["last_error"]]
        return rows if len(done) == len(rows) == number else None

    result: list[dict[str, Any]] = eventually(found)
    return result


def hurry(database: Database, **of: Any) -> None:
    """Let every wait of pending messages be over."""
    with database.transaction() as session:
        waiting = update(Delivery).filter_by(status="pending", **of)
        session.execute(waiting.values(next_attempt_at=now(session)))


# What receivers get


def test_a_receiver_gets_signed_messages_in_the_order_of_the_events(
    service: Service,
    client: TestClient,
    dataset: str,
    worker: Worker,
    receiver: Receiver,
    secret: str,
) -> None:
    job = submit(client, dataset, receiver.url, name="mine")
    held = worker.take(job["id"])
    worker.save(held)
    worker.finish(held, metrics={"test": {"accuracy": 0.75}})
    rows = ended(client, 3)
    assert [row["type"] for row in rows] == ["job.queued", "job.running", "job.succeeded"]
    told = receiver.bodies(secret)
    assert [body["type"] for body in told] == [row["type"] for row in rows]
    events = client.get(f"/v1/jobs/{job['id']}/events").json()["data"]
    of_status = [event for event in events if event["type"] == "status"]
    assert [body["timestamp"] for body in told] == [event["at"] for event in of_status]
    assert [body["data"]["seq"] for body in told] == [event["seq"] for event in of_status]
    last = {**told[-1]["data"]}
    assert last.pop("seq") > 2
    assert last == {
        "id": job["id"],
        "name": "mine",
        "kind": "train",
        "status": "succeeded",
        "task": TASK,
        "dataset": dataset,
        "model": "mine@1",
        "metrics": {"test": {"accuracy": 0.75}},
    }
    for row, request in zip(rows, receiver.requests, strict=True):
        assert request.path == "/hook?from=here"
        assert request.headers["Content-Type"] == "application/json"
        assert request.headers["webhook-id"] == row["id"]
        assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
        assert (row["status"], row["attempts"], row["last_status"]) == ("delivered", 1, 200)
        assert row["delivered_at"]
        assert (row["next_attempt_at"], row["last_error"]) == (None, None)


def test_the_whole_way_works_on_both_databases(
    database_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    with running(database_url, tmp_path, webhook_private=True) as service:
        client = service.client(ADMIN_KEY)
        job = submit(client, new_dataset(client), receiver.url)["id"]
        receiver.answers = [(200, {}), (500, {})]
        client.post(f"/v1/jobs/{job}/cancel")
        assert [row["status"] for row in ended(client, 2, job=job)] == ["delivered", "pending"]
        secret = client.post("/v1/webhooks/secret/rotate").json()["secret"]
        hurry(service.database)
        eventually(lambda: len(receiver.requests) == 3)
        assert Webhook(secret).verify(receiver.requests[2].body, receiver.requests[2].headers)
        (failed,) = eventually(lambda: [r for r in deliveries(client) if r["attempts"] == 2])
        assert failed["type"] == "job.cancelled"
        eventually(lambda: deliveries(client, status="delivered", job=job)[1:])
        again = client.post(f"/v1/webhooks/deliveries/{failed['id']}/retry").json()
        assert (again["status"], again["attempts"]) == ("pending", 0)
        eventually(lambda: len(receiver.requests) == 4)


def test_a_url_alone_is_short_for_every_event(
    client: TestClient, dataset: str, receiver: Receiver
) -> None:
    job = submit(client, dataset, receiver.url)
    assert job["webhook"] == {"url": receiver.url, "events": EVERY}
    assert job["request"]["webhook"] == {"url": receiver.url}
    some = {"url": receiver.url, "events": ["failed", "cancelled", "failed"]}
    job = submit(client, dataset, some)
    assert job["webhook"] == {"url": receiver.url, "events": ["failed", "cancelled"]}
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert [row["type"] for row in ended(client, 1, job=job["id"])] == ["job.cancelled"]
    assert submit(client, dataset, None)["webhook"] is None


def test_what_comes_of_a_job_keeps_its_webhook(
    client: TestClient, dataset: str, worker: Worker, receiver: Receiver
) -> None:
    hook = {"url": receiver.url, "events": ["succeeded"]}
    job = submit(client, dataset, hook)["id"]
    worker.succeed(job)
    longer = client.post(f"/v1/jobs/{job}/extend", json={"epochs": 1}).json()
    assert longer["webhook"] == hook
    client.post(f"/v1/jobs/{longer['id']}/cancel")
    again = client.post(f"/v1/jobs/{longer['id']}/retry").json()
    assert again["webhook"] == hook
    clone = f"/v1/jobs/{again['id']}/clone"
    assert client.post(clone).json()["webhook"] == hook
    other = client.post(clone, json={"webhook": {"events": ["failed"]}}).json()
    assert other["webhook"] == {**hook, "events": ["failed"]}
    assert client.post(clone, json={"webhook": None}).json()["webhook"] is None
    elsewhere = f"{receiver.url}&too"
    assert client.post(clone, json={"webhook": elsewhere}).json()["webhook"]["url"] == elsewhere
    (error,) = errors_of(client.post(clone, json={"webhook": "ftp://x"}))
    assert error["loc"] == ["webhook", "url"]


def test_an_evaluation_tells_of_itself(
    client: TestClient, dataset: str, worker: Worker, receiver: Receiver, secret: str
) -> None:
    trained = client.post("/v1/jobs", json={"dataset": dataset, "name": "judged"}).json()["id"]
    worker.succeed(trained)
    body = {"dataset": dataset, "split": "validation", "webhook": receiver.url}
    job = client.post("/v1/models/judged/evaluate", json=body).json()
    assert job["webhook"]["url"] == receiver.url
    worker.finish(worker.take(job["id"]), result={"accuracy": 1.0})
    ended(client, 3)
    assert [body["data"]["kind"] for body in receiver.bodies(secret)] == ["evaluate"] * 3
    (error,) = errors_of(
        client.post("/v1/models/judged/evaluate", json={**body, "webhook": "nowhere"})
    )
    assert error["loc"] == ["webhook", "url"]


def test_a_new_secret_is_used_beside_the_old_one(
    service: Service, client: TestClient, dataset: str, receiver: Receiver
) -> None:
    old = client.get("/v1/webhooks/secret").json()
    errors_of(client.post("/v1/webhooks/secret/rotate"), 403)
    mine = service.client(_key_of_the_same_project(service, client, "admin"))
    new = mine.post("/v1/webhooks/secret/rotate").json()
    assert new["secret"] != old["secret"]
    assert client.get("/v1/webhooks/secret").json() == new
    submit(client, dataset, receiver.url)
    ended(client)
    assert len(receiver.requests[0].headers["webhook-signature"].split(" ")) == 2
    assert receiver.bodies(old["secret"]) == receiver.bodies(new["secret"])
    with pytest.raises(WebhookVerificationError):
        receiver.bodies(
            service.client(service.key("train")).get("/v1/webhooks/secret").json()["secret"]
        )


def _key_of_the_same_project(service: Service, client: TestClient, scope: str) -> str:
    project = service.client(ADMIN_KEY).get("/v1/projects").json()["data"][0]["name"]
    return service.key(scope, project=project)


def test_nobody_else_sees_or_sends_the_messages_of_a_project(
    service: Service, client: TestClient, dataset: str, receiver: Receiver
) -> None:
    job = submit(client, dataset, receiver.url)["id"]
    (row,) = ended(client)
    stranger = service.client(service.key("admin"))
    assert deliveries(stranger) == deliveries(stranger, job=job) == []
    errors_of(stranger.post(f"/v1/webhooks/deliveries/{row['id']}/retry"), 404)
    assert len(receiver.requests) == 1


# When they get it again


def test_a_message_is_repeated_until_it_is_taken(
    service: Service, client: TestClient, dataset: str, receiver: Receiver, secret: str
) -> None:
    receiver.answers = [(500, {}), (404, {})]
    submit(client, dataset, receiver.url)
    (row,) = ended(client)
    assert (row["status"], row["attempts"], row["last_status"]) == ("pending", 1, 500)
    assert row["last_error"] == "The receiver answered 500 Internal Server Error."
    wait = datetime.fromisoformat(row["next_attempt_at"]) - datetime.now(UTC)
    assert timedelta(0) < wait < timedelta(seconds=6)
    for expected in ([2, 404, "pending"], [3, 200, "delivered"]):
        hurry(service.database)
        eventually(
            lambda expected=expected: (  # type: ignore[misc]
                [deliveries(client)[0][key] for key in ("attempts", "last_status", "status")]
                == expected
            )
        )
    assert [request.headers["webhook-id"] for request in receiver.requests] == [row["id"]] * 3
    assert len(receiver.bodies(secret)) == 3


def test_a_receiver_that_is_gone_is_left_alone(
    client: TestClient, dataset: str, receiver: Receiver
) -> None:
    receiver.answers = [(410, {})]
    submit(client, dataset, receiver.url)
    (row,) = ended(client)
    assert (row["status"], row["attempts"], row["next_attempt_at"]) == ("failed", 1, None)
    assert row["last_error"] == "The receiver answered 410 Gone."


def test_a_redirect_is_told_and_not_followed(
    client: TestClient, dataset: str, receiver: Receiver
) -> None:
    receiver.answers = [(307, {"Location": f"{receiver.url}&elsewhere"})]
    submit(client, dataset, receiver.url)
    (row,) = ended(client)
    assert (row["status"], row["last_status"]) == ("pending", 307)
    assert "Redirects are not followed" in row["last_error"]
    assert len(receiver.requests) == 1


LATER = format_datetime(datetime.now(UTC) + timedelta(seconds=3_600), usegmt=True)


@pytest.mark.parametrize(
    ("status", "told", "least", "most"),
    [
        (503, "1800", 1_790, 1_800),
        pytest.param(429, LATER, 3_000, 3_600, id="in an hour"),
        (429, "1", 4, 6),
        (503, "soon", 4, 6),
        (503, "-100", 4, 6),
        (503, "9" * 400, 86_390, 86_400),
        (500, "1800", 4, 6),
    ],
)
def test_a_receiver_is_given_the_time_it_asks_for(
    client: TestClient,
    dataset: str,
    receiver: Receiver,
    status: int,
    told: str,
    least: float,
    most: float,
) -> None:
    receiver.answers = [(status, {"Retry-After": told})]
    submit(client, dataset, receiver.url)
    before = datetime.now(UTC)
    (row,) = ended(client)
    wait = (datetime.fromisoformat(row["next_attempt_at"]) - before).total_seconds()
    assert least - 1 <= wait <= most + 2


def test_a_message_can_be_sent_again_by_hand(
    client: TestClient, dataset: str, receiver: Receiver, secret: str
) -> None:
    receiver.delay = lambda _: time.sleep(0.3)
    submit(client, dataset, receiver.url)
    (row,) = deliveries(client)
    path = f"/v1/webhooks/deliveries/{row['id']}/retry"
    errors_of(client.post(path), 409)
    ended(client)
    answer = client.post(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")
    eventually(lambda: len(receiver.requests) == 2)
    first, second = receiver.bodies(secret)
    assert first == second
    errors_of(client.post("/v1/webhooks/deliveries/msg_nothing/retry"), 404)


# Whatever goes wrong


def test_a_slow_receiver_holds_up_nobody_else(
    client: TestClient, dataset: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "AT_ONCE", 8)
    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 2.0)
    slow, go_on = Receiver(), threading.Event()
    slow.delay = lambda _: go_on.wait(10)
    try:
        for _ in range(12):
            submit(client, dataset, slow.url)
        eventually(lambda: len(slow.requests) == webhooks.AT_ONCE_EACH)
        begun = time.monotonic()
        job = submit(client, dataset, receiver.url)["id"]
        assert ended(client, job=job)[0]["status"] == "delivered"
        assert time.monotonic() - begun < 1.5
        assert len(slow.requests) == webhooks.AT_ONCE_EACH
        late = eventually(lambda: [r for r in deliveries(client, limit=100) if r["last_error"]])
        assert late[0]["last_error"] == "No answer within 2 s."
        assert late[0]["last_status"] is None
    finally:
        go_on.set()
        slow.close()


def test_an_answer_that_trickles_in_is_not_waited_for(
    client: TestClient, dataset: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 1.0)

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(40):
            handler.wfile.write(f"X-{number}: 1\r\n".encode())
            handler.wfile.flush()
            time.sleep(0.1)

    receiver.delay = trickle
    submit(client, dataset, receiver.url)
    assert ended(client)[0]["last_error"] == "No answer within 1 s."


def test_an_endless_answer_is_not_read(
    client: TestClient, dataset: str, receiver: Receiver
) -> None:
    sent = 0

    def flood(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sent += handler.wfile.write(b"x" * 65_536)

    receiver.delay = flood
    submit(client, dataset, receiver.url)
    assert ended(client)[0]["status"] == "delivered"
    assert sent < 100_000_000


def test_a_receiver_that_cannot_be_reached_is_told_so(
    client: TestClient, dataset: str, receiver: Receiver
) -> None:
    def nonsense(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SMTP?\r\n\r\n")
        raise OSError

    def nothing(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)
        raise OSError

    def reset(handler: BaseHTTPRequestHandler) -> None:
        at_once = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        os.close(handler.connection.detach())
        raise OSError

    for url, delay, error in (
        ("http://127.0.0.1:1/", None, "No connection: Connection refused."),
        (f"http://{'a' * 70}.example/", None, "No connection: The host was not found."),
        (receiver.url, nonsense, "No answer: the receiver hung up or does not speak HTTP."),
        (receiver.url, nothing, "No answer: the receiver hung up or does not speak HTTP."),
        (receiver.url, reset, "No answer: the connection broke off."),
        (receiver.url.replace("http:", "https:"), None, "No connection: TLS failed: "),
    ):
        receiver.delay = delay or receiver.delay
        job = submit(client, dataset, url)["id"]
        (row,) = ended(client, job=job)
        assert row["last_error"].startswith(error)
        assert row["last_error"].endswith(".")
        assert (row["status"], row["last_status"], row["attempts"]) == ("pending", None, 1)


def test_a_message_that_cannot_even_be_made_fails_like_others(
    service: Service,
    client: TestClient,
    dataset: str,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise TypeError("surprise")

    monkeypatch.setattr(webhooks, "_headers", broken)
    submit(client, dataset, receiver.url)
    assert ended(client)[0]["last_error"] == "Not sent: TypeError."


def test_an_outage_of_the_database_does_not_end_the_sending(
    client: TestClient,
    dataset: str,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", None, Exception("the database is away"))

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "due", away)
        submit(client, dataset, receiver.url)
        time.sleep(0.3)
        assert receiver.requests == []
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "record", away)
        eventually(lambda: receiver.requests)
        time.sleep(0.3)
    (row,) = deliveries(client)
    assert (row["status"], row["attempts"]) == ("pending", 1), "nobody knows, so it is sent again"
    assert "cannot look into the outbox: the database is away" in caplog.text
    assert f"cannot note what became of {row['id']}: the database is away" in caplog.text


def test_what_a_dead_sender_had_claimed_is_sent_again(
    service: Service, client: TestClient, dataset: str, receiver: Receiver
) -> None:
    other = Receiver()
    other.close()
    job = submit(client, dataset, other.url)["id"]
    ended(client)
    hook = {"url": receiver.url, "events": EVERY}
    with service.database.transaction() as session:
        session.execute(update(Delivery).filter_by(job_id=job).values(url=hook["url"]))
        (row,) = session.scalars(select(Delivery).filter_by(job_id=job))
        row.next_attempt_at = now(session)
        session.flush()
        (claimed,) = outbox.claim(session, [row.id])
    time.sleep(0.3)
    assert receiver.requests == [], "it belongs to somebody else"
    hurry(service.database, id=claimed.id)
    eventually(lambda: receiver.requests)
    assert ended(client)[0]["attempts"] == 3


def test_stopping_waits_a_little_for_what_is_under_way_and_loses_nothing(
    sqlite_url: str, tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "GRACE_SECONDS", 0.5)
    slow, go_on = Receiver(), threading.Event()
    slow.delay = lambda _: go_on.wait(10)
    receiver.delay = lambda _: time.sleep(0.2)
    try:
        with running(sqlite_url, tmp_path, webhook_private=True) as service:
            client = service.client(ADMIN_KEY)
            dataset = new_dataset(client)
            ids = [submit(client, dataset, it.url)["id"] for it in (slow, receiver)]
            eventually(lambda: slow.requests and receiver.requests)
            begun = time.monotonic()
        assert time.monotonic() - begun < 3
        go_on.set()
        with running(sqlite_url, tmp_path, webhook_private=True) as service:
            client = service.client(ADMIN_KEY)
            assert deliveries(client, job=ids[1])[0]["status"] == "delivered"
            assert deliveries(client, job=ids[0])[0]["status"] == "pending"
            hurry(service.database)
            eventually(lambda: deliveries(client, job=ids[0])[0]["status"] == "delivered")
            assert (len(slow.requests), len(receiver.requests)) == (2, 1)
    finally:
        go_on.set()
        slow.close()


def test_the_looking_ends_when_it_is_told_to_whatever_happens_just_then(
    sqlite_database: Database,
) -> None:
    async def start_and_stop() -> None:
        sender = webhooks.Sender(sqlite_database, private=True)
        for _ in range(20):
            looking = asyncio.create_task(sender.run())
            await asyncio.sleep(0.02)
            sender._one_ended.set()
            await asyncio.sleep(0)
            looking.cancel()
            ended, _ = await asyncio.wait([looking], timeout=5)
            assert ended
        await sender.close()

    asyncio.run(start_and_stop())


@pytest.mark.slow
def test_a_message_survives_the_death_of_the_process_that_sends_it(
    sqlite_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    settings = {
        "MODELYARD_DATABASE_URL": sqlite_url,
        "MODELYARD_DATA_DIR": str(tmp_path),
        "MODELYARD_ADMIN_KEY": ADMIN_KEY,
        "MODELYARD_WEBHOOK_PRIVATE": "true",
    }
    go_on = threading.Event()
    receiver.delay = lambda _: go_on.wait(60)

    @contextlib.contextmanager
    def process() -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "cli.main", "api", "--port", str(free_port())]
        with (tmp_path / "log").open("ab") as log:
            started = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **settings}, stdout=log, stderr=log
            )
            try:
                yield started
            finally:
                started.kill()
                started.wait()

    with opened(sqlite_url) as database:
        with database.transaction() as session:
            project = projects.ensure(session, "default").id
            secret = outbox.secret(session, project).secret
            job = _queued(session, project, receiver.url)
        with process():
            eventually(lambda: receiver.requests, 100)
        with database.transaction(read_only=True) as session:
            (lost,) = outbox.page(session, project, job=job).rows
            assert (lost.status, lost.attempts) == ("pending", 1)
        go_on.set()
        hurry(database)
        with process() as again:
            eventually(lambda: len(receiver.requests) == 2, 100)
            again.send_signal(signal.SIGTERM)
            assert again.wait(20) == 0
        with database.transaction(read_only=True) as session:
            (sent,) = outbox.page(session, project, job=job).rows
            assert (sent.status, sent.attempts) == ("delivered", 2)
    first, second = receiver.bodies(secret)
    assert first == second


def _queued(session: Session, project: str, url: str) -> str:
    dataset = datasets.create(
        session,
        project,
        name="rows",
        task=TASK,
        options={},
        schema={},
        report={},
        splits={},
        size_bytes=0,
        files={},
    )
    job = jobs.create(
        session,
        project,
        kind="train",
        name="rows",
        dataset_id=dataset.id,
        task=TASK,
        spec={},
        request={},
        queue="cpu",
        webhook={"url": url, "events": EVERY},
    )
    return job.id


def test_attempts_are_counted_and_name_nobody(
    service: Service, client: TestClient, dataset: str, receiver: Receiver
) -> None:
    def count() -> float:
        text = service.client(ADMIN_KEY).get("/metrics").text
        assert str(receiver.port) not in text
        found = re.findall(
            r'^modelyard_webhook_attempts_total{outcome="delivered"} (.*)', text, re.M
        )
        return float(found[0]) if found else 0.0

    before = count()
    submit(client, dataset, receiver.url)
    ended(client)
    assert count() == before + 1


# Where nothing is sent


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://hooks.example.com/", "http"),
        ("https://127.0.0.1/", "127.0.0.1"),
        ("https://127.1:8443/", "127.0.0.1"),
        ("https://2130706433/", "127.0.0.1"),
        ("https://0x7f000001/", "127.0.0.1"),
        ("https://0177.0.0.1/", "127.0.0.1"),
        ("https://127.0.0.1./", "127.0.0.1"),
        ("https://%31%32%37.0.0.1/", "127.0.0.1"),
        ("https://１２７.0.0.1/", "127.0.0.1"),
        ("https:\\\\127.0.0.1\\", "127.0.0.1"),
        (" https:/127.0.0.1\n", "127.0.0.1"),
        ("https://0/", "0.0.0.0"),
        ("https://10.1.2.3/", "10.1.2.3"),
        ("https://169.254.169.254/latest/meta-data", "169.254.169.254"),
        ("https://[::1]/", "::1"),
        ("https://[::]/", "::"),
        ("https://[::ffff:127.0.0.1]/", "::ffff:7f00:1"),
        ("https://[0:0:0:0:0:ffff:7f00:1]/", "::ffff:7f00:1"),
        ("https://[64:ff9b::10.0.0.1]/", "64:ff9b::a00:1"),
        ("https://[2002:7f00:1::]/", "2002:7f00:1::"),
        ("https://[fd00::1]/", "fd00::1"),
        ("https://[fe80::1]/", "fe80::1"),
        ("https://user@hooks.example.com/", "user"),
        ("https://user:hush@hooks.example.com/", "user"),
        ("ftp://hooks.example.com/", "ftp://hooks.example.com/"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("https://", "https://"),
        ("https://[fe80::1%25lo]/", "https://[fe80::1%25lo]/"),
        ("https://hooks.example.com:99999/", "https://hooks.example.com:99999/"),
        ("hooks.example.com", "hooks.example.com"),
        ("", ""),
    ],
)
def test_a_url_that_is_not_to_be_called_is_refused(url: str, found: str) -> None:
    with pytest.raises(Invalid) as refused:
        read_url(url, private=False)
    (problem,) = refused.value.problems
    assert (problem.loc, problem.found) == (("webhook", "url"), found)
    assert problem.msg
    assert problem.allowed
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "private", "read"),
    [
        ("https://hooks.example.com", False, "https://hooks.example.com/"),
        ("https://hooks.example.com:8443/a?b=c", False, "https://hooks.example.com:8443/a?b=c"),
        ("HTTPS://Bücher.example/ü", False, "https://xn--bcher-kva.example/%C3%BC"),
        ("https://93.184.216.34/", False, "https://93.184.216.34/"),
        ("https://[2606:4700::1111]/", False, "https://[2606:4700::1111]/"),
        ("https://localhost/", False, "https://localhost/"),
        ("http://127.1:8000/", True, "http://127.0.0.1:8000/"),
        ("http://[::1]/", True, "http://[::1]/"),
    ],
)
def test_a_url_is_read_in_one_spelling(url: str, private: bool, read: str) -> None:
    assert read_url(url, private=private) == read
    assert read_url(read, private=private) == read


def test_a_password_in_a_url_is_refused_everywhere() -> None:
    with pytest.raises(Invalid):
        read_url("http://user:hush@127.0.0.1/", private=True)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254"),
        *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1"),
        *("192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
        *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:7f00:1"),
        *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "100::1"),
        *("2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1"),
        *("2002:7f00:1::", "2002:a00:1::1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%lo"),
        *("fec0::1", "ff02::1", "ff0e::1", "5f00::1", "4000::1"),
    ],
)
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


def test_a_webhook_to_a_private_address_is_refused_where_it_is_asked_for(strict: Service) -> None:
    admin = strict.client(ADMIN_KEY)
    own = new_dataset(admin)
    for webhook in ("http://hooks.example.com/", {"url": "https://10.0.0.1"}):
        (error,) = errors_of(admin.post("/v1/jobs", json={"dataset": own, "webhook": webhook}))
        assert error["loc"] == ["webhook", "url"]
        assert error["found"] in ("http", "10.0.0.1")
        assert error["allowed"]


GOOD = "https://hooks.example.com/"


@pytest.mark.parametrize(
    ("webhook", "loc", "allowed"),
    [
        ({"url": GOOD, "events": []}, ["webhook", "events"], "min_length"),
        ({"url": GOOD, "events": ["done"]}, ["webhook", "events", 0], "succeeded"),
        ({"url": GOOD, "event": ["failed"]}, ["webhook", "event"], "events"),
        ({"events": ["failed"]}, ["webhook", "url"], None),
        ({"url": GOOD + "x" * 2_000}, ["webhook", "url"], "max_length"),
        (7, ["webhook"], None),
    ],
)
def test_a_bad_webhook_names_the_field_and_what_is_allowed(
    client: TestClient, dataset: str, webhook: Any, loc: list[Any], allowed: str | None
) -> None:
    (error,) = errors_of(client.post("/v1/jobs", json={"dataset": dataset, "webhook": webhook}))
    assert error["loc"] == loc
    assert allowed is None or allowed in error["allowed"]


def test_a_name_that_leads_to_this_machine_is_not_called(
    strict: Service, receiver: Receiver
) -> None:
    client = strict.client(ADMIN_KEY)
    submit(client, new_dataset(client), f"https://localhost:{receiver.port}/")
    (row,) = ended(client)
    assert row["last_error"] == "The host has an address that is not public."
    assert (row["status"], row["attempts"]) == ("pending", 1)
    assert receiver.requests == []


def _named(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have a name server give these answers, one after the other; the names it was asked for."""
    asked: list[str] = []

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        return [(None, None, None, "", (address, port)) for address in answers[len(asked) - 1]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def connect_to(network: Network, host: str, port: int) -> None:
    async def connect() -> None:
        stream = await network.connect_tcp(host, port, timeout=1)
        await stream.aclose()

    try:
        asyncio.run(connect())
    finally:
        network.close()


def test_a_name_server_that_changes_its_mind_changes_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    class Watched(httpcore2.AnyIOBackend):
        async def connect_tcp(self, host: str, *arguments: Any, **more: Any) -> Any:
            called.append(host)
            raise httpcore2.ConnectError("not in a test")

    monkeypatch.setattr(httpcore2, "AnyIOBackend", Watched)
    asked = _named(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    with pytest.raises(httpcore2.ConnectError):
        connect_to(Network(private=False), "rebind.test", receiver.port)
    assert (asked, called) == (["rebind.test"], ["93.184.216.34"])


def test_one_private_address_among_public_ones_is_enough_to_refuse(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    _named(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    with pytest.raises(NotPublic):
        connect_to(Network(private=False), "both.test", receiver.port)


def test_a_host_is_reached_at_the_address_that_answers(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    _named(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    connect_to(Network(private=True), "two.test", receiver.port)
    _named(monkeypatch, [])
    with pytest.raises(httpcore2.ConnectError, match="no address"):
        connect_to(Network(private=True), "none.test", receiver.port)


def test_the_certificate_must_be_for_the_name(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **more: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith(".test") else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    safe = Receiver(CERTIFICATE)
    try:
        for trusted, host, error in (
            (True, "hooks.test", None),
            (True, "other.test", "the certificate is not valid: Hostname mismatch"),
            (False, "hooks.test", "the certificate is not valid: self"),
        ):
            with monkeypatch.context() as patch:
                if trusted:
                    patch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
                with running(sqlite_url, tmp_path, webhook_private=True) as service:
                    client = service.client(ADMIN_KEY)
                    job = submit(client, new_dataset(client), f"https://{host}:{safe.port}/")
                    (row,) = ended(client, job=job["id"])
                    assert row["status"] == ("pending" if error else "delivered")
                    assert error is None or error in row["last_error"]
        assert [request.headers["Host"] for request in safe.requests] == [f"hooks.test:{safe.port}"]
    finally:
        safe.close()


def test_proxies_of_the_environment_are_not_asked(
    service: Service,
    client: TestClient,
    dataset: str,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    submit(client, dataset, receiver.url)
    assert ended(client)[0]["status"] == "delivered"
