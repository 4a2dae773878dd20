"""Models: their versions, aliases and weights, and their evaluation on data sets."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Path, Request, Response
from sqlalchemy.orm import Session

from api.auth import Predict, Train
from api.dependencies import CurrentDatabase, CurrentSettings, Reading, Writing
from api.downloads import download
from api.errors import documented
from api.job_schemas import JobOut
from api.model_schemas import (
    AliasIn,
    AliasOut,
    Evaluation,
    ModelDetail,
    ModelOut,
    model_in_detail,
    model_out,
)
from api.new_job import NewJob
from api.schemas import After, Limit, PageOut, page_out
from api.sent import Ref
from api.serving import references
from api.serving.engine import Serving
from api.submitting import chosen_queue, chosen_split, chosen_webhook
from store import blobs, jobs, models
from store.tables import Job

router = APIRouter(prefix="/v1/models", tags=["models"])

Name = Annotated[str, Path(description="The model's name.")]
Alias = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="A name that points at a version, such as `production`.",
    ),
]


def serving(request: Request) -> Serving:
    """The models in memory."""
    found: Serving = request.app.state.serving
    return found


CurrentServing = Annotated[Serving, Depends(serving)]


@router.get("", response_model=PageOut[ModelOut], summary="List models")
def list_models(
    session: Reading, principal: Predict, limit: Limit = 20, after: After = None
) -> dict[str, Any]:
    """The project's models, newest first."""
    page = models.page(session, principal.project_id, limit, after)
    return page_out(page, lambda model: model_out(session, model))


@router.get("/{ref}", summary="Show a model", responses=documented(404, 409))
def get_model(ref: Ref, database: CurrentDatabase, principal: Predict) -> ModelDetail:
    """What a reference means: task, architecture, metrics, and how to ask for predictions."""
    with database.transaction(read_only=True) as session:
        found = references.find(session, principal.project_id, ref)
    codec = json.loads(b"".join(blobs.read(database, found.checkpoint.codec_blob)))
    with database.transaction(read_only=True) as session:
        size = blobs.size(session, found.checkpoint.weights_blob)
        return model_in_detail(session, principal.project_id, found, codec, size)


@router.put(
    "/{name}/aliases/{alias}", summary="Point an alias at a version", responses=documented(404, 409)
)
def set_model_alias(
    name: Name,
    alias: Alias,
    body: AliasIn,
    session: Writing,
    principal: Train,
    later: BackgroundTasks,
    serving: CurrentServing,
) -> AliasOut:
    """Point an alias at a version; `name@alias` means it from the next second on, or once it is loaded."""
    models.set_alias(session, principal.project_id, name, alias, body.version)
    later.add_task(serving.renew, principal.project_id, f"{name}@{alias}")
    return AliasOut(alias=alias, version=body.version, ref=f"{name}@{alias}")


@router.delete(
    "/{name}/aliases/{alias}", status_code=204, summary="Delete an alias", responses=documented(404)
)
def delete_model_alias(
    name: Name,
    alias: Alias,
    session: Writing,
    principal: Train,
    later: BackgroundTasks,
    serving: CurrentServing,
) -> None:
    """Remove an alias; the version it pointed at stays."""
    models.delete_alias(session, principal.project_id, name, alias)
    later.add_task(serving.forget)


@router.delete("/{ref}", status_code=204, summary="Delete a model", responses=documented(404, 409))
def delete_model(
    ref: Annotated[str, Path(description="name (the whole model) or name@3 (one version).")],
    session: Writing,
    principal: Train,
    later: BackgroundTasks,
    serving: CurrentServing,
) -> None:
    """Delete a model with all its versions and aliases, or one version that no alias points at."""
    name, _, number = ref.partition("@")
    versions = models.versions(session, principal.project_id, name)
    gone = [v.checkpoint_id for v in versions if number in ("", str(v.version))]
    models.delete(session, principal.project_id, ref)
    later.add_task(serving.forget, gone)


@router.get(
    "/{ref}/weights",
    response_class=Response,
    summary="Weights of a model",
    responses={
        200: {
            "description": "The weights as a safetensors file.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
        206: {"description": "The range of bytes that was asked for."},
        304: {"description": "The sender has these weights already."},
        **documented(404, 409, 416),
    },
)
@router.head("/{ref}/weights", include_in_schema=False)
def get_model_weights(
    ref: Ref, request: Request, database: CurrentDatabase, principal: Train
) -> Response:
    """The weights as safetensors; `ETag` is their SHA-256, and `Range` gets parts of them."""
    with database.transaction(read_only=True) as session:
        found = references.find(session, principal.project_id, ref)
        size = blobs.size(session, found.checkpoint.weights_blob)
    name = f"{found.ref.replace('@', '-')}.safetensors"
    return download(request, database, found.checkpoint.weights_blob, size, name)


@router.post(
    "/{ref}/evaluate",
    status_code=202,
    summary="Evaluate a model on a data set",
    responses=documented(404, 409),
)
def evaluate_model(
    ref: Ref,
    body: Evaluation,
    session: Writing,
    principal: Train,
    settings: CurrentSettings,
    new_job: NewJob,
) -> JobOut:
    """Queues a job of kind `evaluate`; its `result` will hold every metric, those of each class too."""
    project_id, private = principal.project_id, settings.webhook_private

    def make() -> Job:
        return _evaluate(session, project_id, ref, body, webhook_private=private)

    return new_job(body, make)


def _evaluate(
    session: Session, project_id: str, ref: str, asked: Evaluation, *, webhook_private: bool
) -> Job:
    """A queued evaluation. Raises NotFound, Conflict, and Invalid for a data set of another task."""
    found = references.find(session, project_id, ref)
    task = found.checkpoint.spec["task"]["name"]
    dataset = chosen_split(session, project_id, asked.dataset, asked.split, task)
    return jobs.create(
        session,
        project_id,
        kind="evaluate",
        name=f"{found.ref} on {dataset.name}",
        dataset_id=dataset.id,
        task=task,
        spec=found.checkpoint.spec,
        request={"model": found.ref, "dataset": dataset.id, "split": asked.split},
        base={"ref": found.ref, "checkpoint": found.checkpoint.id},
        base_checkpoint_id=found.checkpoint.id,
        priority=asked.priority,
        queue=chosen_queue(session, asked.resources.queue),
        webhook=chosen_webhook(asked.webhook, private=webhook_private),
    )
