"""Who serves a model of the serving benchmark: `python -m bench._serving_contestants NAME FOLDER PORT THREADS`.

Each loads the exported model in `FOLDER` and prepares inputs by hand in the fewest steps, since what people
write has no codec. All that may be set for speed is set as its documentation says; nobody writes access logs.
"""

import base64
import io
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from bench._exported import load

BATCH_SIZE = 64
WAIT_SECONDS = 0.002
"""What batching peers wait for more inputs, the best of a few values for them."""


class Model:
    """A trained classifier of numbers or of images, and how its inputs and answers are made by hand."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        trained = load(folder)
        self.network, codec = trained.learner, cast(Any, trained.codec)
        self.labels, self.side = codec.labels, getattr(codec, "side", 0)
        self.reads_images, self.columns = bool(self.side), []
        if not self.reads_images:
            assert not codec.categories, "its table has numbers alone"
            assert not codec.indicators, "its table has no missing values"
            self.columns = [number.column for number in codec.numbers]
            self.curves = [(np.array(n.knots), np.array(n.heights)) for n in codec.numbers]
        for size in (1, 2, BATCH_SIZE):
            self.predict(self.batch([self.blank()] * size))

    def read(self, value: Any) -> Any:
        """One input as its numbers: of a row by name, or of the bytes of an image."""
        if self.reads_images:
            pixels = np.array(Image.open(io.BytesIO(value)).convert("RGB"))
            return torch.from_numpy(pixels).permute(2, 0, 1)
        return [value[name] for name in self.columns]

    def read_json(self, value: Any) -> Any:
        """One input of a JSON body, where an image is base64."""
        return self.read(base64.b64decode(value["image"]) if self.reads_images else value)

    def batch(self, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """Inputs that were read, as the network takes them."""
        if self.reads_images:
            return (torch.stack(list(inputs)),)
        values = np.array(inputs).T
        rows = [np.interp(row, *curve) for row, curve in zip(values, self.curves, strict=True)]
        numbers = torch.from_numpy(np.array(rows, dtype=np.float32).T)
        return numbers, torch.zeros(len(numbers), 0, dtype=torch.int64)

    @torch.inference_mode()
    def predict(self, batch: tuple[torch.Tensor, ...]) -> list[dict[str, Any]]:
        """A prediction for each input of a batch."""
        labels, found = self.labels, self.network(*batch).double().softmax(-1).tolist()
        return [
            {"label": labels[row.index(max(row))], "scores": dict(zip(labels, row, strict=True))}
            for row in found
        ]

    def answer(self, value: Any) -> list[dict[str, Any]]:
        """The prediction for one input alone."""
        return self.predict(self.batch([self.read(value)]))

    def blank(self) -> Any:
        """An input that was read, of zeros."""
        if not self.reads_images:
            return [0.0] * len(self.columns)
        return torch.zeros(3, self.side, self.side, dtype=torch.uint8)


def echo(model: Model, port: int) -> None:
    """A bare ASGI application that reads the body and gives the same answer to all."""
    found = model.predict(model.batch([model.blank()]))
    body = json.dumps({"model": "echo@1", "predictions": found}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]

    async def app(
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    _uvicorn(app, port)


def fastapi(model: Model, port: int) -> None:
    """What people write: the model in the `async def` handler."""
    _fastapi(model, port, in_threads=False)


def fastapi_threads(model: Model, port: int) -> None:
    """What people write otherwise: the model in a `def` handler, which runs in a thread."""
    _fastapi(model, port, in_threads=True)


def _fastapi(model: Model, port: int, *, in_threads: bool) -> None:
    from fastapi import Depends, FastAPI, Request
    from pydantic import BaseModel, create_model

    class Prediction(BaseModel):
        label: str
        scores: dict[str, float]

    class Answer(BaseModel):
        model: str
        predictions: list[Prediction]

    numbers: Any = dict.fromkeys(model.columns, float)
    row: Any = create_model("Row", **numbers)
    rows: Any = create_model("Rows", inputs=list[row])

    def answer(found: list[dict[str, Any]]) -> Answer:
        return Answer(model="fastapi@1", predictions=[Prediction(**one) for one in found])

    def of_row(sent: Any) -> Answer:
        read = [[getattr(row, name) for name in model.columns] for row in sent.inputs]
        return answer(model.predict(model.batch(read)))

    async def body(request: Request) -> bytes:
        return await request.body()

    def by_row_in_thread(sent: rows) -> Answer:
        return of_row(sent)

    async def by_row(sent: rows) -> Answer:
        return of_row(sent)

    def by_image_in_thread(image: Annotated[bytes, Depends(body)]) -> Answer:
        return answer(model.answer(image))

    async def by_image(image: Annotated[bytes, Depends(body)]) -> Answer:
        return answer(model.answer(image))

    app, handlers = FastAPI(), (by_row, by_row_in_thread)
    if model.reads_images:
        handlers = by_image, by_image_in_thread  # type: ignore[assignment]
    app.post("/predict")(handlers[in_threads])
    _uvicorn(app, port)


def _uvicorn(app: Any, port: int) -> None:
    import uvicorn

    options: dict[str, Any] = {"loop": "uvloop", "http": "httptools", "access_log": False}
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", **options)


def litserve(model: Model, port: int) -> None:
    """LitServe with its batching, one worker."""
    del model  # the worker has its own
    from bench._serving_litserve import serve

    serve(Path(sys.argv[2]), port, int(sys.argv[4]))


def bentoml(model: Model, port: int) -> None:
    """BentoML with its adaptive batching, one worker; its server wants a module to import."""
    del model  # the worker has its own
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True", "BENCH_FOLDER": sys.argv[2]}
    os.environ["BENCH_THREADS"] = sys.argv[4]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    service = "bench._serving_bentoml:Predictor"
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *where])


def ray(model: Model, port: int) -> None:
    """Ray Serve with `serve.batch`, one replica."""
    del model  # the replica has its own
    import ray  # type: ignore[import-not-found]
    from ray import serve

    folder, threads = Path(sys.argv[2]), int(sys.argv[4])

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
    class Predictor:
        bind: Any

        def __init__(self) -> None:
            self.model = Model(folder, threads)

        @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=WAIT_SECONDS)  # type: ignore[untyped-decorator]
        async def infer(self, inputs: Any) -> Any:
            return self.model.predict(self.model.batch(inputs))

        async def __call__(self, request: Any) -> Any:
            body = await request.body()
            if self.model.reads_images:
                value = self.model.read(body)
            else:
                value = self.model.read(json.loads(body)["inputs"][0])
            return {"predictions": [await self.infer(value)]}

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
    )
    http = {"host": "127.0.0.1", "port": port, "access_log": False}
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(http_options=http, logging_config=quiet)
    serve.run(Predictor.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


class Contestant(NamedTuple):
    """A server of `/predict`, and what it takes to have it."""

    serve: Callable[[Model, int], None]
    package: str = "torch"
    """Without it there is no such contestant."""
    json_only: bool = False
    """Whether it reads no raw images, but base64."""
    is_peer: bool = False
    """Whether people run it as a service of predictions."""


CONTESTANTS = {
    "echo": Contestant(echo),
    "fastapi": Contestant(fastapi),
    "fastapi in threads": Contestant(fastapi_threads),
    "litserve": Contestant(litserve, "litserve", json_only=True, is_peer=True),
    "bentoml": Contestant(bentoml, "bentoml", json_only=True, is_peer=True),
    "ray serve": Contestant(ray, "ray", is_peer=True),
}


def main() -> None:
    name, folder, port, threads = sys.argv[1:]
    CONTESTANTS[name].serve(Model(Path(folder), int(threads)), int(port))


if __name__ == "__main__":
    main()
