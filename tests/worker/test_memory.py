"""A training takes no more memory for a set that is larger than what it may have."""

import os
import subprocess
import sys
from zipfile import ZipFile

import numpy as np
from PIL import Image

from store.tables import Job
from tasks.base import Upload
from tests.worker.shop import Shop

SIDE, FEW, MANY = 400, 40, 520
PICTURE_BYTES = SIDE * SIDE * 3
ROOM = 88 << 20
"""What the second job may take beyond what the first one left; gaps in the heap take 44 to 75 MiB of it."""

TRAINER = """
import re, resource, sys
from pathlib import Path

import tasks.parts.examples
import tasks.parts.pictures
from store.session import connect
from tests.worker.shop import Orders
from worker import jobs
from worker.settings import WorkerSettings
from worker.trainer import Assignment

url, folder, room, *given = sys.argv[1:]
tasks.parts.examples.PIECE_BYTES = 4 << 20
tasks.parts.pictures.SAMPLE_PIXELS = 1 << 18
settings = WorkerSettings(database_url=url, data_dir=folder, devices="cpu", threads=1, _env_file=None)
for place, job in enumerate(given):
    if place:
        data = re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())
        limit = (int(data[1]) << 10) + int(room)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    jobs.run(Assignment(job, 1, "cpu", 1), settings, Orders())
"""


def noise(shop: Shop, name: str, count: int) -> Job:
    """A claimed training on that many images that cannot be compressed.

    It takes as many steps whatever their number, since the first few leave gaps in the heap.
    """
    draw = np.random.default_rng(0)
    with ZipFile(path := shop.folder / f"{name}.zip", "w") as archive:
        for place in range(count):
            pixels = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            with archive.open(f"{'ab'[place % 2]}/{place}.bmp", "w") as file:
                Image.fromarray(pixels).save(file, "bmp")
    dataset = shop.store("image-classification", {"file": Upload(path, path.name)}, name)
    small = {"name": "cnn", "channels": [4]}
    return shop.claimed(shop.submit(dataset, small, {"epochs": MANY // count, "batch_size": 8}))


def test_a_training_on_more_images_than_it_may_hold_takes_no_more_memory(small_shop: Shop) -> None:
    assert MANY * 0.6 * PICTURE_BYTES > 1.5 * ROOM, "the train split does not fit"
    claimed = [noise(small_shop, name, count) for name, count in (("few", FEW), ("many", MANY))]
    settings = small_shop.settings
    arguments = [settings.database_url, str(settings.data_dir), str(ROOM)]
    command = [sys.executable, "-c", TRAINER, *map(str, arguments), *(job.id for job in claimed)]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "POLARS_MAX_THREADS": "2"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    statuses = [small_shop.job(job).status for job in claimed]
    assert statuses == ["succeeded"] * 2, (ended, [small_shop.job(job).error for job in claimed])
