"""Models: their versions, aliases and weights, and their evaluation on data sets."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.auth import Predict, Train
from api.dependencies import CurrentDatabase, Reading, Writing
from api.downloads import download
from api.errors import documented
from api.schemas import After, Limit, PageOut, page_out
from api.serving import references
from api.serving.engine import Serving
from store import blobs, checkpoints, jobs, models
from store.models import Resolved
from store.tables import Checkpoint, Model, ModelVersion
from tasks.catalog import task_named

SHOWN = 20
"""Values of a list that the summary of a codec shows."""

router = APIRouter(prefix="/v1/models", tags=["models"])

Ref = Annotated[str, Path(description="name (newest), name@3, name@alias, job_... or ckpt_...")]
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


class VersionOut(BaseModel):
    """One version of a model."""

    version: int = Field(description="Counted from 1.")
    ref: str = Field(description="Its exact reference.", examples=["reviews@1"])
    job: str | None = Field(description="The job that trained it, while it is there.")
    checkpoint: str = Field(description="The checkpoint it is made of.")
    created_at: datetime = Field(description="When it was made.")


class ModelOut(BaseModel):
    """A model: a name, its versions, and the aliases that point at them."""

    id: str
    name: str = Field(description="What predictions are asked of.", examples=["reviews"])
    task: str | None = Field(description="What its newest version does.")
    versions: int = Field(description="How many versions there are.")
    newest: VersionOut | None = Field(description="What the bare name means.")
    aliases: dict[str, int] = Field(description="Names that point at versions.")
    metrics: dict[str, Any] = Field(description="The newest version's metrics, by split.")
    created_at: datetime = Field(description="When its first version was made.")


class ModelDetail(BaseModel):
    """What a reference means: a trained model and how to ask it."""

    ref: str = Field(description="The exact reference.", examples=["reviews@1"])
    name: str | None = Field(description="The model's name; null for a job's checkpoint.")
    version: int | None = Field(description="The version; null for a job's checkpoint.")
    versions: list[VersionOut] = Field(description="All versions of this name, newest first.")
    aliases: dict[str, int] = Field(description="Names that point at versions of this model.")
    task: str = Field(description="What it does.", examples=["text-classification"])
    architecture: dict[str, Any] = Field(description="What learned, with every hyperparameter.")
    training: dict[str, Any] = Field(description="How it was trained.")
    metrics: dict[str, Any] = Field(description="By split: train, validation, test.")
    step: int = Field(description="Training steps behind these weights.")
    epoch: float = Field(description="Epochs behind these weights.")
    labels: list[str] | None = Field(description="What it can answer, where that is a label.")
    codec: dict[str, Any] = Field(
        description="What was learned from the data besides weights; long lists by their length."
    )
    input_schema: dict[str, Any] = Field(description="JSON schema of one input.")
    input_example: Any = Field(description="One input of this kind, to see its shape.")
    prediction_schema: dict[str, Any] = Field(description="JSON schema of one prediction.")
    job: str | None = Field(description="The job that trained it, while it is there.")
    checkpoint: str = Field(description="The checkpoint it is made of.")
    size_bytes: int = Field(description="Size of the weights.")
    created_at: datetime = Field(description="When these weights were saved.")


class AliasIn(BaseModel):
    """Where an alias points."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": 1}]})

    version: int = Field(ge=1, lt=2**31, description="A version of this model.")


class AliasOut(BaseModel):
    """An alias and what it means."""

    alias: str
    version: int
    ref: str = Field(description="How to ask for it.", examples=["reviews@production"])


@router.get("", response_model=PageOut[ModelOut], responses=documented(401, 403, 422))
def list_models(
    session: Reading, key: Predict, limit: Limit = 20, after: After = None
) -> dict[str, Any]:
    """The project's models, newest first."""
    page = models.page(session, key.project_id, limit, after)
    return page_out(page, lambda model: _model(session, model))


@router.get("/{ref}", responses=documented(401, 403, 404, 409))
def get_model(ref: Ref, database: CurrentDatabase, key: Predict) -> ModelDetail:
    """What a reference means: task, architecture, metrics, and how to ask for predictions."""
    with database.transaction(read_only=True) as session:
        found = references.find(session, key.project_id, ref)
        size = blobs.size(session, found.checkpoint.weights_blob)
        named = _named(session, key.project_id, found)
    codec = json.loads(b"".join(blobs.read(database, found.checkpoint.codec_blob)))
    shown = {**_of_checkpoint(found.checkpoint), **named, **_of_codec(codec)}
    return ModelDetail(ref=found.ref, size_bytes=size, **shown)


@router.put("/{name}/aliases/{alias}", responses=documented(401, 403, 404, 409, 422))
def set_alias(
    name: Name,
    alias: Alias,
    body: AliasIn,
    session: Writing,
    key: Train,
    later: BackgroundTasks,
    serving: CurrentServing,
) -> AliasOut:
    """Point an alias at a version; from the next second on, `name@alias` means that one."""
    models.set_alias(session, key.project_id, name, alias, body.version)
    later.add_task(serving.forget)
    return AliasOut(alias=alias, version=body.version, ref=f"{name}@{alias}")


