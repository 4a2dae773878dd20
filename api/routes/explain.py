"""Explanations: where in an input a model sees what it answers by."""

from base64 import b64encode

import pydantic_core
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from api import faults, file_answers
from api.auth import Predict
from api.bodies import JSON, is_large
from api.errors import documented
from api.lean import LeanRoute
from api.sent import BODY, Ref, sent_by
from api.serving.engine import Serving
from tasks.base import Parameterless
from tasks.parts.images import encode_png
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Explained

PNG = "image/png"


class ExplainParameters(Parameterless):
    """What to explain."""

    label: str | None = Field(None, description="What is looked for; if left out, the best label.")


class Explanation(BaseModel):
    """What speaks for a label, and where."""

    label: str = Field(description="The label.")
    score: float = Field(description="Its score.")
    map: str = Field(
        description="A PNG file as base64, grey: bright where the image speaks for the label, black where it does "
        "least. Stretch it to the size of the image."
    )


class ExplainOut(BaseModel):
    """Explanations, in the order of the inputs."""

    model: str = Field(description="What was explained: the model's name and version.")
    explanations: list[Explanation] = Field(description="One for each input.")


router = APIRouter(tags=["models"], route_class=LeanRoute)


@router.post(
    "/v1/models/{ref}/explain",
    summary="Explain",
    response_model=ExplainOut,
    responses={
        200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}},
        **documented(404, 409, 413, 415, 503),
    },
    openapi_extra={"requestBody": BODY},
)
async def explain(ref: Ref, principal: Predict, request: Request) -> Response:
    """Where in an image a model for image-classification sees a label: class activation maps (Zhou et al., 2016).

    The body is that of a prediction, with `label` as its only parameter. `Accept: image/png` makes the map the body
    of the answer, for one input. Other models are a 404.
    """
    serving: Serving = request.app.state.serving
    model = await serving.find(principal.project_id, ref)
    body = await request.body()
    sent = await sent_by(request, body, model.task)
    asked = faults.read(ExplainParameters, sent.parameters or {}, ("parameters",))
    as_file = PNG in request.headers.get("Accept", "")
    if as_file:
        file_answers.check(sent.inputs)
    found = await serving.explain(model, sent.inputs, large=is_large(body, model.task))
    codec = model.served.trained.codec
    labels, side = getattr(codec, "labels", []), getattr(codec, "side", 0)
    if asked.label is not None and asked.label not in labels:
        place = ("parameters", "label")
        raise Invalid(Problem(place, "no label of the model", asked.label, [*labels]))
    maps = [_of_label(each, asked.label, labels, side) for each in found]
    if as_file:
        return Response(maps[0][2], media_type=PNG)
    explanations = [
        Explanation(label=label, score=score, map=b64encode(png).decode())
        for label, score, png in maps
    ]
    answer = ExplainOut(model=model.ref, explanations=explanations)
    return Response(pydantic_core.to_json(answer, inf_nan_mode="null"), media_type=JSON)


def _of_label(
    found: Explained, asked: str | None, labels: list[str], side: int
) -> tuple[str, float, bytes]:
    """A label, its score, and the file of its map."""
    label = asked or found.prediction.label
    drawn = _drawn(found.maps[labels.index(label)], side)
    return label, found.prediction.scores[label], encode_png(drawn.numpy())


def _drawn(evidence: Tensor, side: int) -> Tensor:
    """What each place adds (H, W) as a grey square (1, side, side) uint8, from what adds least to what adds most."""
    smooth = F.interpolate(evidence[None, None], (side, side), mode="bilinear")[0]
    least, most = smooth.aminmax()
    return ((smooth - least) / (most - least).clamp(min=1e-9) * 255).round().byte()
