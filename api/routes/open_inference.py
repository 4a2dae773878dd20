"""The Open Inference Protocol, version 2 (KServe, Triton): the models for clients that know it already."""

import zlib
from typing import Annotated, Any

import pydantic_core
from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from api.auth import Predict, Principal, Train
from api.bodies import LARGE_BYTES, MOST_INPUTS
from api.dependencies import CurrentDatabase, Reading
from api.envelope import refuse
from api.errors import UnsupportedMedia, documented
from api.inference_schemas import (
    IndexEntry,
    InferOut,
    LiveOut,
    ModelMetadataOut,
    ModelReadyOut,
    ReadyOut,
    ServerOut,
    TensorOut,
)
from api.lean import LeanRoute
from api.routes.models import CurrentServing
from api.sent import Ref
from api.serving.engine import Ready, Serving
from api.tensors import LENGTH_HEADER, TensorType, read_request, signature, write_outputs
from store import models, projects
from store.session import Database
from tasks.parts.problems import Invalid, Problem

EXTENSIONS = ["binary_tensor_data", "model_repository"]
MOST_LISTED = 1_000
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""How zlib is told which of the encodings a body has."""

health = APIRouter(prefix="/v2/health", tags=["health"])
router = APIRouter(prefix="/v2", tags=["open inference protocol"])
lean = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=LeanRoute)

Version = Annotated[str, Path(description="A version of the model that `ref` names.")]


# The server


@health.get("/live", summary="Is the server live?")
async def get_live() -> LiveOut:
    """The Open Inference Protocol's way to ask whether the process is alive."""
    return LiveOut(live=True)


@health.get("/ready", summary="Is the server ready?", responses=documented(503))
def get_ready(database: CurrentDatabase) -> ReadyOut:
    """The Open Inference Protocol's way to ask whether the database answers; 503 while it does not."""
    with database.transaction(read_only=True) as session:
        projects.page(session, 1)
    return ReadyOut(ready=True)


@router.get("", summary="Show what the server offers")
async def get_server(request: Request, principal: Predict) -> ServerOut:
    """The protocol's extensions that are served."""
    return ServerOut(name="modelyard", version=request.app.version, extensions=EXTENSIONS)


# Predictions

_INFER: dict[str, Any] = {
    "response_model": InferOut,
    "response_model_exclude_none": True,
    "responses": {
        200: {
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            }
        },
        **documented(404, 409, 413, 415, 503),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferIn"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}


@lean.post("/models/{ref}/infer", summary="Predict for tensors", **_INFER)
async def infer(ref: Ref, principal: Predict, request: Request) -> Response:
    """Predictions of a model for up to 1,000 examples, given as tensors, in JSON or in binary.

    `Inference-Header-Content-Length` says how many bytes of the body are JSON when the data of tensors
    follow it, and does so in the answer; at 0 the body is the only input of one example. The body may
    be compressed (gzip, deflate). Errors are problem documents with a field `error`.
    """
    return await _infer(principal, ref, request)


@lean.post(
    "/models/{ref}/versions/{version}/infer", summary="Predict for tensors with a version", **_INFER
)
async def infer_with_version(
    ref: Ref, version: Version, principal: Predict, request: Request
) -> Response:
    """As without a version, with that one."""
    return await _infer(principal, f"{ref}@{version}", request)


async def _infer(principal: Principal, ref: str, request: Request) -> Response:
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, ref)
    kinds = signature(model.served.trained)
    body, header = await _body(request), request.headers.get(LENGTH_HEADER)
    large = len(body) >= LARGE_BYTES
    if large:
        asked = await run_in_threadpool(read_request, kinds, body, header, MOST_INPUTS)
    else:
        asked = read_request(kinds, body, header, MOST_INPUTS)
    are_files = any(kind.type is bytes for kind in kinds.inputs.values())
    predictions = await serving.predict(model, asked.examples, large=large or are_files)
    outputs, data = write_outputs(predictions, asked.outputs)
    name, version = _parts(model)
    answer = InferOut(model_name=name, model_version=version, id=asked.id, outputs=outputs)
    text = pydantic_core.to_json(
        answer, exclude_none=True, inf_nan_mode="null", bytes_mode="base64"
    )
    if not any(in_binary for _, in_binary in asked.outputs):
        return Response(text, media_type="application/json")
    headers = {LENGTH_HEADER: str(len(text))}
    return Response(text + data, headers=headers, media_type="application/octet-stream")


def _parts(model: Ready) -> tuple[str, str | None]:
    """The exact name of a model and its version; a checkpoint has none."""
    name, _, version = model.ref.partition("@")
    return name, version or None


