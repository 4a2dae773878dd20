"""Predictions in the shapes of Hugging Face, for `huggingface_hub.InferenceClient(model=URL)`.

Shapes: the task specifications in huggingface.js, `packages/tasks/src/tasks`, and what the client reads.
"""

from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from heapq import nlargest
from operator import attrgetter, itemgetter
from typing import Any, Literal, NamedTuple

import pydantic_core
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from api import faults, parameters, streams
from api.auth import Predict
from api.bodies import JSON, MOST_INPUTS, is_large, kind_of, read_json, transpose
from api.errors import documented
from api.lean import LeanRoute
from api.sent import Ref
from api.serving.engine import Ready, Serving
from store.errors import NotFound
from tasks.base import Parameterless, Task, files_of, own_fields
from tasks.instance_segmentation import InstancesPrediction
from tasks.intent_and_slots import IntentPrediction
from tasks.parts.detecting import DetectionPrediction
from tasks.parts.images import ImagePrediction
from tasks.parts.label_sets import LabelsPrediction
from tasks.parts.labels import LabelPrediction
from tasks.parts.masks import decode_mask, encode_mask
from tasks.parts.problems import Invalid, Problem
from tasks.parts.styled import StylePrediction
from tasks.parts.tags import TagsPrediction
from tasks.semantic_segmentation import MaskPrediction
from tasks.speech_recognition import SpeechPrediction
from tasks.tabular_regression import NumberPrediction
from tasks.text_generation import Generated, Piece
from tasks.text_to_text import TextToTextPrediction


