"""RQ in `bench.starts`, for an interpreter that has it and torch: `python -m bench._rq worker|sender`.

The sender reads names of jobs from its input, and says for each when it began to send it.
"""

import os
import sys
import time

from redis import Redis
from rq import Queue, Worker  # type: ignore[import-not-found]

from bench._small_job import train


def main(part: str) -> None:
    queue = Queue("bench", connection=Redis.from_url(os.environ["BENCH_REDIS"]))
    if part == "worker":
        # Torch is loaded by now, and each job is done by a fork of this process.
        Worker([queue], connection=queue.connection).work(logging_level="ERROR")
        return
    for line in sys.stdin:
        began = time.time()
        queue.enqueue(train, line.strip(), result_ttl=0)
        print(began, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
