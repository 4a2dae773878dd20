"""Artifacts of a job: files it has made besides what it learned."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Train
from api.dependencies import CurrentDatabase, Reading
from api.downloads import documented_file, download
from api.errors import documented
from api.schemas import After, Limit, PageOut, page_out
from store import artifacts, blobs, jobs

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class ArtifactOut(BaseModel):
    """A file that a job has made besides what it learned."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Its id.")
    name: str = Field(
        description="Its name, by which it is downloaded.", examples=["profile.trace.json.gz"]
    )
    media_type: str = Field(description="What is in it.", examples=["application/gzip"])
    sha256: str = Field(validation_alias="blob_id", description="SHA-256 of its bytes.")
    size_bytes: int = Field(validation_alias="size", description="How many bytes it has.")
    created_at: datetime = Field(description="When it was made.")


@router.get(
    "/{job_id}/artifacts",
    response_model=PageOut[ArtifactOut],
    summary="Artifacts of a job",
    responses=documented(404),
)
def list_artifacts(
    principal: Train, session: Reading, job_id: str, limit: Limit = 20, after: After = None
) -> Any:
    """Files the job has made besides what it learned, such as a profile; newest first."""
    jobs.get(session, principal.project_id, job_id)
    page = artifacts.page(session, job_id, limit, after)
    return page_out(page, ArtifactOut.model_validate)


class Sample(BaseModel):
    """One example as the training job saw it."""

    row: int = Field(
        description="Its place in the validation split, counted from 0: what `GET /v1/datasets/{id}/examples` shows."
    )
    prediction: dict[str, Any] = Field(description="What `predict` would have answered.")


class SamplesOut(BaseModel):
    """Predictions for a few examples, by what a training knew after an epoch."""

    epoch: int = Field(description="Epochs trained.")
    step: int = Field(description="Steps trained.")
    split: str = Field(description="Where the examples are from.", examples=["validation"])
    samples: list[Sample] = Field(description="Always the same examples, so that epochs compare.")


@router.get(
    "/{job_id}/samples",
    response_model=SamplesOut,
    summary="Sample predictions of a training",
    responses=documented(404),
)
def get_samples(
    principal: Train,
    database: CurrentDatabase,
    job_id: str,
    epoch: Annotated[
        int | None,
        Query(ge=1, lt=1_000_000, description="Those after this epoch; the newest if left out."),
    ] = None,
) -> Response:
    """Watch it learn: what the training predicted for up to eight examples of the validation split.

    They are made at the ends of epochs, five seconds or a tenth of the training's time apart, and at its
    end. Each is an artifact too, `samples-000003.json`, and an event `artifact` says when there are new
    ones. A training on several devices has none.
    """
    with database.transaction(read_only=True) as session:
        jobs.get(session, principal.project_id, job_id)
        if epoch is None:
            found = artifacts.newest_samples(session, job_id)
        else:
            found = artifacts.get(session, job_id, artifacts.samples_of(epoch))
    content = b"".join(blobs.read(database, found.blob_id))
    return Response(content, media_type=found.media_type)


@router.head("/{job_id}/artifacts/{name}", include_in_schema=False)
@router.get(
    "/{job_id}/artifacts/{name}",
    response_class=Response,
    summary="Download an artifact",
    responses=documented_file("*/*"),
)
def get_artifact(
    request: Request, principal: Train, database: CurrentDatabase, job_id: str, name: str
) -> Response:
    """The file. `ETag` is its SHA-256; `Range` takes a part."""
    with database.transaction(read_only=True) as session:
        jobs.get(session, principal.project_id, job_id)
        found = artifacts.get(session, job_id, name)
    return download(request, database, found.blob_id, found.size, found.name, found.media_type)
