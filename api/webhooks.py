"""Sends what lies in the outbox: signed messages (Standard Webhooks) to the webhooks of jobs."""

import asyncio
import contextlib
import logging
import os
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import httpcore2
import prometheus_client
from pydantic_core import to_json
from sqlalchemy.exc import SQLAlchemyError
from standardwebhooks import Webhook

from api.addresses import Network, NotPublic
from api.metrics import REGISTRY
from store import webhooks
from store.session import Database
from store.tables import Delivery

log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 15.0
"""For everything from the lookup of the name to the answer."""
CONNECT_SECONDS = 5.0
"""For each address of a host: one that is silent leaves time for the next."""
LOOK_SECONDS = 1.0
GRACE_SECONDS = 3.0
"""What messages under way are given when the service stops."""
AT_ONCE, AT_ONCE_EACH = 64, 4
"""Messages under way at the same time; those to one receiver, so that a slow one holds up none but itself."""
LONGEST_WAIT_SECONDS = 86_400.0
"""What a receiver may ask for; then it is tried again, whatever it said."""

ATTEMPTS = prometheus_client.Counter(
    "modelyard_webhook_attempts",
    "Attempts to deliver a message to a webhook.",
    ["outcome"],
    registry=REGISTRY,
)


class Message(NamedTuple):
    """What this process has claimed, and the secrets that sign it."""

    delivery: Delivery
    secrets: list[str]


class Outcome(NamedTuple):
    """How an attempt ended; `wait` is what the receiver asks for, in seconds."""

    name: Literal["delivered", "rejected", "unreachable", "not_public"]
    error: str | None = None
    status: int | None = None
    wait: float = 0.0
    again: bool = True


@contextlib.asynccontextmanager
async def sending(database: Database, *, private: bool) -> AsyncIterator[None]:
    """While this lasts, messages are sent; `private` also lets them go to addresses that are not public."""
    sender = Sender(database, private=private)
    looking = asyncio.create_task(sender.run())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait([looking])
        await sender.close()


class Sender:
    """Looks into the outbox, and has many messages under way at the same time."""

    def __init__(self, database: Database, *, private: bool) -> None:
        self._database = database
        self._network = Network(private=private)
        # Nothing of a connection is kept: the next one is looked up and checked anew.
        self._client = httpcore2.AsyncConnectionPool(
            ssl_context=httpcore2.default_ssl_context(),
            max_connections=AT_ONCE,
            max_keepalive_connections=0,
            network_backend=self._network,
        )
        self._thread = ThreadPoolExecutor(1, "webhooks")
        self._under_way: dict[asyncio.Task[None], str] = {}
        self._one_ended = asyncio.Event()

    async def run(self) -> None:
        """Look and send until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._one_ended.clear()
            busy = Counter(self._under_way.values())
            try:
                claimed = await loop.run_in_executor(self._thread, self._claim, busy)
            except Exception as error:  # the next look is to come, whatever was wrong with this one
                expected = isinstance(error, SQLAlchemyError)
                log.warning("cannot look into the outbox: %s", _cause(error), exc_info=not expected)
                claimed = []
            for message in claimed:
                task = asyncio.create_task(self._deliver(message))
                self._under_way[task] = _receiver(message.delivery.url)
                task.add_done_callback(self._end)
            if not claimed:
                # Not `wait_for`, which before Python 3.12 loses a cancellation that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._one_ended.wait()

    async def close(self) -> None:
        """Let what is under way end, for a while; the rest is sent again when its claim runs out."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=GRACE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._client.aclose()
        self._network.close()
        self._thread.shutdown(cancel_futures=True)

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._one_ended.set()

    def _claim(self, busy: Counter[str]) -> list[Message]:
        """Take what is due, as far as there is room; `busy` says what is under way to each receiver."""
        if busy.total() >= AT_ONCE:
            return []
        full = [receiver for receiver, number in busy.items() if number >= AT_ONCE_EACH]
        with self._database.transaction(read_only=True) as session:
            found = webhooks.due(session, full)
        chosen: list[str] = []
        for id, url in found:
            receiver = _receiver(url)
            if busy[receiver] < AT_ONCE_EACH and busy.total() < AT_ONCE:
                busy[receiver] += 1
                chosen.append(id)
        if not chosen:
            return []
        with self._database.transaction() as session:
            return [
                Message(delivery, webhooks.signing(session, delivery.project_id))
                for delivery in webhooks.claim(session, chosen)
            ]

    async def _deliver(self, message: Message) -> None:
        outcome = await self._attempt(message)
        ATTEMPTS.labels(outcome.name).inc()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._record, message.delivery, outcome)
        except SQLAlchemyError as error:
            # It stays claimed, and is sent again.
            log.warning("cannot note what became of %s: %s", message.delivery.id, _cause(error))

    async def _attempt(self, message: Message) -> Outcome:
        try:
            body = _body(message.delivery)
            async with (
                asyncio.timeout(ATTEMPT_SECONDS),
                self._client.stream(
                    "POST",
                    message.delivery.url,
                    headers=list(_headers(message, body).items()),
                    content=body.encode(),
                    extensions={"timeout": {"connect": CONNECT_SECONDS}},
                ) as response,
            ):
                # What the answer says beyond its head is nobody's business here.
                return _judged(response)
        except NotPublic as error:
            return Outcome("not_public", str(error))
        except httpcore2.ConnectTimeout:
            return Outcome("unreachable", f"No connection within {CONNECT_SECONDS:.0f} s.")
        except TimeoutError:
            return Outcome("unreachable", f"No answer within {ATTEMPT_SECONDS:.0f} s.")
        except httpcore2.ConnectError as error:
            return Outcome("unreachable", f"No connection: {_cause(error)}")
        except httpcore2.NetworkError:
            return Outcome("unreachable", "No answer: the connection broke off.")
        except httpcore2.ProtocolError:
            # What did come is not told: it may be something else's than a webhook's.
            return Outcome("unreachable", "No answer: the receiver hung up or does not speak HTTP.")
        except Exception as error:  # a message that cannot be sent at all has to fail some day, too
            log.exception("%s could not be sent", message.delivery.id)
            return Outcome("unreachable", f"Not sent: {type(error).__name__}.")

    def _record(self, delivery: Delivery, outcome: Outcome) -> None:
        with self._database.transaction() as session:
            webhooks.record(
                session,
                delivery.id,
                delivery.claims,
                status=outcome.status,
                error=outcome.error,
                wait=outcome.wait,
                again=outcome.again,
            )


