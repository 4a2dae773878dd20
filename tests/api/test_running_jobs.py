"""A job answers with its best checkpoint while it trains."""

import time
from pathlib import Path
from threading import Thread
from typing import Any

from fastapi.testclient import TestClient

from api.app import create_app
from api.settings import ApiSettings
from store.session import Database
from tests.api.service import ADMIN_KEY, errors_of
from tests.toys import toy
from tests.worker.shop import Orders, Shop
from worker.trainer import Command

STEADY = {"epochs": 25, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.003}}
"""Nearly every epoch is the best one so far."""
INPUTS = {"inputs": [{"size": 60, "place": "town"}]}


class Slow(Orders):
    """Has a training take its time."""

    def look(self) -> Command | None:
        time.sleep(0.005)
        return super().look()


def test_a_running_job_answers_with_the_best_it_has(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    shop = Shop(database, database_url, tmp_path)
    dataset = shop.store("tabular-regression", toy("tabular-regression", tmp_path))
    job = shop.claimed(shop.submit(dataset, {"name": "mlp", "layers": 1, "width": 8}, STEADY))
    often = {"checkpoint_seconds": 0.0, "checkpoint_share": 1.0}
    training = Thread(target=shop.work, args=(job, Slow()), kwargs=often)
    settings = ApiSettings(database_url=database_url, data_dir=tmp_path, admin_key=ADMIN_KEY)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
        ask = lambda: client.post(f"/v1/models/{job.id}/predict", json=INPUTS)  # noqa: E731
        errors_of(ask(), 409)
        training.start()
        seen: dict[str, Any] = {}
        while training.is_alive():
            answer = ask()
            assert answer.status_code in ((200,) if seen else (200, 409)), answer.text
            if answer.status_code == 200:
                seen[answer.json()["model"]] = answer.json()["predictions"]
            time.sleep(0.02)
        training.join()
        time.sleep(1.0)
        last = ask().json()
    steps = [int(ref.removeprefix(f"{job.id}@")) for ref in seen]
    assert len(steps) >= 3, "the training is too short to be followed"
    assert steps == sorted(steps)
    assert shop.job(job).status == "succeeded", shop.job(job).error
    assert last["model"] == f"{job.id}@{shop.best(job).step}"
    assert last["predictions"] != seen[next(iter(seen))]
