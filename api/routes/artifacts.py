"""Artifacts of a job: files it has made besides what it learned."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.auth import Train
from api.dependencies import CurrentDatabase, Reading
from api.downloads import documented_file, download
from api.errors import documented
from api.schemas import After, Limit, PageOut, page_out
from store import artifacts, jobs

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
