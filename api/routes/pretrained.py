"""Published checkpoints that were uploaded, for jobs to begin with."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.auth import Train
from api.checking import Checker
from api.dependencies import CurrentDatabase, Reading, Writing
from api.errors import documented
from api.replies import Once
from api.schemas import After, Limit, PageOut, page_out
from api.uploads import ShownName, save
from store import blobs, pretrained
from store.session import Database
from tasks.parts.hub_archives import Unpacked

router = APIRouter(prefix="/v1/pretrained", tags=["models"])


class PretrainedOut(BaseModel):
    """An uploaded checkpoint in the layout of the Hugging Face Hub."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "example": {
                "id": "pre_01jd2x7m0qk5t3v9r8w6y4z2ab",
                "name": "our-vit",
                "model_type": "vit",
                "size_bytes": 343012345,
                "ignored": [],
                "created_at": "2026-01-31T12:00:00Z",
            }
        },
    )

    id: str = Field(description="Its id: the `checkpoint` of an architecture that is `pretrained`.")
    name: str = Field(description="The name it was given.")
    model_type: str = Field(description="What its configuration calls its kind of network.")
    size_bytes: int = Field(description="Bytes of its files.")
    ignored: list[str] = Field(
        [], description="Files of the upload that were not kept; only told after the upload."
    )
    created_at: datetime = Field(description="When it was uploaded.")


@router.post("", status_code=201, summary="Upload a pretrained checkpoint")
def create_pretrained(
    request: Request,
    response: Response,
    principal: Train,
    database: CurrentDatabase,
    once: Once,
    file: Annotated[UploadFile, File(description="A zip of the checkpoint's folder.")],
    name: Annotated[
        ShownName, Form(description="A name for people; the file's name if empty.")
    ] = "",
) -> PretrainedOut:
    """Keeps a folder in the layout of the Hugging Face Hub, for services that reach no hub, or for weights of
    your own: `config.json`, the files of its preprocessor, and weights as `.safetensors`.

    Files of other kinds are not kept. A job begins with it whose architecture is
    `{"name": "pretrained", "checkpoint": "pre_..."}`.
    """
    checker: Checker = request.app.state.checker
    with TemporaryDirectory(dir=request.app.state.uploads) as temporary:
        folder = Path(temporary)
        upload, digest = save(file, folder / "upload.zip")
        asked = [name, upload.name, digest]
        with database.transaction(read_only=True) as session:
            kept = once.known(session, asked, PretrainedOut)
        if kept is None:
            found = checker.unpack(upload, folder)
            shown = name.strip() or Path(upload.name).stem[:200] or found.model_type
            create = _store(database, principal.project_id, shown, found, folder)
            with database.transaction() as session:
                kept = once(session, asked, PretrainedOut, partial(create, session))
    response.headers["Location"] = f"/v1/pretrained/{kept.id}"
    return kept


@router.get("", response_model=PageOut[PretrainedOut], summary="List pretrained checkpoints")
def list_pretrained(
    principal: Train, session: Reading, limit: Limit = 20, after: After = None
) -> Any:
    """The project's uploaded checkpoints, newest first."""
    page = pretrained.page(session, principal.project_id, limit, after)
    return page_out(page, PretrainedOut.model_validate)


@router.get("/{pretrained_id}", summary="Show a pretrained checkpoint", responses=documented(404))
def get_pretrained(principal: Train, session: Reading, pretrained_id: str) -> PretrainedOut:
    """Its name, its kind of network and its size."""
    found = pretrained.get(session, principal.project_id, pretrained_id)
    return PretrainedOut.model_validate(found)


@router.delete(
    "/{pretrained_id}",
    status_code=204,
    summary="Delete a pretrained checkpoint",
    responses=documented(404, 409),
)
def delete_pretrained(principal: Train, session: Writing, pretrained_id: str) -> None:
    """Forgets it, unless a job or sweep that has not ended begins with it; models made from it stay."""
    pretrained.delete(session, principal.project_id, pretrained_id)


def _store(
    database: Database, project_id: str, name: str, found: Unpacked, folder: Path
) -> Callable[[Session], PretrainedOut]:
    """Store the bytes, which takes a while; what is given then makes them a checkpoint at once."""
    paths = {each: folder / str(place) for place, each in enumerate(found.names)}
    files = {each: blobs.put(database, path) for each, path in paths.items()}
    size = sum(path.stat().st_size for path in paths.values())

    def create(session: Session) -> PretrainedOut:
        row = pretrained.create(
            session,
            project_id,
            name=name,
            model_type=found.model_type,
            size_bytes=size,
            files=files,
        )
        out = PretrainedOut.model_validate(row)
        return out.model_copy(update={"ignored": found.ignored[:100]})

    return create
