"""What is sent to a model: inputs as JSON, as a file that is the body, or as the parts of a form."""

from typing import Annotated, Any

import pydantic_core
from fastapi import Path, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from api import faults
from api.bodies import FORM, JSON, MOST_INPUTS, kind_of, read_json
from api.forms import read_form
from tasks.base import Task

Ref = Annotated[str, Path(description="name (newest), name@3, name@alias, job_... or ckpt_...")]


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
BODY = {
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


async def sent_by(request: Request, body: bytes, task: Task) -> PredictIn:
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