def _receiver(url: str) -> str:
    """The beginning of a URL that says who is called."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"


def _body(delivery: Delivery) -> str:
    timestamp, data = delivery.created_at, delivery.data
    return to_json({"type": delivery.type, "timestamp": timestamp, "data": data}).decode()


def _headers(message: Message, body: str) -> dict[str, str]:
    delivery, moment = message.delivery, datetime.now(UTC)
    signatures = (Webhook(secret).sign(delivery.id, moment, body) for secret in message.secrets)
    return {
        "Host": urlsplit(delivery.url).netloc,
        "Content-Type": "application/json",
        "User-Agent": "Modelyard",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _judged(response: httpcore2.Response) -> Outcome:
    """Only a 2xx is a delivery; a receiver may ask for more time, or for no more messages."""
    status = response.status
    if 200 <= status < 300:
        return Outcome("delivered", status=status)
    error = f"The receiver answered {_named(status)}."
    if 300 <= status < 400:
        error = f"{error} Redirects are not followed; name the address that they lead to."
    wait = _retry_after(response) if status in (429, 503) else 0.0
    return Outcome("rejected", error, status, wait, again=status != HTTPStatus.GONE)


def _named(status: int) -> str:
    with contextlib.suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)


def _retry_after(response: httpcore2.Response) -> float:
    """Seconds that the answer asks to wait, told as a number or as a date; 0 if it does not."""
    headers = {name.lower(): value for name, value in response.headers}
    told = headers.get(b"retry-after", b"").decode("latin-1").strip()
    if told.isascii() and told.isdigit():
        seconds = float(told)
    else:
        try:
            seconds = (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            seconds = 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def _cause(error: BaseException) -> str:
    """What went wrong first, in few words."""
    while (inner := _inside(error)) is not None:
        error = inner
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not valid: {error.verify_message}."
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or 'unknown').replace('_', ' ').lower()}."
    if isinstance(error, OSError) and error.errno:
        return f"{os.strerror(error.errno)}."
    return str(error) or "it broke off."


def _inside(error: BaseException) -> BaseException | None:
    """The exception that this one tells of; SQLAlchemy and httpcore2 have their own ways of keeping it."""
    kept = (error.__cause__, getattr(error, "orig", None), *error.args)
    return next((inner for inner in kept if isinstance(inner, BaseException)), None)
