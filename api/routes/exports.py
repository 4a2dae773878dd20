"""Ways out and in: models as files in other formats, and files of models as versions of models here."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from api.auth import Train
from api.checking import Checker
from api.dependencies import CurrentDatabase, CurrentSettings, Writing
from api.errors import documented
from api.job_schemas import JobOut, ModelName, model_name_of
from api.model_schemas import RunOptions, VersionOut, version_out
from api.new_job import NewJob
from api.replies import Once
from api.sent import Ref
from api.serving import references
from api.submitting import chosen_queue, chosen_webhook
from api.uploads import save
from store import blobs, checkpoints, jobs, models
from store.session import Database
from store.tables import Job
from tasks.catalog import read_spec
from tasks.parts.exports import FORMATS, FormatName, check_format
from tasks.parts.packages import Packed

router = APIRouter(prefix="/v1/models", tags=["models"])

_FORMATS = "; ".join(f"`{name}`: {each.summary}" for name, each in FORMATS.items())


class ExportCreate(RunOptions):
    """How a model is to leave."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"format": "safetensors"}]})

    format: FormatName = Field(description=f"{_FORMATS}.")


@router.post(
    "/{ref}/exports", status_code=202, summary="Export a model", responses=documented(404, 409)
)
def create_export(
    ref: Ref,
    body: ExportCreate,
    session: Writing,
    principal: Train,
    settings: CurrentSettings,
    new_job: NewJob,
) -> JobOut:
    """Queues a job of kind `export`, whose artifact will be the file; its name stands in `result`.

    A format that this model does not have is refused at once, and those that it has are listed.
    """
    project_id, private = principal.project_id, settings.webhook_private

    def make() -> Job:
        return _export(session, project_id, ref, body, webhook_private=private)

    return new_job(body, make)


def _export(
    session: Session, project_id: str, ref: str, asked: ExportCreate, *, webhook_private: bool
) -> Job:
    """A queued export. Raises NotFound, Conflict and Invalid."""
    found = references.find(session, project_id, ref)
    spec = read_spec(found.checkpoint.spec)
    check_format(asked.format, spec.task)
    return jobs.create(
        session,
        project_id,
        kind="export",
        name=f"{found.ref} as {asked.format}",
        dataset_id=None,
        task=spec.task.name,
        spec=found.checkpoint.spec,
        request={"model": found.ref, "format": asked.format},
        base={"ref": found.ref, "checkpoint": found.checkpoint.id},
        base_checkpoint_id=found.checkpoint.id,
        priority=asked.priority,
        queue=chosen_queue(session, asked.resources.queue),
        webhook=chosen_webhook(asked.webhook, private=webhook_private),
    )


@router.post("", status_code=201, summary="Import a model")
def import_model(
    request: Request,
    response: Response,
    principal: Train,
    database: CurrentDatabase,
    once: Once,
    file: Annotated[
        UploadFile, File(description="What an export as `safetensors` has made, here or elsewhere.")
    ],
    name: Annotated[
        ModelName | None,
        Form(description="The model's name; the one it had when it was exported if left out."),
    ] = None,
) -> VersionOut:
    """Makes the file the next version of a model: it predicts, is a base, and is evaluated like any other.

    The network is built and has to answer before anything is kept, in a process with bounded memory and time.
    """
    checker: Checker = request.app.state.checker
    with TemporaryDirectory(dir=request.app.state.uploads) as temporary:
        folder = Path(temporary)
        upload, digest = save(file, folder / "upload.zip")
        asked = [name, upload.name, digest]
        with database.transaction(read_only=True) as session:
            made = once.known(session, asked, VersionOut)
        if made is None:
            packed = checker.unpack_model(upload, folder)
            create = _store(database, principal.project_id, name, packed)
            with database.transaction() as session:
                made = once(session, asked, VersionOut, partial(create, session))
    response.headers["Location"] = f"/v1/models/{made.ref}"
    return made


def _store(
    database: Database, project_id: str, asked: str | None, packed: Packed
) -> Callable[[Session], VersionOut]:
    """Store the bytes, which takes a while; what is given then makes them a version at once."""
    about, codec, weights = packed
    name = asked or model_name_of(about.ref.partition("@")[0])
    stored = [blobs.put(database, path) for path in (codec, weights)]

    def create(session: Session) -> VersionOut:
        codec_blob, weights_blob = stored
        checkpoint = checkpoints.add(
            session,
            project_id,
            step=about.step,
            epoch=about.epoch,
            metrics=about.metrics,
            weights_blob=weights_blob,
            codec_blob=codec_blob,
            spec=about.spec.model_dump(mode="json"),
        )
        return version_out(name, models.publish(session, project_id, name, None, checkpoint.id))

    return create