@router.delete("/{name}/aliases/{alias}", status_code=204, responses=documented(401, 403, 404, 422))
def delete_alias(
    name: Name,
    alias: Alias,
    session: Writing,
    key: Train,
    later: BackgroundTasks,
    serving: CurrentServing,
) -> None:
    """Remove an alias; the version it pointed at stays."""
    models.delete_alias(session, key.project_id, name, alias)
    later.add_task(serving.forget)


@router.delete("/{ref}", status_code=204, responses=documented(401, 403, 404, 409, 422))
def delete_model(
    ref: Annotated[str, Path(description="name (the whole model) or name@3 (one version).")],
    session: Writing,
    key: Train,
    later: BackgroundTasks,
    serving: CurrentServing,
) -> None:
    """Delete a model with all its versions and aliases, or one version that no alias points at."""
    name, _, number = ref.partition("@")
    versions = models.versions(session, key.project_id, name)
    gone = [v.checkpoint_id for v in versions if number in ("", str(v.version))]
    models.delete(session, key.project_id, ref)
    later.add_task(serving.forget, gone)


@router.get(
    "/{ref}/weights",
    response_class=Response,
    responses={
        200: {
            "description": "The weights as a safetensors file.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
        206: {"description": "The range of bytes that was asked for."},
        304: {"description": "The sender has these weights already."},
        **documented(401, 403, 404, 409, 416),
    },
)
@router.head("/{ref}/weights", include_in_schema=False)
def get_weights(ref: Ref, request: Request, database: CurrentDatabase, key: Train) -> Response:
    """The weights as safetensors; `ETag` is their SHA-256, and `Range` gets parts of them."""
    with database.transaction(read_only=True) as session:
        found = references.find(session, key.project_id, ref)
        size = blobs.size(session, found.checkpoint.weights_blob)
    name = f"{found.ref.replace('@', '-')}.safetensors"
    return download(request, database, found.checkpoint.weights_blob, size, name)


# How models are shown


def _model(session: Session, model: Model) -> ModelOut:
    versions = models.versions(session, model.project_id, model.name)
    newest = versions[0] if versions else None
    checkpoint = checkpoints.load(session, newest.checkpoint_id) if newest else None
    return ModelOut(
        id=model.id,
        name=model.name,
        task=checkpoint.spec["task"]["name"] if checkpoint else None,
        versions=len(versions),
        newest=_version(model.name, newest) if newest else None,
        aliases=models.aliases(session, model.project_id, model.name),
        metrics=_metrics(session, newest, checkpoint) if newest and checkpoint else {},
        created_at=model.created_at,
    )


def _version(name: str, row: ModelVersion) -> VersionOut:
    return VersionOut(
        version=row.version,
        ref=f"{name}@{row.version}",
        job=row.job_id,
        checkpoint=row.checkpoint_id,
        created_at=row.created_at,
    )


def _metrics(session: Session, version: ModelVersion, checkpoint: Checkpoint) -> dict[str, Any]:
    """As the job ended with them, the test split included; the checkpoint's once the job is gone."""
    ended = jobs.load(session, version.job_id).metrics if version.job_id else {}
    return ended or checkpoint.metrics


def _of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says by itself."""
    spec = checkpoint.spec
    task = task_named(spec["task"]["name"])
    inputs = task.input_type.model_json_schema()
    return {
        "name": None,
        "version": None,
        "versions": [],
        "aliases": {},
        "task": spec["task"]["name"],
        "architecture": spec["task"]["architecture"],
        "training": spec["training"],
        "metrics": checkpoint.metrics,
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "input_schema": inputs,
        "input_example": _example(inputs),
        "prediction_schema": task.prediction_type.model_json_schema(),
        "job": checkpoint.job_id,
        "checkpoint": checkpoint.id,
        "created_at": checkpoint.created_at,
    }


def _named(session: Session, project_id: str, found: Resolved) -> dict[str, Any]:
    """What the model adds of which the checkpoint is a version."""
    name, _, number = found.ref.partition("@")
    if not number:
        return {}
    rows = models.versions(session, project_id, name)
    version = next(row for row in rows if row.version == int(number))
    return {
        "name": name,
        "version": version.version,
        "versions": [_version(name, row) for row in rows],
        "aliases": models.aliases(session, project_id, name),
        "metrics": _metrics(session, version, found.checkpoint),
        "job": version.job_id,
    }


def _of_codec(codec: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in codec.items() if name != "labels"}
    return {"labels": codec.get("labels"), "codec": _summary(rest)}


def _summary(value: Any) -> Any:
    """The value with long lists told by their length."""
    if isinstance(value, dict | list) and len(value) > SHOWN:
        return f"{len(value)} values"
    if isinstance(value, dict):
        return {name: _summary(inner) for name, inner in value.items()}
    return [_summary(inner) for inner in value] if isinstance(value, list) else value


def _example(schema: Mapping[str, Any]) -> Any:
    """An input as the schema shows it: a whole example, or one put together from its fields."""
    if schema.get("examples"):
        return schema["examples"][0]
    fields = schema.get("properties", {})
    return {name: field["examples"][0] for name, field in fields.items() if "examples" in field}
