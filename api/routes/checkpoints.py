"""Checkpoints of a job, and their weights."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from api.auth import Principal, Train
from api.dependencies import CurrentDatabase, Reading
from api.downloads import documented_file, download
from api.errors import documented
from api.schemas import PageOut
from store import blobs, checkpoints, jobs
from store.errors import NotFound
from store.session import Database
from store.tables import Checkpoint

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class CheckpointOut(BaseModel):
    """A trained state of a job."""

    id: str = Field(description="Its id; it can be predicted with, and be the `base` of a job.")
    step: int = Field(description="Steps trained.")
    epoch: float = Field(description="Epochs trained.")
    metrics: dict[str, Any] = Field(description="What it is worth, by split.")
    value: float | None = Field(description="Its objective.")
    is_best: bool = Field(description="Whether it is the best of the job.")
    is_last: bool = Field(description="Whether it is the last of the job.")
    sha256: str = Field(description="SHA-256 of its weights.")
    size_bytes: int = Field(description="Bytes of its weights.")
    created_at: datetime = Field(description="When it was saved.")


@router.get(
    "/{job_id}/checkpoints",
    response_model=PageOut[CheckpointOut],
    summary="Checkpoints of a job",
    responses=documented(404),
)
def list_checkpoints(principal: Train, session: Reading, job_id: str) -> Any:
    """The best and the last checkpoint, newest first."""
    jobs.get(session, principal.project_id, job_id)
    rows = checkpoints.page(session, job_id)
    return {"data": [_out(row, blobs.size(session, row.weights_blob)) for row in rows]}


@router.head("/{job_id}/checkpoints/{checkpoint_id}/weights", include_in_schema=False)
@router.get(
    "/{job_id}/checkpoints/{checkpoint_id}/weights",
    response_class=Response,
    summary="Weights of a checkpoint",
    responses=documented_file("application/octet-stream"),
)
def get_checkpoint_weights(
    request: Request,
    principal: Train,
    database: CurrentDatabase,
    job_id: str,
    checkpoint_id: str,
) -> Response:
    """The weights as safetensors. `ETag` is their SHA-256; `Range` takes a part."""
    checkpoint, size = _find(database, principal, job_id, checkpoint_id)
    filename = f"{checkpoint_id}.safetensors"
    return download(request, database, checkpoint.weights_blob, size, filename)


def _find(
    database: Database, principal: Principal, job_id: str, checkpoint_id: str
) -> tuple[Checkpoint, int]:
    with database.transaction(read_only=True) as session:
        jobs.get(session, principal.project_id, job_id)
        checkpoint = checkpoints.get(session, principal.project_id, checkpoint_id)
        if checkpoint.job_id != job_id:
            raise NotFound("checkpoint", checkpoint_id)
        return checkpoint, blobs.size(session, checkpoint.weights_blob)


def _out(row: Checkpoint, size: int) -> CheckpointOut:
    return CheckpointOut(
        id=row.id,
        step=row.step,
        epoch=row.epoch,
        metrics=row.metrics,
        value=row.value,
        is_best=row.is_best,
        is_last=row.is_last,
        sha256=row.weights_blob,
        size_bytes=size,
        created_at=row.created_at,
    )
