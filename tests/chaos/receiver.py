"""Somebody who is told by webhook how the jobs are, and is always there."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread


class Receiver:
    """What was heard so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.heard: defaultdict[str, set[int]] = defaultdict(set)
        """{job: the numbers of its events}"""
        self.messages = 0
        self._lock = Lock()

    def hear(self, body: bytes) -> None:
        data = json.loads(body)["data"]
        with self._lock:
            self.messages += 1
            self.heard[data["id"]].add(data["seq"])

    @property
    def repeated(self) -> int:
        """How many messages came again."""
        with self._lock:
            return self.messages - sum(map(len, self.heard.values()))


@contextmanager
def receiver() -> Iterator[Receiver]:
    """On a free port of this machine."""

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.hear(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        found = Receiver(f"http://127.0.0.1:{server.server_port}/jobs")
        Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()
