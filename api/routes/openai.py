"""Completions and embeddings in the shapes of OpenAI, for `openai.OpenAI(base_url=URL/openai/v1, api_key=KEY)`."""

from base64 import b64encode
from collections.abc import AsyncIterator
from time import time
from typing import Any
from uuid import uuid4

import pydantic_core
from fastapi import APIRouter, Request, Response
from torch import Tensor

from api import faults, streams
from api.auth import Predict
from api.bodies import JSON, is_large, read_json
from api.dependencies import Reading
from api.embedding import embed_texts
from api.errors import documented
from api.lean import LeanRoute
from api.openai_schemas import (
    Choice,
    CompletionIn,
    CompletionOut,
    Embedding,
    EmbeddingIn,
    EmbeddingOut,
    EmbeddingUsage,
    OpenAIModel,
    OpenAIModels,
    StreamOptions,
    Usage,
)
from api.serving.engine import Serving
from store import models
from store.errors import NotFound
from tasks.parts.problems import Invalid
from tasks.text_generation import Generated, Piece

FINISH = {"length": "length", "time": "length", "end": "stop", "stop": "stop"}
MOST_LISTED = 1_000


lean = APIRouter(prefix="/openai/v1", tags=["openai"], route_class=LeanRoute)
router = APIRouter(prefix="/openai/v1", tags=["openai"])


@lean.post(
    "/completions",
    summary="Complete in the shapes of OpenAI",
    response_model=CompletionOut,
    responses={
        200: {"content": {streams.EVENTS: {"schema": {"type": "string"}}}},
        **documented(404, 409, 413, 503),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/CompletionIn"}}},
        }
    },
)
async def complete_as_openai(principal: Predict, request: Request) -> Response:
    """What `client.completions.create(model=NAME, prompt=...)` asks for, in one answer or as a stream.

    Models for text-generation answer. There is no route for chats: these models know of no turns.
    """
    body = await request.body()
    asked = faults.read(CompletionIn, read_json(body, '{"model": ..., "prompt": ...}'))
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, asked.model)
    if not issubclass(model.task.prediction_type, Generated):
        raise NotFound("model for text-generation", asked.model)
    prompts = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
    how = _parameters(asked)
    inputs = [{**how, "prompt": prompt} for prompt in prompts]
    answer = CompletionOut(
        id=f"cmpl-{uuid4().hex}", created=int(time()), model=model.ref, choices=[]
    )
    try:
        if asked.stream:
            told = asked.stream_options or StreamOptions()
            pieces = await streams.begin(request, serving, model, inputs)
            return streams.answer(_events(answer, pieces, usage=told.include_usage))
        found = await serving.predict(model, inputs, large=is_large(body, model.task))
    except Invalid as error:
        raise Invalid(*(p._replace(loc=p.loc[2:] or p.loc) for p in error.problems)) from None
    answer.choices = [
        Choice(index=index, text=text.text, finish_reason=FINISH[text.finish_reason])
        for index, text in enumerate(found)
    ]
    answer.usage = _usage(sum(t.prompt_tokens for t in found), sum(t.tokens for t in found))
    return Response(pydantic_core.to_json(answer), media_type=JSON)


def _parameters(asked: CompletionIn) -> dict[str, Any]:
    """The task's own; null means what leaving it out does."""
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    given = {
        "max_new_tokens": 16 if asked.max_tokens is None else asked.max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": asked.seed,
        "stop": stop,
    }
    return {name: value for name, value in given.items() if value is not None}


async def _events(
    answer: CompletionOut, pieces: AsyncIterator[Piece], *, usage: bool
) -> AsyncIterator[bytes]:
    async for text, read, written, reason in pieces:
        if text or reason:
            finish = FINISH[reason] if reason else None
            choice = Choice(index=0, text=text, finish_reason=finish)
            yield streams.event(answer.model_copy(update={"choices": [choice]}))
        if reason and usage:
            yield streams.event(answer.model_copy(update={"usage": _usage(read, written)}))
    yield b"data: [DONE]\n\n"


def _usage(read: int, written: int) -> Usage:
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


@lean.post(
    "/embeddings",
    summary="Embed in the shapes of OpenAI",
    response_model=EmbeddingOut,
    responses=documented(404, 409, 413, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/EmbeddingIn"}}},
        }
    },
)
async def embed_as_openai(principal: Predict, request: Request) -> Response:
    """What `client.embeddings.create(model=NAME, input=...)` asks for.

    Models for search and for text-classification answer, with what their network makes of a text before a head
    decides; those of search have length 1, or 0 for a text without any token.
    """
    body = await request.body()
    asked = faults.read(EmbeddingIn, read_json(body, '{"model": ..., "input": ...}'))
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, asked.model)
    texts = asked.input if isinstance(asked.input, list) else [asked.input]
    large = is_large(body, model.task)
    found = await embed_texts(serving, model, texts, "input", large=large)
    written = _base64 if asked.encoding_format == "base64" else Tensor.tolist
    answer = EmbeddingOut(
        data=[Embedding(index=i, embedding=written(v)) for i, v in enumerate(found.vectors)],
        model=model.ref,
        usage=EmbeddingUsage(prompt_tokens=found.tokens, total_tokens=found.tokens),
    )
    return Response(pydantic_core.to_json(answer), media_type=JSON)


def _base64(vector: Tensor) -> str:
    return b64encode(vector.numpy().astype("<f4").tobytes()).decode()


@router.get("/models", summary="List models in the shapes of OpenAI")
def list_openai_models(session: Reading, principal: Predict) -> OpenAIModels:
    """All models by their names; those for text-generation complete prompts, those for search embed texts."""
    found = models.newest(session, principal.project_id, MOST_LISTED)
    created = [(name, int(row.created_at.timestamp())) for name, row in found]
    return OpenAIModels(data=[OpenAIModel(id=name, created=at) for name, at in created])
