"""A new job as the answer to a request: made once, found by its `Location`, soon taken by a worker."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, Request, Response

from api.dependencies import CurrentDatabase, Writing
from api.job_schemas import JobOut, job_in_detail
from api.queue import Bell
from api.replies import Once
from store.tables import Job


class Submission:
    """The request at hand, which asks for a new job."""

    def __init__(
        self,
        request: Request,
        response: Response,
        after: BackgroundTasks,
        database: CurrentDatabase,
        session: Writing,
        once: Once,
    ) -> None:
        self._database = database
        self._bell: Bell = request.app.state.bell
        self._response, self._after, self._session, self._once = response, after, session, once

    def is_known(self, sent: Any) -> bool:
        """Whether there is such a job already, for what takes long to make. Raises Invalid like a call."""
        with self._database.transaction(read_only=True) as session:
            return self._once.known(session, sent, JobOut) is not None

    def __call__(self, sent: Any, make: Callable[[], Job]) -> JobOut:
        """The job that `make` gives, or gave when `sent` came here with the same key before."""
        job = self._once(self._session, sent, JobOut, lambda: self._shown(make()))
        self._response.headers["Location"] = f"/v1/jobs/{job.id}"
        # A worker is woken once the transaction is through.
        self._after.add_task(self._bell.ring, job.queue)
        return job

    def _shown(self, job: Job) -> JobOut:
        return job_in_detail(self._session, job)


NewJob = Annotated[Submission, Depends()]
