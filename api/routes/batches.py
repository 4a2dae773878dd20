"""Batch predictions: a model's answers for a whole data set or file, as a job."""

from pathlib import Path as Folder
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import WithJsonSchema
from sqlalchemy.orm import Session

from api.auth import Train
from api.checking import Checker
from api.dependencies import CurrentDatabase, CurrentSettings, Writing
from api.errors import documented
from api.job_schemas import JobOut
from api.model_schemas import RunOptions
from api.new_job import NewJob
from api.sent import Ref
from api.serving import references
from api.submitting import chosen_queue, chosen_split, chosen_webhook
from api.uploads import read_options, save
from store import blobs, jobs
from store.session import Database
from store.tables import Job
from tasks.parts.problems import Invalid, Problem

router = APIRouter(prefix="/v1/models", tags=["models"])

SPLIT = "test"


class Batch(NamedTuple):
    """What to predict for, and how."""

    ref: str
    dataset: str | None
    split: str
    options: RunOptions
    file: str | None = None
    """The name of the file that was sent."""
    inputs_blob: str | None = None
    """What was read of it."""


@router.post(
    "/{ref}/batch-predict",
    status_code=202,
    summary="Predict for a data set or a file",
    responses=documented(404, 409, 413, 507),
)
def batch_predict(
    ref: Ref,
    request: Request,
    principal: Train,
    database: CurrentDatabase,
    session: Writing,
    settings: CurrentSettings,
    new_job: NewJob,
    file: Annotated[
        UploadFile | None,
        WithJsonSchema({"type": "string", "format": "binary"}),
        File(
            description="Inputs without targets: JSON Lines, each an input of a request; a table with "
            "a header (CSV, TSV, Parquet); or a zip of files, where inputs are files."
        ),
    ] = None,
    dataset: Annotated[
        str | None, Form(max_length=100, description="The id of a data set of the model's task.")
    ] = None,
    split: Annotated[
        str | None,
        Form(max_length=100, description=f"Which split of the data set; `{SPLIT}` if left out."),
    ] = None,
    options: Annotated[
        str,
        Form(
            description="`resources`, `priority` and `webhook` of the job, as JSON.",
            examples=["{}"],
        ),
    ] = "{}",
) -> JobOut:
    """Queues a job of kind `predict` for a `file` or a `dataset`.

    Its artifacts will be `predictions.jsonl` and `predictions.parquet`: an answer for each input, in
    their order, which is a prediction or the `errors` that tell why there is none. `result` counts them
    and shows the first inputs that failed. A file that cannot be read as a whole is refused at once.
    """
    _check_combination(file, dataset, split)
    asked = Batch(ref, dataset, split or SPLIT, read_options(options, RunOptions))
    sent: list[Any] = [dataset, split, options]
    if file is not None:
        with TemporaryDirectory(dir=request.app.state.uploads) as name:
            upload, digest = save(file, Folder(name) / "file")
            sent += [upload.name, digest]
            if not new_job.is_known(sent):
                task = _task_of(database, principal.project_id, ref)
                checker: Checker = request.app.state.checker
                inputs = checker.read(task, upload, Folder(name))
                stored = blobs.put(database, inputs)
                asked = asked._replace(file=upload.name, inputs_blob=stored)

    def make() -> Job:
        private = settings.webhook_private
        return _submit(session, principal.project_id, asked, webhook_private=private)

    return new_job(sent, make)


def _check_combination(file: UploadFile | None, dataset: str | None, split: str | None) -> None:
    """Either a file, or a data set with perhaps a split. Raises Invalid."""
    given = {"file": file, "dataset": dataset, "split": split}
    sent = [name for name, value in given.items() if value is not None]
    allowed = [["file"], ["dataset"], ["dataset", "split"]]
    if sent not in allowed:
        combinations = [" + ".join(names) for names in allowed]
        problem = "send one of these combinations"
        raise Invalid(Problem(("file",), problem, sent or None, combinations))


def _task_of(database: Database, project_id: str, ref: str) -> str:
    with database.transaction(read_only=True) as session:
        found = references.find(session, project_id, ref)
    task: str = found.checkpoint.spec["task"]["name"]
    return task


def _submit(session: Session, project_id: str, asked: Batch, *, webhook_private: bool) -> Job:
    """A queued batch prediction. Raises NotFound, Conflict and Invalid."""
    found = references.find(session, project_id, asked.ref)
    task, source = found.checkpoint.spec["task"]["name"], asked.file
    request: dict[str, Any] = {"model": found.ref, "file": asked.file}
    if asked.dataset is not None:
        source = chosen_split(session, project_id, asked.dataset, asked.split, task).name
        request = {"model": found.ref, "dataset": asked.dataset, "split": asked.split}
    options = asked.options
    return jobs.create(
        session,
        project_id,
        kind="predict",
        name=f"{found.ref} for {source}"[:200],
        dataset_id=asked.dataset,
        task=task,
        spec=found.checkpoint.spec,
        request=request,
        base={"ref": found.ref, "checkpoint": found.checkpoint.id},
        base_checkpoint_id=found.checkpoint.id,
        priority=options.priority,
        queue=chosen_queue(session, options.resources.queue),
        webhook=chosen_webhook(options.webhook, private=webhook_private),
        inputs_blob=asked.inputs_blob,
    )
