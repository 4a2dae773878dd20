"""A small client of the HTTP API: what the demonstration and the benchmarks call the service with."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2

ENDED = {"succeeded", "failed", "cancelled"}
Answer = dict[str, Any]


class Refused(RuntimeError):
    """The service answered with a problem document."""


class Client:
    """One service, one key. Every method is one request and raises Refused when it is not answered 2xx."""

    def __init__(self, url: str, key: str, timeout: float = 600) -> None:
        self.http = httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout
        )

    def close(self) -> None:
        self.http.close()

    def upload(self, task: str, name: str, files: Mapping[str, Path], **options: Any) -> Answer:
        """Upload a data set: `file`, or `train` [+ `validation`] [+ `test`]."""
        opened = {part: (path.name, path.open("rb")) for part, path in files.items()}
        try:
            data = {"task": task, "name": name, "options": json.dumps(options)}
            return self.call("POST", "/v1/datasets", data=data, files=opened)
        finally:
            for _, file in opened.values():
                file.close()

    def submit(self, dataset: str, **request: Any) -> Answer:
        """Submit a job; whatever is left out is chosen by the service."""
        return self.call("POST", "/v1/jobs", json={"dataset": dataset, **request})

    def job(self, job_id: str) -> Answer:
        return self.call("GET", f"/v1/jobs/{job_id}")

    def sweep(self, dataset: str, **request: Any) -> Answer:
        """Search a `space`, or `compare`, by many jobs; the rest of the request is what they have in common."""
        return self.call("POST", "/v1/sweeps", json={"dataset": dataset, **request})

    def sweep_of(self, sweep_id: str) -> Answer:
        return self.call("GET", f"/v1/sweeps/{sweep_id}")

    def curves(self, job_id: str, points: int = 200) -> dict[str, Any]:
        found = self.call("GET", f"/v1/jobs/{job_id}/metrics", params={"points": points})
        curves: dict[str, Any] = found["curves"]
        return curves

    def predict(self, model: str, inputs: list[Any]) -> list[Answer]:
        answer = self.call("POST", f"/v1/models/{model}/predict", json={"inputs": inputs})
        predictions: list[Answer] = answer["predictions"]
        return predictions

    def predict_image(self, model: str, image: bytes, content_type: str = "image/png") -> Answer:
        answer = self.call(
            "POST",
            f"/v1/models/{model}/predict",
            content=image,
            headers={"Content-Type": content_type},
        )
        prediction: Answer = answer["predictions"][0]
        return prediction

    def evaluate(self, model: str, dataset: str, split: str = "test") -> Answer:
        body = {"dataset": dataset, "split": split}
        return self.call("POST", f"/v1/models/{model}/evaluate", json=body)

    def advise(self, dataset: str, **request: Any) -> Answer:
        """Ask which models are bases for a data set; the answer is the result of a job."""
        return self.call("POST", f"/v1/datasets/{dataset}/advice", json=request)

    def watch(self, job_id: str, interval: float = 0.5) -> Iterator[Answer]:
        """The job again and again until it has ended."""
        while True:
            job = self.job(job_id)
            yield job
            if job["status"] in ENDED:
                return
            time.sleep(interval)

    def wait(self, job_id: str) -> Answer:
        """The job once it has ended. Raises Refused when it did not succeed."""
        *_, job = self.watch(job_id)
        if job["status"] != "succeeded":
            raise Refused(f"job {job_id} {job['status']}: {job['error']}")
        return job

    def call(self, method: str, path: str, **request: Any) -> Answer:
        response = self.http.request(method, path, **request)
        if response.is_success:
            answer: Answer = response.json()
            return answer
        raise Refused(f"{method} {path}: {response.status_code} {response.text}")


def ready(url: str, alive: Callable[[], bool], seconds: float = 120) -> bool:
    """Wait until the service takes jobs, as long as its process is alive."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and alive():
        try:
            if httpx2.get(f"{url}/readyz", timeout=2).status_code == 200:
                return True
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    return False
