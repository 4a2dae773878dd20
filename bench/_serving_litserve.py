"""The serving benchmark's model under LitServe, whose worker processes import it by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]

from bench._serving_contestants import BATCH_SIZE, WAIT_SECONDS, Model


class Api(litserve.LitAPI):  # type: ignore[misc]
    """How LitServe calls a model, step by step."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(max_batch_size=BATCH_SIZE, batch_timeout=WAIT_SECONDS)
        self.folder, self.threads = folder, threads

    def setup(self, device: Any) -> None:
        self.model = Model(self.folder, self.threads)

    # LitServe reads annotations of these two as the types of the bodies, and the default is JSON.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return self.model.read_json(request["inputs"][0])

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return {"predictions": [output]}

    def batch(self, inputs: Sequence[Any]) -> Any:
        return self.model.batch(inputs)

    def predict(self, batch: Any) -> list[dict[str, Any]]:
        return self.model.predict(batch)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output


def serve(folder: Path, port: int, threads: int) -> None:
    """Serve until a signal, with one worker."""
    api = Api(folder, threads)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    quiet: dict[str, Any] = {"log_level": "warning", "generate_client_file": False}
    server.run(host="127.0.0.1", port=port, num_api_servers=1, **quiet)
