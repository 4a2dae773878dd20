"""A service of its own for a benchmark, in a temporary folder, on a free port."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cli.client import Client, ready
from cli.processes import GRACE_SECONDS, free_port


@contextmanager
def service() -> Iterator[Client]:
    """API and worker on the embedded default; ends, with all it stored, at the end."""
    key = f"my_{secrets.token_urlsafe(32)}"
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder:
        port = free_port()
        command = [sys.executable, "-m", "cli.main", "up", "--data", folder, "--port", str(port)]
        process = subprocess.Popen(command, env={**os.environ, "MODELYARD_ADMIN_KEY": key})
        try:
            url = f"http://127.0.0.1:{port}"
            if not ready(url, lambda: process.poll() is None):
                raise RuntimeError("the service did not start; what it said is above")
            client = Client(url, key, timeout=3_600)
            stack.callback(client.close)
            yield client
        finally:
            process.terminate()
            process.wait(GRACE_SECONDS + 10)