async def _body(request: Request) -> bytes:
    """The body as it was before its sender compressed it.

    Raises UnsupportedMedia, Invalid, and HTTPException 413 when it is larger than bodies may be.
    """
    body = await request.body()
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in _WINDOWS:
        allowed = ", ".join(_WINDOWS)
        raise UnsupportedMedia(f"The body is encoded as {encoding!r}; {allowed} are read here.")
    limit: int = request.app.state.settings.body_bytes
    return await run_in_threadpool(_decompress, body, encoding, limit)


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    stream = zlib.decompressobj(_WINDOWS[encoding])
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise _not(encoding, str(error)) from None
    refuse(len(found), limit)
    if not stream.eof or stream.unused_data:
        raise _not(encoding, "it does not end with its stream")
    return found


def _not(encoding: str, why: str) -> Invalid:
    return Invalid(Problem(("body",), f"not {encoding}: {why}"))


# Models


@router.get("/models/{ref}", summary="Show a model's tensors", responses=documented(404, 409))
async def get_model_metadata(
    ref: Ref, principal: Predict, serving: CurrentServing, database: CurrentDatabase
) -> ModelMetadataOut:
    """The names, datatypes and shapes of inputs and outputs. Loads the model if need be."""
    return await _metadata(principal, ref, serving, database)


@router.get(
    "/models/{ref}/versions/{version}",
    summary="Show a version's tensors",
    responses=documented(404, 409),
)
async def get_model_version_metadata(
    ref: Ref,
    version: Version,
    principal: Predict,
    serving: CurrentServing,
    database: CurrentDatabase,
) -> ModelMetadataOut:
    """As without a version, of that one."""
    return await _metadata(principal, f"{ref}@{version}", serving, database)


async def _metadata(
    principal: Principal, ref: str, serving: Serving, database: Database
) -> ModelMetadataOut:
    model = await serving.find(principal.project_id, ref)
    kinds = signature(model.served.trained)
    name, version = _parts(model)
    numbers = (
        await run_in_threadpool(_versions, database, principal.project_id, name) if version else []
    )
    return ModelMetadataOut(
        name=name,
        versions=numbers,
        platform="pytorch",
        inputs=[_shown(kind) for kind in kinds.inputs.values()],
        outputs=[_shown(kind) for kind in kinds.outputs.values()],
    )


def _versions(database: Database, project_id: str, name: str) -> list[str]:
    with database.transaction(read_only=True) as session:
        return [str(row.version) for row in models.versions(session, project_id, name)]


def _shown(kind: TensorType) -> TensorOut:
    parameters = {} if kind.labels is None else {"labels": kind.labels}
    return TensorOut(
        name=kind.name, datatype=kind.datatype, shape=kind.shape(-1), parameters=parameters
    )


@router.get("/models/{ref}/ready", summary="Is a model ready?", responses=documented(404, 409))
async def get_model_ready(ref: Ref, principal: Predict, serving: CurrentServing) -> ModelReadyOut:
    """Whether the model's next request is answered, be it in memory by then or loaded first."""
    return await _ready(principal, ref, serving)


@router.get(
    "/models/{ref}/versions/{version}/ready",
    summary="Is a version ready?",
    responses=documented(404, 409),
)
async def get_model_version_ready(
    ref: Ref, version: Version, principal: Predict, serving: CurrentServing
) -> ModelReadyOut:
    """As without a version, of that one."""
    return await _ready(principal, f"{ref}@{version}", serving)


async def _ready(principal: Principal, ref: str, serving: Serving) -> ModelReadyOut:
    found = await serving.resolve(principal.project_id, ref)
    return ModelReadyOut(name=found.ref, ready=True)


# The repository


@router.post("/repository/index", summary="List the models that are ready")
def list_repository(
    session: Reading, principal: Predict, serving: CurrentServing
) -> list[IndexEntry]:
    """The newest version of each model, the newest 1,000 models first. A body is of no effect."""
    return [
        IndexEntry(
            name=name,
            version=str(row.version),
            state="READY",
            reason="in memory" if row.checkpoint_id in serving.residents else "loaded when asked",
        )
        for name, row in models.newest(session, principal.project_id, MOST_LISTED)
    ]


@router.post(
    "/repository/models/{ref}/load", summary="Load a model", responses=documented(404, 409)
)
async def load_model(ref: Ref, principal: Predict, serving: CurrentServing) -> None:
    """Has the model in the memory of the process that answers. A body is of no effect.

    Nobody needs to: a request loads the model that it asks.
    """
    await serving.find(principal.project_id, ref)


@router.post(
    "/repository/models/{ref}/unload", summary="Unload a model", responses=documented(404, 409)
)
async def unload_model(ref: Ref, principal: Train, serving: CurrentServing) -> None:
    """Frees the model's memory in the process that answers. A body is of no effect.

    The model stays ready: the next request loads it again.
    """
    found = await serving.resolve(principal.project_id, ref)
    await serving.forget([found.checkpoint.id])
