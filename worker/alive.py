"""Whether this host's worker lives, for a container's health check: `python -m worker.alive`."""

import socket
import sys

from store import workers
from store.session import connect
from worker.settings import read_settings


def main() -> int:
    """0 when a worker of this host gave a sign of life lately."""
    with connect(read_settings().database).transaction(read_only=True) as session:
        alive = workers.all(session, workers.SEEN_WITHIN_SECONDS)
    return 0 if any(worker.host == socket.gethostname() for worker in alive) else 1


if __name__ == "__main__":
    sys.exit(main())
