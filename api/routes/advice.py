"""Advice: which of one's models, and which published checkpoints, a data set had best be learned from."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from api.advice_schemas import AdviceCreate
from api.advising import ask_for_advice, published_tasks
from api.auth import Train
from api.dependencies import CurrentDatabase, CurrentSettings, Writing
from api.errors import documented
from api.job_schemas import JobOut
from api.new_job import NewJob
from api.published import Shelf
from store import datasets
from store.errors import NotFound
from store.tables import Job
from tasks.parts.problems import Invalid

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


class AskedAdvice:
    """A request for advice, and what finds published checkpoints for it: looked up before there is a transaction."""

    def __init__(
        self,
        request: Request,
        principal: Train,
        database: CurrentDatabase,
        dataset_id: str,
        body: AdviceCreate,
    ) -> None:
        shelf: Shelf = request.app.state.shelf
        self.body, self.find = body, shelf.of(principal.project_id)
        if not body.architectures:
            return
        with suppress(NotFound, Invalid):
            with database.transaction(read_only=True) as session:
                task = datasets.get(session, principal.project_id, dataset_id).task
            for each in published_tasks(task, body):
                shelf.look_ahead(principal.project_id, each)


@router.post(
    "/{dataset_id}/advice",
    status_code=202,
    summary="Ask which bases suit a data set",
    responses=documented(404, 409),
)
def create_advice(
    dataset_id: Annotated[str, Path(description="The data set's id.")],
    principal: Train,
    asked: Annotated[AskedAdvice, Depends()],
    session: Writing,
    settings: CurrentSettings,
    new_job: NewJob,
) -> JobOut:
    """Queues a job of kind `advise`. Each base looks at a sample of the train split, and a linear head is put on
    what it sees; nothing is fine-tuned.

    `result` ranks them by what that head predicts, in the task's own metric and with its standard error, beside the
    inputs alone; for each it tells parameters, and how long an epoch takes.
    """
    project_id, private = principal.project_id, settings.webhook_private

    def make() -> Job:
        return ask_for_advice(
            session, project_id, dataset_id, asked.body, find=asked.find, webhook_private=private
        )

    return new_job(asked.body, make)
