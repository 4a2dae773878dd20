"""Vectors of texts in the shapes of Hugging Face, for `InferenceClient(model=URL)`.

Shapes: `feature-extraction` and `sentence-similarity` in huggingface.js, `packages/tasks/src/tasks`.
"""

import pydantic_core
from fastapi import APIRouter, Request, Response
from torch import stack
from torch.nn import functional as F

from api import faults
from api.auth import Predict
from api.bodies import JSON, is_large, read_json
from api.embedding import embed_texts
from api.embedding_schemas import FeaturesIn, SimilarityIn
from api.errors import documented
from api.lean import LeanRoute
from api.sent import Ref
from api.serving.engine import Serving

router = APIRouter(prefix="/hf/models", tags=["hugging face"], route_class=LeanRoute)


@router.post(
    "/{ref}/feature-extraction",
    summary="Embed in the shapes of Hugging Face",
    response_model=list[float] | list[list[float]],
    responses=documented(404, 409, 413, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/FeaturesIn"}}},
        }
    },
)
async def extract_features(ref: Ref, principal: Predict, request: Request) -> Response:
    """What `InferenceClient(model=URL).feature_extraction(text)` asks for, where URL is that of this route.

    Models for search and for text-classification answer: a vector for a text, a list of them for a list.
    """
    body = await request.body()
    asked = faults.read(FeaturesIn, read_json(body, '{"inputs": ...}'))
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, ref)
    alone = isinstance(asked.inputs, str)
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    large = is_large(body, model.task)
    vectors, _ = await embed_texts(serving, model, texts, "inputs", large=large)
    found = [(F.normalize(v, dim=0) if asked.normalize else v).tolist() for v in vectors]
    return _json(found[0] if alone else found)


@router.post(
    "/{ref}/sentence-similarity",
    summary="Compare texts in the shapes of Hugging Face",
    response_model=list[float],
    responses=documented(404, 409, 413, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/SimilarityIn"}}},
        }
    },
)
async def compare_texts(ref: Ref, principal: Predict, request: Request) -> Response:
    """What `InferenceClient(model=URL).sentence_similarity(text, others)` asks for, where URL is that of this route.

    The cosine of the angle between the vector of a text and that of each other.
    """
    body = await request.body()
    asked = faults.read(SimilarityIn, read_json(body, '{"inputs": ...}')).inputs
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, ref)
    texts, large = [asked.source_sentence, *asked.sentences], is_large(body, model.task)
    vectors, _ = await embed_texts(serving, model, texts, "inputs", large=large)
    first, *others = F.normalize(stack(vectors), dim=1)
    return _json([float(first @ other) for other in others])


def _json(value: object) -> Response:
    return Response(pydantic_core.to_json(value, inf_nan_mode="null"), media_type=JSON)
