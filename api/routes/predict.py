"""Predictions and embeddings: one request, one answer, as fast as the model."""

from collections.abc import AsyncIterator
from heapq import nlargest
from operator import itemgetter
from typing import Any

import pydantic_core
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from api import file_answers, parameters, streams
from api.auth import Predict
from api.bodies import JSON, is_large
from api.errors import documented
from api.lean import LeanRoute
from api.sent import BODY, Ref, sent_by
from api.serving.engine import Serving
from tasks.base import Task
from tasks.parts.problems import Invalid, Problem
from tasks.text_generation import Piece


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
    openapi_extra={"requestBody": BODY},
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
    sent = await sent_by(request, body, task)
    asked = sent.parameters or {}
    top_k, own = _top_k(task, asked), parameters.of_task(task, asked)
    inputs = parameters.spread(task, sent.inputs, own)
    if streams.asked_for(request):
        pieces = await streams.begin(request, serving, model, inputs)
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
    openapi_extra={"requestBody": BODY},
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
    sent = await sent_by(request, body, model.task)
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
