"""Bare Celery in `bench.starts`: what `celery -A bench._celery worker` loads before it forks."""

import os

from celery import Celery

from bench._small_job import train

app = Celery("bench", broker=os.environ["BENCH_REDIS"])
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=1)
app.task(name="train")(train)