class HuggingFaceIn(BaseModel):
    """Inputs as InferenceClient sends them; a file may also be the body itself."""

    model_config = ConfigDict(extra="forbid")

    inputs: Any = Field(None, description="A text, a file in base64 or a row; or a list of them.")
    table: dict[str, list[Any]] | None = Field(
        None, description="Instead of `inputs`: rows, as a list of values for each column."
    )
    parameters: dict[str, Any] | None = Field(
        None,
        description="How to predict. Labels: `top_k`, to get only the best ones. Or the task's own.",
    )
    stream: bool | None = Field(None, description="Send a text as it is written, in events.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "HuggingFaceIn":
        if (self.inputs is None) == (self.table is None):
            raise ValueError("send either `inputs` or `table`")
        return self


class EndpointOut(BaseModel):
    """A model that is ready to predict."""

    model_id: str = Field(description="The model's name and version.", examples=["reviews@1"])
    model_pipeline_tag: str = Field(description="Its task.", examples=["text-classification"])
    max_client_batch_size: int = Field(description="Inputs of one request at most.")


# What predictions look like


class LabelParameters(Parameterless):
    """How to give labels."""

    top_k: int | None = Field(None, ge=1, strict=True, description="Only so many, the best ones.")
    function_to_apply: Literal["softmax"] | None = Field(
        None, description="How scores were made probabilities."
    )


class LabelSetParameters(Parameterless):
    """How to give labels of which an example may have several."""

    top_k: int | None = Field(None, ge=1, strict=True, description="Only so many, the best ones.")
    function_to_apply: Literal["sigmoid"] | None = Field(
        None, description="How scores were made probabilities."
    )


class TextParameters(Parameterless):
    """How to give texts that were written, beside the task's own parameters."""

    details: bool | None = Field(
        None, description="Also say why the text ends, and how long it is."
    )
    return_full_text: Literal[False] | None = Field(None, description="The prompt is not repeated.")
    do_sample: Literal[True] | None = Field(
        None, description="Tokens are drawn, unless `temperature` is 0."
    )


class Shape(NamedTuple):
    """How a kind of prediction is given."""

    parameters: type[BaseModel]
    answer: Callable[[Any, Any], Any]
    """The answer for an input, from its prediction and the parameters."""
    cell: Callable[[Any], Any]
    """The answer for a row of a `table`, from its prediction."""
    is_listed: bool = True
    """Whether the client reads a list of one answer where a text came alone, and not its answer."""


def _scores(
    prediction: LabelPrediction | IntentPrediction,
    parameters: LabelParameters | LabelSetParameters,
) -> list[dict[str, Any]]:
    count = parameters.top_k or len(prediction.scores)
    best = nlargest(count, prediction.scores.items(), key=itemgetter(1))
    return [{"label": label, "score": score} for label, score in best]


def _value(prediction: NumberPrediction, parameters: Parameterless) -> float:
    return prediction.value


def _image(prediction: ImagePrediction, parameters: Parameterless) -> bytes:
    return prediction.image


class TokenParameters(Parameterless):
    """How to give tags."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = Field(
        None, description="`none` gives every token by itself; else spans are whole."
    )
    ignore_labels: list[str] | None = Field(
        None,
        description="What is left out; `O`, which stands outside of spans, if nothing is said.",
    )


def _tags(prediction: TagsPrediction, parameters: TokenParameters) -> list[dict[str, Any]]:
    left_out = ["O"] if parameters.ignore_labels is None else parameters.ignore_labels
    if prediction.entities and parameters.aggregation_strategy != "none":
        return [
            {
                "entity_group": entity.label,
                "score": entity.score,
                "word": entity.text,
                "start": entity.start,
                "end": entity.end,
            }
            for entity in prediction.entities
            if entity.label not in left_out
        ]
    found = zip(
        prediction.tokens, prediction.tags, prediction.scores, prediction.starts, strict=True
    )
    return [
        {"entity": tag, "score": score, "word": token, "start": start, "end": start + len(token)}
        for token, tag, score, start in found
        if tag not in left_out
    ]


def _written(prediction: TextToTextPrediction, parameters: Parameterless) -> dict[str, str]:
    # Nothing of the request says whether the client was asked to translate or to sum up.
    names = ("translation_text", "summary_text", "generated_text")
    return dict.fromkeys(names, prediction.target)


def _objects(prediction: DetectionPrediction, parameters: Parameterless) -> list[dict[str, Any]]:
    sides = ("xmin", "ymin", "xmax", "ymax")  # which the client reads as whole pixels
    return [
        {
            "label": found.label,
            "score": found.score,
            "box": dict(zip(sides, map(round, found.box), strict=True)),
        }
        for found in prediction.objects
    ]


def _heard(prediction: SpeechPrediction, parameters: Parameterless) -> dict[str, Any]:
    chunks = [{"text": w.word, "timestamp": [w.start, w.end]} for w in prediction.words]
    return {"text": prediction.text, "chunks": chunks}


FINISH = {"length": "length", "time": "length", "end": "eos_token", "stop": "stop_sequence"}
"""Why a text ends, in the words of Hugging Face."""


def _text(prediction: Generated, parameters: TextParameters) -> dict[str, Any]:
    answer: dict[str, Any] = {"generated_text": prediction.text}
    if parameters.details:
        answer["details"] = {
            "finish_reason": FINISH[prediction.finish_reason],
            "generated_tokens": prediction.tokens,
            "prefill": [],
            "tokens": [],
        }
    return answer


class SegmentParameters(Parameterless):
    """How to give segments, beside the task's own parameters."""

    subtask: Literal["semantic", "instance"] | None = Field(
        None, description="What the model does; it can do nothing else."
    )


def _regions(prediction: MaskPrediction, parameters: SegmentParameters) -> list[dict[str, Any]]:
    mask = decode_mask(prediction.mask)
    return [
        {"label": region.label, "score": region.score, "mask": _white(mask == region.index)}
        for region in prediction.classes
    ]


def _instances(
    prediction: InstancesPrediction, parameters: SegmentParameters
) -> list[dict[str, Any]]:
    return [
        {"label": o.label, "score": o.score, "mask": _base64(o.mask)} for o in prediction.objects
    ]


def _white(mask: Any) -> str:
    return _base64(encode_mask(mask, bits=1))


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


PNG = "image/png"
Predicting = Callable[[list[Any]], Awaitable[list[Any]]]
SHAPES: dict[type[BaseModel], Shape] = {
    LabelPrediction: Shape(LabelParameters, _scores, attrgetter("label")),
    LabelsPrediction: Shape(LabelSetParameters, _scores, attrgetter("label")),
    NumberPrediction: Shape(Parameterless, _value, attrgetter("value")),
    TagsPrediction: Shape(TokenParameters, _tags, attrgetter("tags"), is_listed=False),
    IntentPrediction: Shape(LabelParameters, _scores, attrgetter("intent")),
    TextToTextPrediction: Shape(Parameterless, _written, attrgetter("target")),
    DetectionPrediction: Shape(Parameterless, _objects, attrgetter("objects")),
    MaskPrediction: Shape(SegmentParameters, _regions, attrgetter("mask")),
    InstancesPrediction: Shape(SegmentParameters, _instances, attrgetter("objects")),
    Generated: Shape(TextParameters, _text, attrgetter("text")),
    ImagePrediction: Shape(Parameterless, _image, attrgetter("image")),
    SpeechPrediction: Shape(Parameterless, _heard, attrgetter("text")),
    StylePrediction: Shape(Parameterless, _image, attrgetter("image")),
}


# Routes

router = APIRouter(prefix="/hf/models", tags=["hugging face"], route_class=LeanRoute)

_EXAMPLES = {
    "text": {
        "summary": "A text, with its two best labels",
        "value": {"inputs": "A film to remember.", "parameters": {"top_k": 2}},
    },
    "table": {
        "summary": "Rows of a table",
        "value": {"table": {"age": ["39", "51"], "job": ["nurse", "cook"]}},
    },
    "image": {
        "summary": "An image in base64, with its best label",
        "value": {"inputs": "iVBORw0KGgoAAAANSUhEUgAA...", "parameters": {"top_k": 1}},
    },
}
_BODY = {
    "required": True,
    "content": {
        JSON: {"schema": HuggingFaceIn.model_json_schema(), "examples": _EXAMPLES},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "audio/*": {"schema": {"type": "string", "format": "binary"}},
    },
}
_ANSWERS = {
    "text": {
        "summary": "Labels of each text",
        "value": [[{"label": "good", "score": 0.97}, {"label": "bad", "score": 0.03}]],
    },
    "table": {"summary": "A label or a number for each row", "value": ["yes", "no"]},
    "image": {"summary": "Labels of one file", "value": [{"label": "cat", "score": 0.93}]},
}


@router.post(
    "/{ref}",
    summary="Predict in the shapes of Hugging Face",
    response_model=list[Any],
    responses={
        200: {
            "content": {
                JSON: {"examples": _ANSWERS},
                PNG: {"schema": {"type": "string", "format": "binary"}},
            }
        },
        **documented(404, 409, 413, 415, 503),
    },
    openapi_extra={"requestBody": _BODY},
)
async def predict_as_hugging_face(ref: Ref, principal: Predict, request: Request) -> Response:
    """What `InferenceClient(model=URL, token=KEY)` asks for, where URL is that of this route.

    The method is that of the model's task: `text_classification`, also for intents, `token_classification`,
    `translation` or `summarization` for text to text, `text_generation`, `image_classification`, `object_detection`,
    `image_segmentation`, `image_to_image`, `automatic_speech_recognition`, or `tabular_classification` for any
    table. A list of inputs gets a list of answers. `error` of a problem document is what the client shows.
    """
    serving: Serving = request.app.state.serving
    model = await _ready(ref, principal.project_id, request)
    body = await request.body()
    sent = _sent(request, body, model.task)
    if sent.stream:
        _, inputs, _ = _asked(sent, model.task)
        pieces = await streams.begin(request, serving, model, inputs, ("stream",))
        return streams.answer(_events(pieces))
    large = is_large(body, model.task)
    answer = _of_inputs if sent.table is None else _of_table
    found = await answer(sent, model.task, partial(serving.predict, model, large=large))
    return Response(found, media_type=PNG) if isinstance(found, bytes) else _json(found)


@router.get(
    "/{ref}/health",
    summary="Is a model ready for Hugging Face's client?",
    response_class=Response,
    responses=documented(404, 409),
)
async def get_hugging_face_health(ref: Ref, principal: Predict, request: Request) -> Response:
    """What `InferenceClient.health_check` asks for; 200 once the model is loaded."""
    await _ready(ref, principal.project_id, request)
    return Response()


@router.get(
    "/{ref}/info",
    summary="Describe a model to Hugging Face's client",
    response_model=EndpointOut,
    responses=documented(404, 409),
)
async def get_hugging_face_info(ref: Ref, principal: Predict, request: Request) -> Response:
    """What `InferenceClient.get_endpoint_info` asks for."""
    model = await _ready(ref, principal.project_id, request)
    return _json(
        {
            "model_id": model.ref,
            "model_pipeline_tag": model.task.name,
            "max_client_batch_size": MOST_INPUTS,
        }
    )


async def _ready(ref: str, project_id: str, request: Request) -> Ready:
    """A model that is loaded and has a shape. Raises NotFound and Conflict."""
    serving: Serving = request.app.state.serving
    model = await serving.find(project_id, ref)
    _shape(model.task)
    return model


def _shape(task: Task) -> Shape:
    shape = SHAPES.get(task.answer_type)
    if shape is None:
        raise NotFound("shape of Hugging Face for the task", task.name)
    return shape


# From what was sent to what is answered


def _sent(request: Request, body: bytes, task: Task) -> HuggingFaceIn:
    """The request that a body is. Raises Invalid, and UnsupportedMedia."""
    if kind_of(request, body, task) == JSON:
        return faults.read(HuggingFaceIn, read_json(body, '{"inputs": ...}'))
    return HuggingFaceIn.model_construct(inputs=body, table=None, parameters=None)


async def _of_inputs(sent: HuggingFaceIn, task: Task, predict: Predicting) -> Any:
    alone, inputs, how = _asked(sent, task)
    shape = _shape(task)
    answers = [shape.answer(prediction, how) for prediction in await predict(inputs)]
    # Of a file that comes alone the client reads its answer, of most texts that do a list of one answer.
    is_bare = alone and (files_of(task.input_type) or not shape.is_listed)
    if is_bare:
        return answers[0]
    return [b64encode(a).decode() if isinstance(a, bytes) else a for a in answers]


def _asked(sent: HuggingFaceIn, task: Task) -> tuple[bool, list[Any], Any]:
    """Whether an input came alone, the inputs, and how to give their answers. Raises Invalid."""
    shape, asked = _shape(task), sent.parameters or {}
    own = parameters.of_task(task, asked)
    others = {name: value for name, value in asked.items() if name not in own}
    how = faults.read(shape.parameters, others, ("parameters",))
    alone = not isinstance(sent.inputs, list)
    values = _counted([sent.inputs] if alone else sent.inputs, "inputs")
    return alone, parameters.spread(task, [_input(value, task) for value in values], own), how


async def _events(pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    """Pieces of a text as the client reads them, and with the last one all that was written."""
    whole, index = "", 0
    async for text, read, tokens, reason in pieces:
        whole += text
        index += 1
        # A piece may be of several tokens; what the client wants to know of one is not known of those.
        told: dict[str, Any] = {
            "index": index,
            "token": {"id": 0, "logprob": 0.0, "special": False, "text": text},
        }
        if reason:
            details = {"finish_reason": FINISH[reason], "generated_tokens": tokens}
            told |= {"generated_text": whole, "details": {**details, "input_length": read}}
        if text or reason:
            yield streams.event(told)


async def _of_table(sent: HuggingFaceIn, task: Task, predict: Predicting) -> list[Any]:
    shape = _shape(task)
    faults.read(Parameterless, sent.parameters or {}, ("parameters",))
    rows = _counted(transpose(sent.table or {}, "table"), "table")
    try:
        predictions = await predict(rows)
    except Invalid as error:
        raise Invalid(*map(_in_table, error.problems)) from None
    return [shape.cell(prediction) for prediction in predictions]


def _counted(inputs: list[Any], place: str) -> list[Any]:
    if not 0 < len(inputs) <= MOST_INPUTS:
        allowed = f"1 to {MOST_INPUTS:,}"
        raise Invalid(Problem((place,), "not that many at once", len(inputs), allowed))
    return inputs


def _input(value: Any, task: Task) -> Any:
    """An input as the task reads it: a text, and what is its one field of its own, may stand alone."""
    fields = own_fields(type(task))
    if isinstance(value, str) and "text" in fields:
        return {"text": value}
    stands_alone = not isinstance(value, dict) and len(fields) == 1 and fields != ["root"]
    return {fields[0]: value} if stands_alone else value


def _in_table(problem: Problem) -> Problem:
    """A problem of a row where its sender wrote it: column first."""
    _, row, *way = problem.loc
    return problem._replace(loc=("table", *way, row))


def _json(value: Any) -> Response:
    return Response(pydantic_core.to_json(value, inf_nan_mode="null"), media_type=JSON)
