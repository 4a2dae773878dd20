"""The catalog: what can be learned, and what learns it."""

from inspect import getdoc
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Predict
from api.errors import documented
from api.schemas import PageOut
from models.base import Architecture
from models.parts.training import Training, Transfer
from store.errors import NotFound
from tasks import catalog
from tasks.base import Task

router = APIRouter(prefix="/v1", tags=["catalog"])
_Schema = dict[str, Any]


class ObjectiveOut(BaseModel):
    """The metric that decides which checkpoint is best."""

    metric: str = Field(description="Its name.")
    maximise: bool = Field(description="Whether more is better.")


class TaskOut(BaseModel):
    """A task in short."""

    name: str = Field(description="The word requests use.")
    summary: str = Field(description="What is learned.")
    objective: ObjectiveOut = Field(description="What decides which checkpoint is best.")
    formats: list[str] = Field(description="Names of the upload formats it reads.")
    architectures: list[str] = Field(description="Names of the architectures that can learn it.")


class ArchitectureOut(BaseModel):
    """An architecture and its hyperparameters."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = Field(description="The word requests use.")
    summary: str = Field(description="What it is.")
    description: str = Field(description="What it is, at length.")
    has_backbone: bool = Field(description="Whether its models can be the `base` of another job.")
    tasks: list[str] = Field(description="The tasks it can learn.")
    schema_: _Schema = Field(alias="schema", description="JSON schema of its hyperparameters.")
    defaults: dict[str, Any] = Field(description="Every hyperparameter's default.")


class TaskDetails(BaseModel):
    """A task with all there is to know for a request."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = Field(description="The word requests use.")
    summary: str = Field(description="What is learned.")
    description: str = Field(description="What is learned, at length.")
    example: _Schema = Field(description="An input of `predict` and what it may give.")
    input_schema: _Schema = Field(description="JSON schema of one input of `predict`.")
    parameters_schema: _Schema = Field(
        description="JSON schema of the `parameters` of `predict`, which an input may also give itself."
    )
    prediction_schema: _Schema = Field(description="JSON schema of one prediction.")
    options_schema: _Schema = Field(description="JSON schema of the `options` of an upload.")
    formats: dict[str, str] = Field(description="Upload formats, and what such a file looks like.")
    metrics: dict[str, str] = Field(description="Metrics, and what they measure.")
    objective: ObjectiveOut = Field(description="What decides which checkpoint is best.")
    architectures: list[ArchitectureOut] = Field(description="What can learn it.")
    schema_: _Schema = Field(alias="schema", description="JSON schema of the job's `task`.")
    training_schema: _Schema = Field(description="JSON schema of the job's `training`.")
    transfer_schema: _Schema = Field(description="JSON schema of the job's `transfer`.")
    job: _Schema = Field(description="A job to edit: all it needs is your data set's id.")


@router.get("/tasks", response_model=PageOut[TaskOut], summary="List tasks")
def list_tasks(_: Predict) -> Any:
    """Everything that can be learned, on one page."""
    return {"data": [_short(task) for task in catalog.tasks().values()]}


@router.get(
    "/tasks/{name}", response_model=TaskDetails, summary="Show a task", responses=documented(404)
)
def get_task(_: Predict, name: str) -> TaskDetails:
    """Inputs, predictions, upload formats, metrics, architectures with every hyperparameter, and a job to edit."""
    task = catalog.tasks().get(name)
    if task is None:
        raise NotFound("task", name)
    return _details(task)


@router.get("/architectures", response_model=PageOut[ArchitectureOut], summary="List architectures")
def list_architectures(_: Predict) -> Any:
    """Everything that learns, with its hyperparameters, on one page."""
    families = (catalog.family_of(task) for task in catalog.tasks().values())
    found = {each for family in families for each in catalog.architectures(family).values()}
    in_order = sorted(found, key=lambda each: (each.option_name(), each.__name__))
    return {"data": [_architecture(each) for each in in_order]}


def _short(task: type[Task]) -> TaskOut:
    return TaskOut(
        name=task.option_name(),
        summary=task.summary(),
        objective=ObjectiveOut(**task.objective._asdict()),
        formats=list(task.formats),
        architectures=list(catalog.architectures(catalog.family_of(task))),
    )


def _details(task: type[Task]) -> TaskDetails:
    example = {
        "input": _example(task.input_type),
        "prediction": _example(task.prediction_type),
    }
    job = {
        "name": task.option_name(),
        "dataset": "ds_...",
        "task": task.model_validate({}).model_dump(mode="json"),
        "training": Training().model_dump(mode="json"),
    }
    return TaskDetails(
        name=task.option_name(),
        summary=task.summary(),
        description=getdoc(task) or "",
        example=example,
        input_schema=task.input_type.model_json_schema(),
        parameters_schema=task.parameters_type.model_json_schema(),
        prediction_schema=task.prediction_type.model_json_schema(mode="serialization"),
        options_schema=task.options_type.model_json_schema(),
        formats=dict(task.formats),
        metrics=dict(task.metrics),
        objective=ObjectiveOut(**task.objective._asdict()),
        architectures=[
            _architecture(a) for a in catalog.architectures(catalog.family_of(task)).values()
        ],
        schema=task.model_json_schema(),
        training_schema=Training.model_json_schema(),
        transfer_schema=Transfer.model_json_schema(),
        job=job,
    )


def _architecture(architecture: type[Architecture]) -> ArchitectureOut:
    return ArchitectureOut(
        name=architecture.option_name(),
        summary=architecture.summary(),
        description=getdoc(architecture) or "",
        has_backbone=architecture.has_backbone,
        tasks=[
            name
            for name, task in catalog.tasks().items()
            if issubclass(architecture, catalog.family_of(task))
        ],
        schema=architecture.model_json_schema(),
        defaults=architecture.model_validate({}).model_dump(mode="json"),
    )


def _example(model: type[BaseModel]) -> Any:
    """The example a type gives of itself, or those its fields give."""
    schema = model.model_json_schema()
    fields = schema.get("properties", {}).items()
    of_fields = {name: field["examples"][0] for name, field in fields if "examples" in field}
    return schema.get("examples", [of_fields])[0]
