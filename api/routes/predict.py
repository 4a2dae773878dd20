"""Predictions: one request, one answer, as fast as the model."""

from fnmatch import fnmatch
from functools import cache
from heapq import nlargest
from operator import itemgetter
from typing import Annotated, Any

import pydantic_core
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api import faults
from api.auth import Predict
from api.errors import UnsupportedMedia, documented
from api.lean import LeanRoute
from api.serving.engine import Serving
from tasks.base import Task
from tasks.parts.problems import Invalid, Problem

MOST_INPUTS = 1_000
LARGE_BYTES = 32_768
"""Bodies from this size on are read in a thread, so that nobody else waits for it."""


class PredictIn(BaseModel):
    """Inputs to predict for."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[Any] = Field(
        min_length=1,
        max_length=MOST_INPUTS,
        description="Inputs as the model's task wants them (`input_schema` of the model).",
    )
    parameters: dict[str, Any] | None = Field(
        None,
        description="How to predict. Tasks that give `scores`: `top_k`, to get only the best ones.",
    )


class PredictOut(BaseModel):
    """Predictions, in the order of the inputs."""

    model: str = Field(description="What predicted: the model's name and version.")
    predictions: list[Any] = Field(
        description="One prediction per input (`prediction_schema` of the model)."
    )


router = APIRouter(tags=["models"], route_class=LeanRoute)

_EXAMPLES = {
    "row": {"summary": "Rows of a table", "value": {"inputs": [{"age": 39, "job": "nurse"}]}},
    "text": {
        "summary": "Texts, with the two best labels",
        "value": {"inputs": [{"text": "A film to remember."}], "parameters": {"top_k": 2}},
    },
    "image": {
        "summary": "An image in base64",
        "value": {"inputs": [{"image": "iVBORw0KGgoAAAANSUhEUgAA..."}]},
    },
}
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": PredictIn.model_json_schema(), "examples": _EXAMPLES},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}


@router.post(
    "/v1/models/{ref}/predict",
    summary="Predict",
    response_model=PredictOut,
    responses={
        200: {
            "content": {
                "application/json": {
                    "example": {
                        "model": "reviews@1",
                        "predictions": [
                            {"label": "good", "scores": {"good": 0.97, "bad": 0.03}},
                        ],
                    }
                }
            }
        },
        **documented(404, 409, 413, 415, 503),
    },
    openapi_extra={"requestBody": _BODY},
)
async def predict(
    ref: Annotated[
        str,
        Path(description="name (newest), name@3, name@alias, job_... or ckpt_..."),
    ],
    principal: Predict,
    request: Request,
) -> Response:
    """Predictions of a model for up to 1,000 inputs.

    Requests that come at the same time share forward passes; a lone one never waits for others. One
    image may be sent as the raw body with its content type. 503 with `Retry-After` means that too many
    requests wait for this model already; 409 that the job has no checkpoint yet.
    """
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, ref)
    task = model.task
    is_raw = _is_raw(request, task)
    body = await request.body()
    sent = PredictIn.model_construct(inputs=[body], parameters=None) if is_raw else _sent(body)
    top_k = _top_k(task, sent.parameters or {})
    large = _media(task.input_type) is not None or len(body) >= LARGE_BYTES
    predictions = await serving.predict(model, sent.inputs, large=large)
    if top_k is not None:
        predictions = [_best(prediction, top_k) for prediction in predictions]
    answer = {"model": model.ref, "predictions": predictions}
    content = pydantic_core.to_json(answer, inf_nan_mode="null")
    return Response(content, media_type="application/json")


# What was sent


def _is_raw(request: Request, task: Task) -> bool:
    """Whether the body is one input as it is, not JSON. Raises UnsupportedMedia when it is neither."""
    sent = request.headers.get("Content-Type", "application/json").partition(";")[0].strip().lower()
    if sent == "application/json":
        return False
    media = _media(task.input_type)
    if media is not None and fnmatch(sent, media):
        return True
    allowed = "application/json" + (f" or {media}" if media else "")
    raise UnsupportedMedia(f"The body is {sent!r}; models for {task.name} read {allowed}.")


@cache
def _media(input_type: type[BaseModel]) -> str | None:
    """The media type of inputs that are files."""
    fields = input_type.model_json_schema().get("properties", {}).values()
    return next((f["contentMediaType"] for f in fields if "contentMediaType" in f), None)


def _sent(body: bytes) -> PredictIn:
    """The request in a JSON body. Raises Invalid."""
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(
            Problem(("body",), f"not JSON: {error}", body[:40], '{"inputs": [...]}')
        ) from None
    return faults.read(PredictIn, value)


# Parameters


def _top_k(task: Task, parameters: dict[str, Any]) -> int | None:
    """How many scores to show; None for all. Raises Invalid, also for parameters the task lacks."""
    allowed = ["top_k"] if "scores" in task.prediction_type.model_fields else []
    problems = [
        Problem(("parameters", name), f"no parameter of {task.name}", name, allowed or "none")
        for name in parameters
        if name not in allowed
    ]
    top_k = parameters.get("top_k")
    if not problems and top_k is not None and (type(top_k) is not int or top_k < 1):
        loc, limits = ("parameters", "top_k"), "a whole number, at least 1"
        problems.append(Problem(loc, "not a number of labels", top_k, limits))
    if problems:
        raise Invalid(*problems)
    return top_k


def _best(prediction: Any, top_k: int) -> Any:
    """The prediction with its `top_k` highest scores, highest first."""
    best = nlargest(top_k, prediction.scores.items(), key=itemgetter(1))
    return prediction.model_copy(update={"scores": dict(best)})
