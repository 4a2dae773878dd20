"""Predictions and embeddings: one request, one answer, as fast as the model."""

from collections.abc import AsyncIterator
from heapq import nlargest
from operator import itemgetter
from typing import Annotated, Any

import pydantic_core
from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from api import faults, file_answers, parameters, streams
from api.auth import Predict
from api.bodies import FORM, JSON, MOST_INPUTS, is_large, kind_of, read_json
from api.errors import documented
from api.forms import read_form
from api.lean import LeanRoute
from api.serving.engine import Serving
from tasks.base import Task
from tasks.parts.problems import Invalid, Problem
from tasks.text_generation import Piece


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
        description="How to predict: `parameters_schema` of the model, for all inputs that do not say it themselves. "
        "Tasks that give `scores`: `top_k`, to get only the best ones.",
    )


class PredictOut(BaseModel):
    """Predictions, in the order of the inputs."""

    model: str = Field(description="What predicted: the model's name and version.")
    predictions: list[Any] = Field(
        description="One prediction per input (`prediction_schema` of the model)."
    )


class EmbedOut(BaseModel):
    """Vectors, in the order of the inputs."""

    model: str = Field(description="Whose network made them: the model's name and version.")
    embeddings: list[list[float]] = Field(description="One vector per input, all equally long.")


router = APIRouter(tags=["models"], route_class=LeanRoute)
Ref = Annotated[str, Path(description="name (newest), name@3, name@alias, job_... or ckpt_...")]

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
        "video/*": {"schema": {"type": "string", "format": "binary"}},
        "audio/*": {"schema": {"type": "string", "format": "binary"}},
        FORM: {
            "schema": {
                "type": "object",
                "description": "A part for each field of each input; the n-th part of a name belongs "
                "to the n-th input. The fields of a row are its columns.",
                "properties": {
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    "text": {"type": "array", "items": {"type": "string"}},
                    "parameters": {"type": "string", "contentMediaType": JSON},
                },
                "additionalProperties": {"type": "array", "items": {"type": "string"}},
            },
            "examples": {
                "texts": {
                    "summary": "Two texts, with the best label of each",
                    "value": {"text": ["Wonderful.", "Dull."], "parameters": '{"top_k": 1}'},
                },
                "row": {"summary": "A row", "value": {"age": ["39"], "job": ["nurse"]}},
            },
        },
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
                },
                "text/event-stream": {"schema": {"type": "string"}},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
            }
        },
        **documented(404, 409, 413, 415, 503),
    },
    openapi_extra={"requestBody": _BODY},
)
async def predict(
    ref: Ref,
    principal: Predict,
    request: Request,
) -> Response:
    """Predictions of a model for up to 1,000 inputs.

    Requests that come at the same time share forward passes; a lone one never waits for others. One
    file (image, sound, clip) may be sent as the raw body with its content type, and parameters then as
    those of the query, `?top_k=3`; several files are the parts of a form. 503 with `Retry-After` means
    that too many requests wait for this model already; 409 that the job has no checkpoint yet.

    Where a prediction is a file, `Accept: image/png` makes it the body of the answer, for one input.

    With `Accept: text/event-stream` a text is sent as it is written: events `text`, and at last `end` with
    the reason. This takes a model for text-generation and one input.
    """
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, ref)
    task = model.task
    body = await request.body()
    sent = await _sent(request, body, task)
    asked = sent.parameters or {}
    top_k, own = _top_k(task, asked), parameters.of_task(task, asked)
    inputs = parameters.spread(task, sent.inputs, own)
    if streams.asked_for(request):
        pieces = await streams.begin(serving, model, inputs)
        return streams.answer(_events(model.ref, pieces))
    file = file_answers.asked_for(request, task)
    if file is not None:
        file_answers.check(inputs)
    predictions = await serving.predict(model, inputs, large=is_large(body, task))
    if top_k is not None:
        predictions = [_best(prediction, top_k) for prediction in predictions]
    if file is not None:
        return file_answers.answer(predictions[0], file, task)
    answer = {"model": model.ref, "predictions": predictions}
    content = pydantic_core.to_json(answer, inf_nan_mode="null")
    return Response(content, media_type="application/json")


@router.post(
    "/v1/models/{ref}/embed",
    summary="Embed",
    response_model=EmbedOut,
    responses=documented(404, 409, 413, 415, 503),
    openapi_extra={"requestBody": _BODY},
)
async def embed(ref: Ref, principal: Predict, request: Request) -> Response:
    """What a model's network makes of up to 1,000 inputs before its head answers: vectors, near each other for
    inputs that are alike to it.

    The body is that of a prediction, without `parameters`. Models of the tasks that `embeds` answer (see
    `GET /v1/tasks`), others are a 404.
    """
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, ref)
    body = await request.body()
    sent = await _sent(request, body, model.task)
    if sent.parameters:
        message = "embeddings have no parameters"
        raise Invalid(Problem(("parameters",), message, [*sent.parameters], "none"))
    found = await serving.embed(model, sent.inputs, large=is_large(body, model.task))
    answer = {"model": model.ref, "embeddings": [vector.tolist() for vector in found]}
    return Response(pydantic_core.to_json(answer, inf_nan_mode="null"), media_type=JSON)


async def _events(model: str, pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    """Pieces of a text as events `text`, and at last `end`."""
    async for text, _, tokens, reason in pieces:
        if text:
            yield streams.event({"text": text}, "text")
        if reason:
            ended = {"model": model, "finish_reason": reason, "tokens": tokens}
            yield streams.event(ended, "end")


# What was sent


async def _sent(request: Request, body: bytes, task: Task) -> PredictIn:
    """The request that a body is. Raises Invalid, and UnsupportedMedia."""
    kind = kind_of(request, body, task, FORM)
    if kind == JSON:
        return faults.read(PredictIn, read_json(body, '{"inputs": [...]}'))
    if kind == FORM:
        said = request.headers["Content-Type"]
        form = await run_in_threadpool(read_form, body, said, task.input_type)
        return faults.read(PredictIn, form)
    asked = {name: _value(text) for name, text in request.query_params.items()}
    return PredictIn.model_construct(inputs=[body], parameters=asked)


def _value(text: str) -> Any:
    """What a parameter of the query is: JSON, or else the text itself."""
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


# Parameters


def _top_k(task: Task, asked: dict[str, Any]) -> int | None:
    """How many scores to show; None for all. Raises Invalid, also for parameters the task lacks."""
    own, scored = (
        [*task.parameters_type.model_fields],
        "scores" in task.answer_type.model_fields,
    )
    allowed = [*own, "top_k"] if scored else own
    problems = [
        Problem(("parameters", name), f"no parameter of {task.name}", name, allowed or "none")
        for name in asked
        if name not in allowed
    ]
    top_k = asked.get("top_k") if scored else None
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
