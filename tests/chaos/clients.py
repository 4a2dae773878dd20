"""A client as one should be: a request that is not answered is sent again, and to another API."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx2

PAUSE_SECONDS = 0.3
"""Between two tries, once every API had its turn."""


class Unanswered(RuntimeError):
    """No try of a request was answered; says what became of each."""


class Client:
    """Sends a request to one API after the other until one answers it with anything but a 5xx.

    Threads may share it.
    """

    def __init__(self, urls: Sequence[str], key: str, tries: int, timeout: float) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._apis = [httpx2.Client(base_url=url, headers=headers, timeout=timeout) for url in urls]
        self._tries, self._turn, self._lock = tries, itertools.count(), threading.Lock()
        self.outcomes: Counter[str] = Counter()
        """How many tries ended in which status or error; a 500 says more, since none is expected."""
        self.repeated = 0
        """How many tries were not the first of their request."""

    def close(self) -> None:
        for api in self._apis:
            api.close()

    def call(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """The answer to a request. Raises Unanswered."""
        first, told = next(self._turn), []
        for number in range(self._tries):
            if number >= len(self._apis):
                time.sleep(PAUSE_SECONDS)
            api = self._apis[(first + number) % len(self._apis)]
            try:
                response = api.request(method, path, **request)
            except httpx2.TransportError as error:
                told.append(type(error).__name__)
            else:
                told.append(_shown(response))
                if response.status_code < 500:
                    self._count(told)
                    return response
        self._count(told)
        raise Unanswered(f"{method} {path}: {', '.join(told)}")

    def make(self, path: str, key: str, **request: Any) -> httpx2.Response:
        """The answer to a request that makes something, once. Raises Unanswered."""
        return self.call("POST", path, headers={"Idempotency-Key": key}, **request)

    def read(self, path: str, **parameters: Any) -> Any:
        """What is there. Raises Unanswered, and HTTPStatusError for a 4xx."""
        return self.call("GET", path, params=parameters).raise_for_status().json()

    def _count(self, told: list[str]) -> None:
        with self._lock:
            self.outcomes.update(told)
            self.repeated += len(told) - 1


def _shown(response: httpx2.Response) -> str:
    if response.status_code != 500:
        return str(response.status_code)
    return f"500 to {response.request.method} {response.request.url.path}: {response.text[:300]}"
