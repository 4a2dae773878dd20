"""The page at /docs: every route to read and to try, with no file from the internet."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema

from api.embedding_schemas import FeaturesIn, SimilarityIn
from api.errors import ErrorOut, documented
from api.inference_schemas import InferIn
from api.openai_schemas import CompletionIn, EmbeddingIn

DESCRIPTION = """
Train PyTorch models over HTTP, and predict with them the moment they are trained.
This page is the dashboard: everything below can be tried right here.

1. **Authorize** with your API key, by the button on the right. The first start of the service prints an
   admin key and keeps it in the file `admin.key` of its data directory; **admin** makes more of them.
2. **Choose** what to learn: `GET /v1/tasks` lists every task, `GET /v1/tasks/{name}` its upload formats,
   options, architectures and hyperparameters, and a job to edit.
3. **Upload** data: `POST /v1/datasets` with the task's name and a file. The answer says how it was split
   and what the check found; data that cannot be used gets a `422` that names row and column.
4. **Submit** a job: `POST /v1/jobs` with `{"dataset": "ds_..."}`. Whatever you leave out is chosen for the
   data, and `resolved` shows what was chosen.
5. **Watch** it: `GET /v1/jobs/{job_id}` for status and progress, `.../metrics` for the curves,
   `.../events` for a live stream. `cancel`, `stop`, `pause`, `resume`, `retry`, `clone` and `extend` do
   what they say.
6. **Predict**: `POST /v1/models/{ref}/predict` with the model's name. Point an alias such as `production`
   at the version you trust.
7. **Fine-tune**: name any model as the `base` of the next job.

Errors are problem documents (RFC 9457, `application/problem+json`); `errors` says where, what was found and
what is allowed. Lists come in pages: give `next` as `after` to get the following one.
"""

TAGS = [
    {"name": "catalog", "description": "What can be learned, and what learns it."},
    {"name": "datasets", "description": "Upload data; it is checked, split and kept."},
    {"name": "jobs", "description": "Train: submit, watch, steer."},
    {"name": "sweeps", "description": "Search for the best hyperparameters by many trainings."},
    {"name": "models", "description": "Predict with what was trained; versions and aliases."},
    {
        "name": "hugging face",
        "description": "Predict with `huggingface_hub.InferenceClient(model=URL, token=KEY)`.",
    },
    {
        "name": "openai",
        "description": "Write texts with `openai.OpenAI(base_url=URL + '/openai/v1', api_key=KEY)`.",
    },
    {
        "name": "open inference protocol",
        "description": "Predict with clients of the Open Inference Protocol, version 2, such as "
        "`tritonclient`.",
    },
    {
        "name": "webhooks",
        "description": "Hear of jobs: signed messages (Standard Webhooks) and what became of them.",
    },
    {"name": "admin", "description": "Workers, queues, keys, projects and storage."},
    {"name": "health", "description": "For load balancers and Prometheus."},
]

_FILES = Path(fastapi_offline.__file__).parent / "static"
_PARAMETERS: dict[str, Any] = {
    "persistAuthorization": True,
    "tryItOutEnabled": True,
    "filter": True,
    "displayRequestDuration": True,
    "defaultModelsExpandDepth": -1,
    "docExpansion": "list",
}


class Documented(FastAPI):
    """An application whose OpenAPI document tells what any body or any writing may meet, and how."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        template = "#/components/schemas/{model}"
        _, by_hand = models_json_schema(
            [
                (ErrorOut, "serialization"),
                (InferIn, "validation"),
                (CompletionIn, "validation"),
                (EmbeddingIn, "validation"),
                (FeaturesIn, "validation"),
                (SimilarityIn, "validation"),
            ],
            ref_template=template,
        )
        document["components"]["schemas"] |= by_hand["$defs"]
        for path in document["paths"].values():
            for method, operation in path.items():
                of_bodies = (400, 413) if "requestBody" in operation else ()
                of_writing = (507,) if method != "get" else ()
                shared = documented(*of_bodies, *of_writing).items()
                told = operation["responses"] | {str(status): what for status, what in shared}
                operation["responses"] = dict(sorted(told.items()))
        return document


def add_docs(app: FastAPI) -> None:
    """Serve the page and its files."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url="docs/files/swagger-ui-bundle.js",
        swagger_css_url="docs/files/swagger-ui.css",
        swagger_favicon_url="docs/files/favicon.png",
        swagger_ui_parameters=_PARAMETERS,
    ).body
    headers = {"Content-Security-Policy": _policy(bytes(page).decode())}
    app.mount("/docs/files", StaticFiles(directory=_FILES), name="docs-files")

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/", include_in_schema=False)
    async def show_start() -> RedirectResponse:
        return RedirectResponse("docs")


def _policy(page: str) -> str:
    """Nothing from elsewhere, and no script in the page but its own."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in scripts)
    allowed = " ".join(f"'sha256-{digest.decode()}'" for digest in hashes)
    return (
        "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
        f"style-src 'self' 'unsafe-inline'; script-src 'self' {allowed}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
