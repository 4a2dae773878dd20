"""What travels between clients and the routes of models."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.job_schemas import Hook, Resources
from models.parts.options import Plain
from store import checkpoints, jobs, models
from store.models import Resolved
from store.tables import Checkpoint, Model, ModelVersion
from tasks.catalog import task_named

SHOWN = 20
"""Values of a list that the summary of a codec shows."""


class VersionOut(BaseModel):
    """One version of a model."""

    version: int = Field(description="Counted from 1.")
    ref: str = Field(description="Its exact reference.", examples=["reviews@1"])
    job: str | None = Field(
        description="The job that trained it, while it is there; null for one that was imported."
    )
    checkpoint: str = Field(description="The checkpoint it is made of.")
    created_at: datetime = Field(description="When it was made.")


class ModelOut(BaseModel):
    """A model: a name, its versions, and the aliases that point at them."""

    id: str = Field(description="Its id.")
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
    parameters_schema: dict[str, Any] = Field(description="JSON schema of the parameters.")
    prediction_schema: dict[str, Any] = Field(description="JSON schema of one prediction.")
    job: str | None = Field(description="The job that trained it, while it is there.")
    checkpoint: str = Field(description="The checkpoint it is made of.")
    size_bytes: int = Field(description="Size of the weights.")
    created_at: datetime = Field(description="When these weights were saved.")


class RunOptions(Plain):
    """How a job that trains nothing is run."""

    resources: Resources = Field(Resources(), description="What the job runs on.")
    priority: int = Field(0, ge=-100, le=100, description="Jobs with a higher one run first.")
    webhook: Hook | None = Field(
        None, description="Where its events are sent: a URL, or a URL and which events."
    )


class Evaluation(RunOptions):
    """What to evaluate a model on."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dataset": "ds_01jd2x7m0qk5t3v9r8w6y4z2ab"}]}
    )

    dataset: str = Field(max_length=100, description="The id of a data set of the model's task.")
    split: str = Field("test", max_length=100, description="Which of its splits.")


class AliasIn(Plain):
    """Where an alias points."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1}]})

    version: int = Field(ge=1, lt=2**31, description="A version of this model.")


class AliasOut(BaseModel):
    """An alias and what it means."""

    alias: str = Field(description="The name behind the @.")
    version: int = Field(description="The version it points at.")
    ref: str = Field(description="How to ask for it.", examples=["reviews@production"])


def model_out(session: Session, model: Model) -> ModelOut:
    """A model as clients see it in a list."""
    versions = models.versions(session, model.project_id, model.name)
    newest = versions[0] if versions else None
    checkpoint = checkpoints.load(session, newest.checkpoint_id) if newest else None
    return ModelOut(
        id=model.id,
        name=model.name,
        task=checkpoint.spec["task"]["name"] if checkpoint else None,
        versions=len(versions),
        newest=version_out(model.name, newest) if newest else None,
        aliases=models.aliases(session, model.project_id, model.name),
        metrics=_metrics(session, newest, checkpoint) if newest and checkpoint else {},
        created_at=model.created_at,
    )


def version_out(name: str, row: ModelVersion) -> VersionOut:
    """A version as clients see it."""
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


def model_in_detail(
    session: Session, project_id: str, found: Resolved, codec: Mapping[str, Any], size: int
) -> ModelDetail:
    """What a reference means; `codec` is the checkpoint's, `size` its weights' in bytes."""
    shown = {**_of_checkpoint(found.checkpoint), **_named(session, project_id, found)}
    return ModelDetail(ref=found.ref, size_bytes=size, **shown, **_of_codec(codec))


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
        "parameters_schema": task.parameters_type.model_json_schema(),
        "prediction_schema": task.prediction_type.model_json_schema(),
        "job": checkpoint.job_id,
        "checkpoint": checkpoint.id,
        "created_at": checkpoint.created_at,
    }


def _named(session: Session, project_id: str, found: Resolved) -> dict[str, Any]:
    """What the model adds of which the checkpoint is a version."""
    name, _, number = found.ref.partition("@")
    if not number or name.startswith("job_"):
        return {}
    rows = models.versions(session, project_id, name)
    version = next((row for row in rows if row.version == int(number)), None)
    if version is None:  # deleted a moment ago
        return {}
    return {
        "name": name,
        "version": version.version,
        "versions": [version_out(name, row) for row in rows],
        "aliases": models.aliases(session, project_id, name),
        "metrics": _metrics(session, version, found.checkpoint),
        "job": version.job_id,
    }


def _of_codec(codec: Mapping[str, Any]) -> dict[str, Any]:
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
